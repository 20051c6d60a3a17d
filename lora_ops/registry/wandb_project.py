"""The registry's project at W&B: what lies there under which name.

| artifact | type | named by | what it is |
|---|---|---|---|
| `finance` | `lora-adapter` | `manifest-<12 hex>`, `version-3`, its aliases | package, manifest, signature |
| `finance.data` | `dataset` | `data-<12 hex>` | the record of the prepared data |
| `finance.policy`, ... | `evaluation`, `incident` | `report-<12 hex>` | a report that a decision rests on |
| `audit` | `audit` | `entry-<12 hex>` | one signed entry of the audit log |

A tenant's name has no dot, so no tenant has the name of another one's artifact. Earlier releases wrote
`finance-data`, `finance-policy` and so on: such artifacts stay where they are and are still read. A tenant
whose name reads like one of those, from before names were reserved, has its versions in `<tenant>.adapter`.

Each entry of the log is one W&B run: it uses the artifacts that it rests on and logs those that it brings, so
W&B draws the lineage. An adapter's entry also uses the package that the pipeline logged into the project of the
runs, and the adapter's metadata names the run that made it. Names are digests, so sending twice finds what the
first time left.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.clock import now
from lora_ops.errors import Damaged
from lora_ops.hashing import sha256_text
from lora_ops.records.data import DataRecord
from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import AdapterRecord, AuditEntry
from lora_ops.registry.audit import Head
from lora_ops.registry.sent_entries import SHOWN, SentEntry, metadata_of, place_of, read_entry
from lora_ops.registry.wandb_client import WandbClient
from lora_ops.settings.registry import WandbSettings
from lora_ops.settings.section import refuse_reserved_name
from lora_ops.settings.tracking import TrackingSettings

AUDIT = "audit"
ADAPTER = "lora-adapter"
# An upload whose change was never made, because it was killed or lost a race, goes away by itself after this.
UNCLAIMED = timedelta(days=30)
PAGE = 100


class Named(NamedTuple):
    """The version that an alias names at W&B."""

    manifest_sha256: str
    id: str


class Parcel(NamedTuple):
    """What an entry brings: the version's package when it is registered, and the reports that it rests on."""

    manifest_sha256: str
    reports: Sequence[tuple[Path, Evidence]]
    package: Path | None = None
    content: str = ""
    """The alias of the package in the project of the runs."""
    data: DataRecord | None = None
    parent_manifest_sha256: str | None = None


class WandbProject(WandbClient):
    """One W&B project; nothing is asked of W&B before the first call.

    Args:
        runs: the project that the pipeline logs into; without it, no version names the run that made it.
    """

    def __init__(self, settings: WandbSettings, runs: TrackingSettings | None = None) -> None:
        super().__init__(settings, runs)
        self._places: dict[str, int] = {}
        """The hash of each entry that was read to the first version number under which it was."""
        self._listed: Any = None
        """The listing that was read last: the client builds the class of its pages anew, which takes longer
        than to read a small log, unless somebody holds one of them."""

    # The audit log.

    def entries(self, after: Head) -> list[SentEntry] | None:
        """The entries that W&B took after `after`, in its order; those that lost a race are among them.

        Returns:
            None when W&B does not hold `after`: it was deleted there, or this is another project.

        Raises:
            LoraOpsError: W&B can't be reached.
        """
        with self._talking():
            latest = self._find(AUDIT, "latest")
            if latest is None:
                return None if after.seq else []
            # Anybody may upload a copy of an entry, or move the name `latest`, and newer entries would not be
            # seen. So an entry is where it was seen first, and whoever has not seen it reads the whole log.
            known = self._places.get(after.hash)
            found: list[SentEntry] = []
            newest, listed, held = place_of(latest), -1, False
            # An entry is made by somebody who has read the one before it, so where W&B lists the newest first,
            # what is listed before `after` is all that can continue it.
            listing = self._api().artifacts(AUDIT, self._path(AUDIT), per_page=PAGE)
            for artifact in listing:
                one = read_entry(artifact)
                if one and one.place == known and one.entry.hash == after.hash and one.is_whole:
                    held = True
                if held and listed >= newest:
                    break
                listed = max(listed, place_of(artifact))
                if one:
                    found.append(one)
            else:
                self._places.clear()  # all of it was read
            self._listed = listing
        for one in sorted(found):
            if one.is_whole:
                self._places.setdefault(one.entry.hash, one.place)
        held = held or after.hash in self._places
        return sorted(found) if held or after.seq == 0 else None

    def holds(self, entry: AuditEntry) -> bool:
        """Whether W&B has this entry as it is, and so everything that was sent before it."""
        with self._talking():
            artifact = self._find(AUDIT, entry_alias(entry))
            found = read_entry(artifact) if artifact is not None else None
            return found is not None and found.is_whole and found.entry == entry

    def send(
        self, entry: AuditEntry, parcel: Parcel | None, signature: dict[str, str], public_key: str
    ) -> None:
        """Send one entry: what it uses and brings first, itself last, so that it is there only with all of it.

        Raises:
            LoraOpsError: W&B can't be reached or refuses; sending again goes on where this ended.
        """
        with self._talking(), self._run(entry) as run:
            if parcel and parcel.package:
                self._send_package(run, entry, parcel, parcel.package)
            elif parcel:
                used = self._find_adapter(str(entry.tenant), adapter_alias(parcel.manifest_sha256))
                if used is not None:
                    run.use_artifact(used)
            for path, report in parcel.reports if parcel else ():
                kind = "incident" if report.kind == "incident" else "evaluation"
                artifact = self._artifact(f"{entry.tenant}.{report.kind}", kind, report.model_dump(mode="json"))
                artifact.add_file(str(path), "report", policy="immutable", skip_cache=True)
                self._log(run, artifact, report_alias(report.sha256))
            metadata = metadata_of(entry, signature, public_key)
            artifact = self._artifact(AUDIT, AUDIT, metadata)
            with artifact.new_file("entry.json", encoding="utf-8") as file:
                file.write(entry.to_json())
            self._log_entry(run, artifact, entry)

    def _log_entry(self, run: Any, artifact: Any, entry: AuditEntry) -> None:
        """Log an entry unless it is there; what somebody changed of it at W&B is written again."""
        alias = entry_alias(entry)
        found = self._find(AUDIT, alias)
        one = read_entry(found) if found is not None else None
        if found is not None and (one is None or not one.is_whole):
            found.metadata = artifact.metadata  # its file can't be changed there
            found.save()
        elif one is None or one.entry != entry:  # missing, or the name was moved to another entry
            run.log_artifact(artifact, aliases=[alias]).wait()

    def _send_package(self, run: Any, entry: AuditEntry, parcel: Parcel, package: Path) -> None:
        tenant = str(entry.tenant)
        assert parcel.data is not None
        data = self._artifact(f"{tenant}.data", "dataset", parcel.data.model_dump(mode="json"))
        text = parcel.data.to_json()
        with data.new_file("data.json", encoding="utf-8") as file:
            file.write(text)
        alias = f"data-{sha256_text(text)[:12]}"
        self._log(run, data, alias)
        parent = parcel.parent_manifest_sha256
        for used in (
            self._find(f"{tenant}.data", alias),
            self._find_adapter(tenant, adapter_alias(parent)) if parent else None,
            self._logged_package(tenant, parcel.content),
        ):
            if used is not None:
                run.use_artifact(used)
        adapter = self._artifact(
            adapter_collections(tenant)[0],
            ADAPTER,
            {
                "manifest_sha256": parcel.manifest_sha256,
                "number": entry.number,
                "state": "not registered yet",
                "package": parcel.content,
            },
        )
        adapter.ttl = UNCLAIMED
        adapter.add_dir(str(package), policy="immutable", skip_cache=True)
        self._log(run, adapter, adapter_alias(parcel.manifest_sha256))

    # What people see.

    def show(self, record: AdapterRecord, manifest_sha256: str, head: Head) -> None:
        """Let metadata, tags, aliases, time to live and link of a version say what the log says up to `head`.

        What somebody showed of a later state of the log stays as it is.

        Raises:
            LoraOpsError: W&B can't be reached, or lost the version.
        """
        with self._talking():
            artifact = self._adapter(record, manifest_sha256)
            if artifact.metadata.get("log", [0])[0] <= head.seq:
                artifact.metadata = {
                    **self._origin(record.tenant, artifact.metadata),
                    **record.model_dump(mode="json"),
                    "manifest_sha256": manifest_sha256,
                    "log": list(head),
                    "as_of": now().isoformat(),
                }
                artifact.description = _answer(record)
                artifact.tags = [record.state]
                keep = {"latest", adapter_alias(manifest_sha256)} & set(artifact.aliases)
                artifact.aliases = sorted({*keep, f"version-{record.number}", *record.aliases})
                closed = record.state in ("rejected", "revoked", "archived")
                self._link(artifact, record, closed or record.state == "candidate")
                artifact.ttl = self._ttl(artifact) if record.state == "archived" else None
                artifact.save()

    def _origin(self, tenant: str, metadata: dict[str, Any]) -> dict[str, str]:
        """Return what joins a version to the project of the runs: its package there, and the run that made it.

        The runs may be sent after the version, so whoever shows it next looks again.
        """
        kept = {name: metadata[name] for name in ("package", "run", "run_url") if metadata.get(name)}
        package = self._logged_package(tenant, kept.get("package"))
        maker = package.logged_by() if package is not None and "run" not in kept else None
        if maker is not None:
            kept |= {"run": "/".join(maker.path), "run_url": maker.url}
        return kept

    def _logged_package(self, tenant: str, content: str | None) -> Any:
        if self.runs is None or content is None:
            return None
        entity = self.runs.entity or self._api().default_entity
        return self._look_up(f"{entity}/{self.runs.project}/{tenant}-package:{content}")

    def mark_shown(self, entry: AuditEntry) -> None:
        """Say at W&B that everything which this entry did can be seen.

        Raises:
            LoraOpsError: W&B can't be reached.
        """
        with self._talking():
            told = self._find(AUDIT, entry_alias(entry))
            if told is not None and SHOWN not in told.tags:
                told.tags = [*told.tags, SHOWN]
                told.save()

    def _ttl(self, artifact: Any) -> timedelta:
        # W&B counts from the upload, people from the day that it was archived.
        age = datetime.now(UTC) - datetime.fromisoformat(artifact.created_at).replace(tzinfo=UTC)
        return timedelta(days=age.days + 1 + self.settings.archived_ttl_days)

    def _link(self, artifact: Any, record: AdapterRecord, gone: bool) -> None:
        if self.settings.collection is None:
            return
        target = self.settings.collection.replace("{tenant}", record.tenant)
        if gone:
            for linked in artifact.linked_artifacts:
                if [linked.project, linked.collection.name] == target.split("/")[-2:]:
                    linked.unlink()  # W&B sets no time to live on what is linked
            return
        linked = artifact.link(target, aliases=list(record.aliases))
        wanted = sorted({*({"latest"} & set(linked.aliases)), *record.aliases})
        if sorted(linked.aliases) != wanted:
            linked.aliases = wanted
            linked.save()

    def named(self, tenant: str, alias: str) -> Named | None:
        """What an alias names at W&B, whatever the audit log says.

        Raises:
            LoraOpsError: W&B can't be reached.
        """
        with self._talking():
            found = self._find_adapter(tenant, alias)
        if found is None:
            return None
        sha256 = str(found.metadata.get("manifest_sha256", ""))
        return Named(sha256, f"{tenant}@{found.metadata.get('number', '?')}")

    def name(self, tenant: str, alias: str, manifest_sha256: str | None) -> None:
        """Let an alias name the version with this manifest, or nothing.

        Raises:
            LoraOpsError: W&B can't be reached.
        """
        with self._talking():
            artifact = self._find_adapter(tenant, adapter_alias(manifest_sha256) if manifest_sha256 else alias)
            if artifact is None:
                return
            aliases = set(artifact.aliases)
            artifact.aliases = sorted(aliases | {alias} if manifest_sha256 else aliases - {alias})
            artifact.save()

    # Files.

    def fetch_package(self, tenant: str, manifest_sha256: str, folder: Path) -> None:
        """Download a version's package, manifest and signature into `folder`; nothing of it is checked here.

        Raises:
            LoraOpsError: W&B can't be reached, or has no such version.
        """
        self._fetch(adapter_collections(tenant), adapter_alias(manifest_sha256), folder)

    def fetch_manifest(self, tenant: str, manifest_sha256: str) -> str:
        """The text of a version's manifest, checked against its digest.

        Raises:
            LoraOpsError: W&B can't be reached, has no such version, or its manifest was changed.
        """
        with tempfile.TemporaryDirectory() as folder:
            collections, alias = adapter_collections(tenant), adapter_alias(manifest_sha256)
            self._fetch(collections, alias, Path(folder), "manifest.json")
            path = Path(folder) / "manifest.json"
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if sha256_text(text) != manifest_sha256:
            raise Damaged(f"The manifest of an adapter of {tenant} in W&B ({self.target}) was changed.")
        return text

    def fetch_report(self, tenant: str, report: Evidence, folder: Path) -> None:
        """Download the report of a decision into `folder`.

        Raises:
            LoraOpsError: W&B can't be reached, or has no such report.
        """
        collections = [f"{tenant}{separator}{report.kind}" for separator in (".", "-")]
        self._fetch(collections, report_alias(report.sha256), folder)

    def _fetch(self, collections: Sequence[str], alias: str, folder: Path, prefix: str | None = None) -> None:
        with self._talking():
            artifact = self._find_first(collections, alias)
            if artifact is None:
                name = f"{collections[0]}:{alias}"
                raise Damaged(f"W&B has no {name} in {self.target}: it was deleted there.")
            artifact.download(root=str(folder), path_prefix=prefix, skip_cache=True)

    def _adapter(self, record: AdapterRecord, manifest_sha256: str) -> Any:
        artifact = self._find_adapter(record.tenant, adapter_alias(manifest_sha256))
        if artifact is None:
            raise Damaged(f"W&B has lost {record.id} ({self.target}): it was deleted there.")
        return artifact

    def _find_adapter(self, tenant: str, alias: str) -> Any:
        return self._find_first(adapter_collections(tenant), alias, ADAPTER)


def _answer(record: AdapterRecord) -> str:
    verdict = record.verdict
    may = "may serve" if verdict.may_serve else "may NOT serve"
    because = "; ".join([*verdict.reasons, *verdict.warnings]) or "fresh, signed, in a serving stage"
    return f"{record.id} is '{record.state}' and {may}, as of {now().isoformat()}: {because}."


def adapter_collections(tenant: str) -> list[str]:
    """Return where a tenant's versions are, the place that new ones go to first.

    An ordinary tenant has one place, under its own name. A tenant from before names were reserved may have the
    name of a collection that holds something else.
    """
    try:
        refuse_reserved_name(tenant)
    except ValueError:
        return [f"{tenant}.adapter", tenant]
    return [tenant]


def adapter_alias(manifest_sha256: str) -> str:
    """What names a package before W&B's other names are trusted: the digest of its manifest."""
    return f"manifest-{manifest_sha256[:12]}"


def report_alias(sha256: str) -> str:
    """What names a report: its digest."""
    return f"report-{sha256[:12]}"


def entry_alias(entry: AuditEntry) -> str:
    """What names an entry of the audit log: its hash."""
    return f"entry-{entry.hash[:12]}"

"""Which versions' weights may go to the archive, and the run that moves them.

A version may go where nothing needs it (needed.py), its team does not keep it by hand, and neither a request
nor an entry of the log named it for so many days. Where nobody knows what was asked, nothing goes.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from lora_ops.costs.last_asked import Asked, keep_asked, read_asked
from lora_ops.costs.needed import needed_reason, returns_reason
from lora_ops.errors import Damaged, Refused, Unavailable
from lora_ops.named_paths import follow
from lora_ops.processes import only_one
from lora_ops.records.archive import ArchivedFile
from lora_ops.registry.archived_files import ARCHIVED, Archived, archived
from lora_ops.registry.archived_weights import (
    FOLDER,
    bring_back,
    check_archived,
    forget_copy,
    record_archived,
    remove_original,
    send_weights,
    weights_of,
)
from lora_ops.registry.backup_place import Place, refuse_no_place
from lora_ops.registry.demo import require_no_demo
from lora_ops.registry.roles import MAY, require_role
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.archive import ArchiveSettings
from lora_ops.weight_compression import Codec

GRACE_SECONDS = 3600.0
"""An original that was kept or brought back so lately stays: whoever did that may not have used it yet."""
LOCK = "archive.lock"
Stays = Callable[[Version], str | None]
"""Returns why a version stays, or None."""


class Candidate(NamedTuple):
    """One version that is not in the archive, as a run sees it.

    Attributes:
        version: such as `finance@3`.
        state: of it.
        bytes: of its weights.
        used: when a request or an entry of the log named it last.
        stays: why it stays, to be said after its name; None where its weights may go.
    """

    version: str
    state: str
    bytes: int
    used: datetime
    stays: str | None


@dataclass
class Run:
    """What a run found, and what it did.

    Attributes:
        store: where archived files are.
        candidates: every version with weights here, oldest first.
        away: versions whose weights are in the archive already.
        moved: versions whose weights this run archived.
        removed: bytes that went here.
        stored: bytes that were written to the archive for `moved`; equal files are written once.
        notes: what a reader must know, a sentence each.
    """

    store: str
    candidates: list[Candidate]
    away: list[str]
    moved: list[str] = field(default_factory=list)
    removed: int = 0
    stored: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def may_go(self) -> list[Candidate]:
        """The versions whose weights may go."""
        return [one for one in self.candidates if one.stays is None]


def find(registry: Registry, settings: ArchiveSettings, root: Path, asked: Asked, now: datetime) -> Run:
    """Return which versions' weights may go, and why the others stay; nothing is changed.

    Args:
        registry: where.
        settings: `archive` of params.yaml.
        root: of the repository.
        asked: what is known of requests.
        now: by this machine's clock.

    Raises:
        LoraOpsError: the registry can't be read.
    """
    away = archived(registry)
    rule = Rule(registry, settings, asked, now)
    found: dict[Candidate, str] = {}
    versions = list(registry.versions())
    for version in versions:
        weights = weights_of(version)
        if weights and version.id not in away:
            candidate = Candidate(
                version.id, version.state, weights[1], rule.used(version), rule.stays(version)
            )
            found[candidate] = weights[0]
    run = Run(store_url(settings, root), list(_with_twins(found)), sorted(away))
    run.notes += _kept_in_vain(registry, settings, away, {version.id for version in versions})
    if asked.since > rule.before:
        run.notes.append(
            f"requests are known since {asked.since:%Y-%m-%d %H:%M} UTC, and {settings.days} days are asked "
            f"for: nothing goes before {asked.since + timedelta(days=settings.days):%Y-%m-%d}"
        )
    return run


def archive_unused(
    registry: Registry,
    settings: ArchiveSettings,
    root: Path,
    serving: Path,
    keep_days: int,
    now: datetime,
    *,
    actor: str,
    reason: str,
    dry_run: bool = True,
) -> Run:
    """Find what may go; unless it is a dry run, archive it, and end what a killed run began.

    What is known of requests is kept for the next run in both cases.

    Args:
        registry: where.
        settings: `archive` of params.yaml.
        root: of the repository.
        serving: `.serving` of its gateways.
        keep_days: for how long they keep events.
        now: by this machine's clock.
        actor: who does it; an operator or approver.
        reason: why, for the audit log.
        dry_run: change nothing in the registry.

    Raises:
        LoraOpsError: the store is no place for an archive.
        Refused: the registry is at W&B or of a demo, the actor has no role for it, or this machine's clock
            seems to be ahead.
        Damaged: the registry can't be trusted.
        Unavailable: the archive or the disk can't be used, or another run is at work; what was moved before
            stays moved.
    """
    if registry.shares_log:
        raise Refused(
            "The files of this registry are at W&B, and this machine's are a copy: nothing is archived here. "
            "Give the artifacts there a time to live."
        )
    refuse_no_place(registry.path, store_url(settings, root), "an archive")
    last = registry.log.last_time()
    asked, notes = read_asked(serving, keep_days, now, datetime.fromisoformat(last) if last else None)
    unkept = keep_asked(serving, asked)
    notes += [unkept] if unkept else []
    if dry_run:
        run = find(registry, settings, root, asked, now)
        wanted = [
            f"{one} is in the archive, and {why}: `--yes` brings it back" for one, why in _wanted(registry)
        ]
        run.notes = notes + run.notes + wanted
        return run
    require_no_demo(registry, "archived")
    problem = registry.follower.problem() or registry.holds.unreadable() or registry.stops.unreadable()
    if problem:
        raise Damaged(f"The registry can't be trusted, so nothing is archived: {problem}.")
    with only_one(registry.path / LOCK, f"archiving weights of {registry.path}"):
        run = find(registry, settings, root, asked, now)
        run.notes = notes + run.notes
        place = Place(run.store)
        place.sweep(FOLDER)
        stays = Rule(registry, settings, asked, now).stays
        _end_earlier(registry, run, stays, actor)
        refused = None
        for one in run.may_go:
            try:
                _archive_one(
                    registry, run, one.version, place, settings.codec, stays, actor=actor, reason=reason
                )
            except (Damaged, Refused) as error:  # of this version; the others may go
                run.notes.append(f"{one.version} stays: {str(error).rstrip('.')}")
                refused = refused or error
        if refused and not run.moved:
            raise refused
        for file in {one.file for one in archived(registry).values() if one.version in run.moved}:
            _remove(registry, run, file, stays)
    return run


def _kept_in_vain(
    registry: Registry, settings: ArchiveSettings, away: Mapping[str, Archived], known: Set[str]
) -> Iterator[str]:
    """Yield a sentence for each name in `archive.keep` that keeps nothing here."""
    for name in sorted(settings.keep):
        if name not in known:
            yield f"archive.keep of params.yaml names {name}, and the registry has no such version"
        elif name in away and not registry.files.holds(away[name].file.sha256):
            yield (
                f"{name} is named by archive.keep of params.yaml, and is in the archive already: "
                f"`lora-ops archive restore {name}` brings it back"
            )


def store_url(settings: ArchiveSettings, root: Path) -> str:
    """Return where the archive is: a folder as an absolute path, since a command may run anywhere.

    Raises:
        LoraOpsError: its symlinks lead in a circle.
    """
    if "://" in settings.store:
        return settings.store
    return str(follow(root / settings.store, "archive.store"))


def check_all(registry: Registry) -> Iterator[tuple[str, str | None]]:
    """Read every archived file where it is; yield each version with what is wrong, or None.

    Raises:
        Unavailable: a place can't be reached.
    """
    for one in archived(registry).values():
        try:
            check_archived(one)
        except Damaged as error:
            yield one.version, str(error).rstrip(".")
        else:
            yield one.version, None


class Rule:
    """Says which version stays, and why.

    Args:
        registry: where.
        settings: `archive` of params.yaml.
        asked: what is known of requests.
        now: by this machine's clock.
    """

    def __init__(self, registry: Registry, settings: ArchiveSettings, asked: Asked, now: datetime) -> None:
        self._registry = registry
        self._settings = settings
        self._asked = asked
        self.before = now - timedelta(days=settings.days)

    def used(self, version: Version) -> datetime:
        """Return when a request or the log named a version last; at least its registration did.

        That it was archived is no use of it; that it was brought back is one.
        """
        entries = self._registry.log.about(version.tenant, version.number)
        moments = [datetime.fromisoformat(one.at) for one in entries if one.action != ARCHIVED]
        moments.append(datetime.fromisoformat(version.registered_at))
        if version.id in self._asked.times:
            moments.append(self._asked.times[version.id])
        return max(moment.astimezone(UTC) for moment in moments)

    def stays(self, version: Version) -> str | None:
        """Return why a version stays, to be said after its name, or None."""
        if version.id in self._settings.keep:
            return "is named by archive.keep of params.yaml"
        if self._registry.log.weights_digest(version.id) is None:
            # Its twins are known by its file alone, so a closed one could come back under another name.
            return "is of an earlier release, whose log does not state its tensors"
        needed = needed_reason(self._registry, version)
        if needed:
            return needed
        used = self.used(version)
        if used > self.before:
            return f"was used on {used:%Y-%m-%d}"
        if self._asked.since > self.before:
            return f"may have been asked for before {self._asked.since:%Y-%m-%d}, which nobody knows"
        return None


def _with_twins(found: dict[Candidate, str]) -> Iterator[Candidate]:
    """Let a version stay that shares its file with another one that stays: nothing would become free.

    Args:
        found: each candidate, with the digest of its file.
    """
    needed = {digest: one for one, digest in found.items() if one.stays}
    for one, digest in found.items():
        other = needed.get(digest)
        if other and one.stays is None:
            one = one._replace(stays=f"has the same file as {other.version}, which {other.stays}")
        yield one


def _archive_one(
    registry: Registry,
    run: Run,
    reference: str,
    place: Place,
    codec: Codec,
    stays: Stays,
    *,
    actor: str,
    reason: str,
) -> None:
    version = registry.get_exact(reference)
    # Nothing is sent for somebody who may not archive it.
    require_role(registry, version, actor, MAY["archived"], f"archive the weights of {version.id}")
    known = {one.file.sha256 for one in archived(registry).values()}
    file = send_weights(registry, version, place, codec)
    record_archived(registry, reference, file, actor=actor, reason=reason, needed=stays)
    run.moved.append(reference)
    run.stored += 0 if file.sha256 in known else file.stored_bytes


def _end_earlier(registry: Registry, run: Run, stays: Stays, actor: str) -> None:
    """End what a killed run began: an original that the log calls archived goes, or stays with an entry.

    A request may have brought a file back where the log took no entry: that version was used, so it stays.
    """
    for version, needed in _wanted(registry):
        try:
            bring_back(registry, version, actor=actor, reason=f"the version {needed}")
            run.notes.append(f"{version} is no more archived: it {needed}")
        except (Damaged, Unavailable, Refused) as error:
            run.notes.append(f"{version} {needed}, and is in the archive alone: {str(error).rstrip('.')}")
    for one in archived(registry).values():
        if not registry.files.holds(one.file.sha256):
            forget_copy(registry, one.version)
            continue
        why = stays(registry.get_exact(one.version))
        try:
            if why:
                bring_back(registry, one.version, actor=actor, reason=f"the version {why}")
                run.notes.append(f"{one.version} is no more archived: it {why}")
                continue
            check_archived(one)
        except (Damaged, Unavailable) as error:
            run.notes.append(f"{one.version} keeps its weights here: {str(error).rstrip('.')}")
            continue
        _remove(registry, run, one.file, stays)


def _wanted(registry: Registry) -> list[tuple[str, str]]:
    """Return the archived versions that a rollback would bring back by now, each with the words for it.

    Another version was to return when they went. It was closed, stopped or has expired since.
    """
    found = []
    for one in archived(registry).values():
        why = returns_reason(registry, registry.get_exact(one.version))
        if why and not registry.files.holds(one.file.sha256):
            found.append((one.version, why))
    return found


def _remove(registry: Registry, run: Run, file: ArchivedFile, stays: Stays) -> None:
    if remove_original(registry, file.sha256, stays, GRACE_SECONDS):
        run.removed += file.bytes
    elif registry.files.holds(file.sha256):
        run.notes.append(
            f"the file {file.sha256[:12]}… is archived and stays here, too: it was kept or brought back "
            "within the last hour, or a version that has it is needed. The next run looks again"
        )

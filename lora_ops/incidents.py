"""Going back to the version that served before: who may, whom to tell, what to capture, what remains."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx

from lora_ops.errors import LoraOpsError
from lora_ops.records import IncidentRecord, sha256_file
from lora_ops.registry import Registry, Version, lifecycle
from lora_ops.registry.owners import Team
from lora_ops.registry.store import utc

DASHBOARDS = {"console.json": "/console/data", "metrics.txt": "/metrics", "models.json": "/v1/models"}
RECORD = "incident.json"


class Rollback(NamedTuple):
    """What a rollback does, before it is done."""

    leaves: Version
    returns: Version
    done_already: bool


def plan(registry: Registry, reference: str) -> Rollback:
    """What must happen so that `reference` no longer answers and the version before it does.

    The version that returns is the one that was in production last before it, unless that one has expired,
    was closed, or its files or signature are no longer what they were; then the one before that.

    Args:
        registry: where.
        reference: the exact version that must go (`finance@2`): a second run must not take back the version
            that the first one restored.

    Raises:
        LoraOpsError: it is not in production, or there is no version to go back to.
    """
    leaves = registry.get(reference)
    if reference != leaves.id:
        raise LoraOpsError(f"Name the exact version that must go ({leaves.id}): an alias may move meanwhile.")
    serving = registry.named(leaves.tenant, "production")
    returned = serving is not None and serving < leaves.number and leaves.state in ("superseded", "revoked")
    if returned:
        return Rollback(leaves, registry.get(f"{leaves.tenant}@{serving}"), done_already=True)
    if serving is not None and serving != leaves.number:
        raise LoraOpsError(
            f"{leaves.id} is '{leaves.state}': {leaves.tenant}@{serving} is in production, so there is nothing "
            "to roll back."
        )
    if serving is None and "production" not in _stages(registry, leaves):
        raise LoraOpsError(f"{leaves.id} is '{leaves.state}' and was never in production.")
    return Rollback(leaves, _before(registry, leaves), done_already=False)


def roll_back(registry: Registry, reference: str, record: Path, *, actor: str, reason: str) -> Version:
    """Put the version before `reference` back into production and revoke `reference`; twice is once.

    Args:
        registry: where.
        reference: the exact version that must go.
        record: the incident's record, which both decisions rest on.
        actor: who does it.
        reason: why.

    Raises:
        LoraOpsError: as `plan`, or the registry refuses one of the two steps; what was done stays done.
    """
    rollback = plan(registry, reference)
    incident = registry.keep("incident", record, reason)
    if not rollback.done_already:
        lifecycle.promote(
            registry, rollback.returns.id, "production", actor=actor, reason=reason, evidence=[incident]
        )
    if registry.get(reference).state != "revoked":
        lifecycle.revoke(registry, reference, actor=actor, reason=reason, evidence=[incident])
    return registry.get(rollback.returns.id)


def owners(registry: Registry, tenant: str) -> Team:
    """Who answers for a tenant, and whom to tell, in the order of escalation.

    Raises:
        LoraOpsError: there is no owners.yaml.
    """
    if registry.owners is None:
        raise LoraOpsError("There is no owners.yaml beside params.yaml: it says whom to tell.")
    return registry.owners.team(tenant)


def new_folder(root: Path, tenant: str, at: datetime) -> Path:
    """Where the record of an incident that begins at `at` goes; nothing is made yet."""
    return root / "reports" / "incidents" / f"{at.astimezone(UTC):%Y-%m-%dT%H-%M-%S}-{tenant}"


def capture(gateway: str, folder: Path, key: str | None = None, seconds: float = 10) -> dict[str, str]:
    """Keep what the gateway's dashboards show now; the digest of each file, by name.

    Args:
        gateway: its address, such as http://localhost:8000.
        folder: where the files go.
        key: an API key with the role `monitor` or `admin`, where the gateway asks for one.
        seconds: how long one answer may take.

    Raises:
        LoraOpsError: the gateway doesn't answer, or refuses. An incident must not wait for it: say so in the
            record and go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=gateway, headers=headers, timeout=seconds) as client:
        for name, path in DASHBOARDS.items():
            try:
                answer = client.get(path).raise_for_status()
            except httpx.HTTPError as error:
                raise LoraOpsError(f"{gateway}{path} could not be captured ({error}).") from error
            (folder / name).write_bytes(answer.content)
            kept[name] = sha256_file(folder / name)
    return kept


def write_record(
    registry: Registry,
    rollback: Rollback,
    folder: Path,
    *,
    actor: str,
    reason: str,
    captured: dict[str, str],
    not_captured: str | None = None,
) -> Path:
    """Write what happened, who decided, whom to tell and what was captured; the path of the record.

    Raises:
        LoraOpsError: no reason, or no owners.yaml.
    """
    if not reason.strip():
        raise LoraOpsError("Say why: an incident's record needs a reason.")
    team = owners(registry, rollback.leaves.tenant)
    record = IncidentRecord(
        tenant=rollback.leaves.tenant,
        at=registry.clock(),
        actor=actor,
        reason=reason,
        leaves=rollback.leaves.id,
        returns=rollback.returns.id,
        tell=[*team.contacts, *team.escalation],
        captured=captured,
        not_captured=not_captured,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def _stages(registry: Registry, version: Version) -> list[str]:
    return [entry.action for entry in registry.history(version.id) if entry.number == version.number]


def _before(registry: Registry, leaves: Version) -> Version:
    """The last version in production that may answer again."""
    served = [
        entry.number
        for entry in registry.log.entries(leaves.tenant)
        if entry.action == "production" and entry.number != leaves.number
    ]
    refused = []
    for number in dict.fromkeys(reversed(served)):
        version = registry.get(f"{leaves.tenant}@{number}")
        if version.state != "superseded":
            refused.append(f"{version.id} is '{version.state}'")
        elif version.summary.fresh_until <= utc(registry.clock()):
            refused.append(f"{version.id} expired on {version.summary.fresh_until[:10]}")
        else:
            try:
                registry.check_kept(version)
            except LoraOpsError as error:
                refused.append(str(error).rstrip("."))
                continue
            return version
    why = "; ".join(refused) or "no other version was in production before"
    raise LoraOpsError(
        f"There is no version to go back to from {leaves.id}: {why}. To stop its answers all the same: "
        f"lora-ops registry revoke {leaves.id} --reason ..."
    )

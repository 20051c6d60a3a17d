"""The record of an incident: whom to tell, what the dashboards show, and what a rollback did."""

import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.free_text import require_text
from lora_ops.hashing import sha256_file
from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import IncidentRecord
from lora_ops.registry import closing, lifecycle, reports
from lora_ops.registry.roles import owners_of
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import answering_notes
from lora_ops.registry.versions import CLOSED, Version
from lora_ops.rollout.rollback import Rollback, half_done, plan, roll_back
from lora_ops.small_files import parse_json

DASHBOARDS = {"console.json": "/console/data", "metrics.txt": "/metrics", "models.json": "/v1/models"}
RECORD = "incident.json"
ROOM = 2**16
"""Bytes that a folder must take to be the one of an incident."""
LARGEST_DASHBOARD = 64 * 2**20

logger = logging.getLogger(__name__)


class Taken(NamedTuple):
    """A rollback whose route has changed.

    Attributes:
        leaves: the version that went, as it was before.
        returned: the one in its place; where the log took nothing yet, the one that is to return.
        folder: of the record.
        not_sent: why the log did not take it yet, or None.
    """

    leaves: Version
    returned: Version
    folder: Path
    not_sent: str | None


def new_folder(root: Path, tenant: str, at: datetime) -> Path:
    """Where the record of an incident that begins at `at` goes; nothing is made yet."""
    return root / "reports" / "incidents" / f"{at.astimezone(UTC):%Y-%m-%dT%H-%M-%S}-{tenant}"


def capture(gateway: str, folder: Path, key: str | None = None, seconds: float = 10) -> dict[str, str]:
    """Keep what the gateway's dashboards show now; the digest of each file, by name.

    Args:
        gateway: its address, such as http://localhost:8000.
        folder: where the files go.
        key: an API key with the role `monitor` or `admin`, where the gateway asks for one.
        seconds: how long each of the dashboards may take.

    Raises:
        LoraOpsError: the gateway doesn't answer, or refuses. An incident must not wait for it: say so in the
            record and go on.
    """
    try:
        from anyio.from_thread import start_blocking_portal

        folder.mkdir(parents=True, exist_ok=True)
        # A thread has an event loop of its own; the notebook that asks has one that runs already.
        with start_blocking_portal() as portal:
            answers = portal.call(_dashboards, gateway, key, seconds)
        for name, content in answers.items():
            (folder / name).write_bytes(content)
        return {name: sha256_file(folder / name) for name in answers}
    # Whatever it is, it must not keep a bad version on air. A key that is not ASCII is a ValueError, a port of
    # 99999 an OverflowError, a SOCKS proxy in the environment or a package that is missing an ImportError.
    except Exception as error:
        reason = _reason(error)
        raise Unavailable(
            f"The dashboards of {gateway} could not be captured ({reason}): `--gateway` names another address."
        ) from error


def _reason(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):  # of tasks, one of which failed
        error = error.exceptions[0]
    return str(error).rstrip(".") or type(error).__name__


async def _dashboards(gateway: str, key: str | None, seconds: float) -> dict[str, bytes]:
    """Return what each dashboard shows.

    httpx's own timeout is for each read: a gateway that sends a byte now and then, in a header or in the body,
    would be waited for without end.

    Raises:
        OSError: it takes longer than `seconds`, or is larger than anything that a gateway shows.
        httpx.HTTPError: it doesn't answer, or refuses.
    """
    import asyncio

    import httpx

    headers = {"authorization": f"Bearer {key}"} if key else {}
    found: dict[str, bytes] = {}
    async with httpx.AsyncClient(base_url=gateway, headers=headers, timeout=seconds) as client:
        for name, path in DASHBOARDS.items():
            body = bytearray()
            try:
                async with asyncio.timeout(seconds), client.stream("GET", path) as answer:
                    answer.raise_for_status()
                    async for part in answer.aiter_bytes():
                        body += part
                        if len(body) > LARGEST_DASHBOARD:
                            raise OSError(f"{path} is larger than {LARGEST_DASHBOARD} bytes")
            except TimeoutError as error:
                raise TimeoutError(f"{path} did not end in time") from error
            found[name] = bytes(body)
    return found


def take_back(
    registry: Registry, reference: str, folder: Path, *, to: str | None = None, actor: str, reason: str
) -> Taken:
    """Put the version before `reference` back at once; `complete` captures and records later.

    A bad version answers until this has ended, so nothing here waits for a gateway, a kernel or a page. The
    next run of the same command ends one that was killed after it.

    Args:
        registry: where.
        reference: the exact version that must go.
        folder: where the record goes.
        to: the exact version that must return; default: the last one that may.
        actor: who does it.
        reason: why.

    Raises:
        LoraOpsError: as `plan`, `write_record` and `roll_back`.
    """
    planned = plan(registry, reference, to)
    folder = _writable(folder)
    record = write_record(registry, planned, folder, actor=actor, reason=reason, captured={}, is_complete=False)
    returned = roll_back(registry, reference, record, actor=actor, reason=reason, planned=planned)
    return Taken(planned.leaves, returned, folder, registry.not_sent)


def complete(
    registry: Registry,
    reference: str,
    folder: Path,
    *,
    gateway: str,
    key: str | None,
    actor: str,
    reason: str,
    has_page: bool = True,
) -> IncidentRecord:
    """Ask the gateway who answers after a rollback, keep what its dashboards show, and file the whole record.

    The first run files it on the version that left, with whatever could be captured. A later one changes
    nothing in the registry.

    Args:
        registry: where.
        reference: the exact version that left.
        folder: where the record and what is captured go.
        gateway: whose dashboards are captured; one that doesn't answer holds up nothing.
        key: an API key for that.
        actor: who does it.
        reason: why.
        has_page: whether the runbook does it.

    Raises:
        LoraOpsError: the registry takes no entry, or as `plan` and `write_record`.
    """
    planned, captured, not_captured, answers = plan(registry, reference), dict[str, str](), None, None
    try:
        captured = capture(gateway, folder, key)
        answers = _answering(folder, planned.leaves.tenant)
    except LoraOpsError as error:
        not_captured = str(error)
    path = write_record(
        registry,
        planned,
        folder,
        actor=actor,
        reason=reason,
        captured=captured,
        not_captured=not_captured,
        has_page=has_page,
        answers=answers,
    )
    # While the log has not taken the revocation, the same command ends both later.
    if planned.done_already and planned.leaves.state in CLOSED and not _is_recorded(registry, planned.leaves):
        report = reports.make(registry, reference, "incident", path, reason)
        said = f"rolled back: {reason}"
        lifecycle.link_incident(registry, reference, actor=actor, reason=said, evidence=[report])
    return IncidentRecord.model_validate_json(path.read_bytes())


def wrong_answer(record: IncidentRecord, gateway: str) -> str | None:
    """Return what is wrong where a gateway does not answer by the version that returned, or None."""
    if record.not_captured or record.answers == record.returns:
        return None
    return (
        f"{record.returns} is in production again, and {gateway} answers '{record.tenant}' by "
        f"{record.answers or 'nobody'}: look whether that gateway serves this registry and what its /ready "
        "says, restart it, or name another one (--gateway); then run the same command again"
    )


def _answering(folder: Path, tenant: str) -> str | None:
    """Return who answers a tenant by the console that was captured, or None where nobody does.

    Raises:
        LoraOpsError: it is not what a gateway of lora-ops shows.
    """
    try:
        rows = parse_json((folder / "console.json").read_text(encoding="utf-8"))["tenants"]
        return next((row["serving"] for row in rows if row["tenant"] == tenant), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable("What was captured is no console of lora-ops: `--gateway` names another.") from error


def _is_recorded(registry: Registry, leaves: Version) -> bool:
    """Return whether the whole record of a rollback was filed after its version was revoked."""
    entries = registry.log.entries(leaves.tenant, leaves.number)
    revoked = max((entry.seq for entry in entries if entry.action == "revoked"), default=0)
    later = (one for entry in entries if entry.seq > revoked for one in entry.evidence)
    return any(one.kind == "incident" and _is_complete(registry, one) for one in later)


def _is_complete(registry: Registry, incident: Evidence) -> bool:
    try:
        text = registry.files.checked(incident.source_sha256 or incident.sha256, RECORD).read_bytes()
        return IncidentRecord.model_validate_json(text).is_complete
    except (LoraOpsError, OSError, ValueError):  # a person's report, or one that is lost
        return False


def _writable(folder: Path) -> Path:
    """Make the folder of an incident, elsewhere where it can't be: a bad version must not wait for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" " * ROOM)
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="lora-ops-incident-"))
        logger.warning(
            "%s can't be written (%s): the record of the incident is in %s, and the registry keeps it.",
            folder,
            disk_reason(error),
            elsewhere,
        )
        return elsewhere
    return folder


def write_record(
    registry: Registry,
    rollback: Rollback,
    folder: Path,
    *,
    actor: str,
    reason: str,
    captured: dict[str, str],
    not_captured: str | None = None,
    has_page: bool = True,
    is_complete: bool = True,
    answers: str | None = None,
) -> Path:
    """Write what happened, who decided, whom to tell and what was captured; the path of the record.

    Raises:
        LoraOpsError: no reason, or no owners.yaml.
    """
    require_text(reason, "Say why (--reason)")
    team = owners_of(registry, rollback.leaves.tenant)
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
        has_page=has_page,
        is_complete=is_complete,
        answers=answers,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def summary(
    registry: Registry, reference: str, folder: Path, *, done: bool, to: str | None = None
) -> dict[str, Any]:
    """Return what a run of the runbook says for people, as facts for programs.

    Args:
        registry: as it is after the run.
        reference: the exact version that must go.
        folder: of the record.
        done: whether the run was confirmed; else it shows what would happen.
        to: the exact version that must return.

    Raises:
        LoraOpsError: as `plan`.
    """
    rollback, path = plan(registry, reference, to), folder / RECORD
    written = IncidentRecord.model_validate_json(path.read_bytes()) if path.is_file() else None
    hold = registry.stop_of(rollback.leaves.summary)
    if hold and closing.is_in_log(registry, hold):
        hold = None
    return {
        "version": rollback.leaves.id,
        "returns": rollback.returns.id,
        "done": done and hold is None,
        "returned": rollback.done_already,
        "held": hold.facts if hold else None,
        "record": str(path) if written else None,
        "not_captured": written.not_captured if written else None,
        "answers": written.answers if written else None,
        "notes": [*rollback.notes, *(answering_notes(registry, rollback.leaves.summary) if done else ())],
        "head_remembered": registry.unremembered() is None,
    }


def problem_of(registry: Registry, told: dict[str, Any], not_sent: str | None, *, gateway: str) -> str | None:
    """Return what must be mended after a rollback that was confirmed, without its full stop, or None.

    Args:
        registry: as it is after the run.
        told: its `summary`.
        not_sent: why the log did not take the revocation, where that is known.
        gateway: who was asked.
    """
    if told["held"]:
        return half_done(
            told["version"],
            told["returns"],
            not_sent,
            returned=told["returned"],
            shares_log=registry.shares_log,
        )
    record = told["record"]
    written = IncidentRecord.model_validate_json(Path(record).read_bytes()) if record else None
    return wrong_answer(written, gateway) if written and told["returned"] else None

"""The record of an incident: whom to tell, what the dashboards show, and what a rollback did."""

import asyncio
import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.free_text import require_text
from lora_ops.hashing import sha256_file
from lora_ops.records.registry import IncidentRecord
from lora_ops.registry import closing
from lora_ops.registry.roles import owners_of
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import answering_notes
from lora_ops.registry.versions import Version
from lora_ops.rollout.rollback import Rollback, plan, roll_back

DASHBOARDS = {"console.json": "/console/data", "metrics.txt": "/metrics", "models.json": "/v1/models"}
RECORD = "incident.json"
ROOM = 2**16
"""Bytes that a folder must take to be the one of an incident."""
LARGEST_DASHBOARD = 64 * 2**20

logger = logging.getLogger(__name__)


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
            answers = portal.call(_answers, gateway, key, seconds)
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


async def _answers(gateway: str, key: str | None, seconds: float) -> dict[str, bytes]:
    """Return what each dashboard shows.

    httpx's own timeout is for each read: a gateway that sends a byte now and then, in a header or in the body,
    would be waited for without end.

    Raises:
        OSError: it takes longer than `seconds`, or is larger than anything that a gateway shows.
        httpx.HTTPError: it doesn't answer, or refuses.
    """
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


def capture_and_roll_back(
    registry: Registry, reference: str, folder: Path, *, gateway: str, key: str | None, actor: str, reason: str
) -> Version:
    """Take the steps of runbooks/rollback.ipynb without it; the record says that there is no page.

    Args:
        registry: where.
        reference: the exact version that must go.
        folder: where the record and what is captured go.
        gateway: whose dashboards are captured; one that doesn't answer holds up nothing.
        key: an API key for that.
        actor: who does it.
        reason: why.

    Raises:
        LoraOpsError: as `plan`, `write_record` and `roll_back`.
    """
    rollback, captured, not_captured = plan(registry, reference), dict[str, str](), None
    folder = _writable(folder)
    try:
        captured = capture(gateway, folder, key)
    except LoraOpsError as error:
        not_captured = str(error)
    record = write_record(
        registry,
        rollback,
        folder,
        actor=actor,
        reason=reason,
        captured=captured,
        not_captured=not_captured,
        has_page=False,
    )
    return roll_back(registry, reference, record, actor=actor, reason=reason)


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
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    path.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def summary(registry: Registry, reference: str, folder: Path, *, done: bool) -> dict[str, Any]:
    """Return what a run of the runbook says for people, as facts for programs.

    Args:
        registry: as it is after the run.
        reference: the exact version that must go.
        folder: of the record.
        done: whether the run was confirmed; else it shows what would happen.

    Raises:
        LoraOpsError: as `plan`.
    """
    rollback, path = plan(registry, reference), folder / RECORD
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
        "notes": [*rollback.notes, *(answering_notes(registry, rollback.leaves.summary) if done else ())],
        "head_remembered": registry.unremembered() is None,
    }

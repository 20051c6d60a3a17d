"""What every step of a version does: its reason is asked for, its evidence kept, its entry written."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from lora_ops.errors import Refused, Unavailable, disk_reason
from lora_ops.hashing import sha256_text
from lora_ops.records.evidence import Evidence
from lora_ops.records.record import Record
from lora_ops.records.registry import State
from lora_ops.registry.changes import Change, require_reason
from lora_ops.registry.reports import Report
from lora_ops.registry.requirements import ways_from
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

Mark = TypeVar("Mark", bound=Record)


def require_step(version: Version, to: State, reason: str) -> None:
    """Refuse a step that the rules don't have, and one without a reason.

    Raises:
        LoraOpsError: there is no way to `to`, or the reason says nothing.
    """
    steps = ways_from(version.state)
    if to not in steps:
        ways = ", ".join(steps) if steps else "none"
        raise Refused(f"{version.id} is '{version.state}': it can't become '{to}' (ways from here: {ways}).")
    require_reason(reason)


def keep_reports(registry: Registry, given: Sequence[Report]) -> list[Evidence]:
    """Keep reports once everything was checked, so that a refusal leaves no file behind.

    Raises:
        Unavailable: the disk can't be written.
    """
    try:
        return [one.keep(registry.files) for one in given]
    except OSError as error:
        raise Unavailable(
            f"The evidence can't be kept in {registry.path} ({disk_reason(error)}): nothing was changed."
        ) from error


def record_step(
    registry: Registry,
    change: Change,
    version: Version,
    action: str,
    reason: str,
    evidence: Sequence[Evidence],
    **more: Any,
) -> None:
    """Write the entry, which owners.yaml allowed it, and what the settings asked for."""
    assert registry.owners is not None
    change.record(
        action,
        version.tenant,
        version.number,
        reason=reason,
        evidence=[one.model_dump(exclude_none=True) for one in evidence],
        owners_sha256=sha256_text(registry.owners.text),
        rules={
            "approvals": registry.approvals,
            "least": registry.least.model_dump(mode="json"),
            "twins": True,  # what was said of the same weights counts
            "policies": True,  # and so is one by the same prompts and budgets
            "suites": True,  # an earlier report that did not pass is answered by the same cases
            "opponents": True,  # people judge half of the plan, against the base or what was in production
            "incidents": True,  # one that was told after an approval makes it void
            "authors": True,  # whoever was named as the author once approves nothing
        },
        **more,
    )


def marks_of(
    registry: Registry, version: Version, action: str, name: str, kind: type[Mark]
) -> Iterator[tuple[str, Mark]]:
    """Yield the time and the mark of each entry about a version by which a program knows its own.

    Args:
        registry: where.
        version: which.
        action: of the entry.
        name: of the mark in its body.
        kind: what the mark is; one that a newer release wrote otherwise is left out.
    """
    for entry in registry.log.entries(version.tenant, version.number):
        if entry.number == version.number and entry.action == action and name in entry.body:
            with suppress(ValueError):
                yield entry.at, kind.model_validate(entry.body[name])

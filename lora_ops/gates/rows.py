"""One gate of a version, as tables and pages show it."""

from typing import Literal, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.regression import Verdict
from lora_ops.registry.reports import Report, filed
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

RowVerdict = Verdict | Literal["not applicable"]
"""What does not apply passes nothing and stops nothing."""


class GateRow(NamedTuple):
    """One gate: what it found, by which threshold, and the digest of what that rests on.

    Attributes:
        gate: its name.
        verdict: pass, fail, undecided, missing or not applicable.
        found: the number with its interval, in words.
        threshold: what it must reach.
        evidence: SHA-256 of the document; None where there is none.
        more_rows: rows that would decide; only where it is undecided, and None where no number would.
        note: what to know or to do.
    """

    gate: str
    verdict: RowVerdict
    found: str = ""
    threshold: str = ""
    evidence: str | None = None
    more_rows: int | None = None
    note: str = ""


class Made(NamedTuple):
    """What came of making a report that is not filed yet.

    Attributes:
        report: None where none can be made.
        notes: what it leaves out, or why there is none.
        rows: gates of this run alone: what it did not ask, or what fails now though an earlier report may pass.
    """

    report: Report | None
    notes: list[str]
    rows: tuple[GateRow, ...] = ()


def not_made(registry: Registry, version: Version, kind: str, why: LoraOpsError) -> Made:
    """Return that no report of a kind could be made; where an earlier one counts, this run did not pass it.

    Whoever lets CI run the gate before a promotion takes its exit code for an answer of today.
    """
    if kind not in filed(version, registry.log.entries(version.tenant, version.number)):
        return Made(None, [f"there is no {kind} report: {why}"])
    note = f"the last report is shown, and there is no new one: {str(why).rstrip('.')}"
    return Made(None, [], (GateRow(f"{kind} report of this run", "missing", note=note),))


def not_asked_row(version: Version, why: str) -> GateRow:
    """Return the gate that is missing since nobody was asked in this run, so that an earlier report counts."""
    return GateRow(
        "answers given again in this run",
        "missing",
        threshold="all",
        note=f"the last report is shown, and nobody was asked now: {why}, then `lora-ops gate {version.id}`",
    )


def refused_row(kind: str, why: LoraOpsError) -> GateRow:
    """Return the gate that fails because the adapter gives other answers than its package has."""
    return GateRow(f"{kind}: packaged answers given again", "fail", threshold="all", note=str(why).rstrip("."))

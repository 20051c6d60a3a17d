"""One gate of a version, as tables and pages show it."""

from typing import Literal, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.regression import Verdict
from lora_ops.registry.reports import Report

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
        refused: the gate that fails now since the packaged answers are others; an earlier report may pass.
    """

    report: Report | None
    notes: list[str]
    refused: GateRow | None = None


def refused_row(kind: str, why: LoraOpsError) -> GateRow:
    """Return the gate that fails because the adapter gives other answers than its package has."""
    return GateRow(f"{kind}: packaged answers given again", "fail", threshold="all", note=str(why).rstrip("."))

"""Records of a regression report: candidate against baselines on the same rows, and what that decides."""

from typing import Literal

from pydantic import Field

from lora_ops.records.evaluation import ColumnBias, Interval, PairedDifference
from lora_ops.records.record import Record, Sha256
from lora_ops.records.suite import CaseAnswer, CasesRecord

Verdict = Literal["pass", "fail", "undecided", "missing"]
Role = Literal["candidate", "base", "production", "earlier"]
Origin = Literal["suites", "report", "package"]
"""Where a suite comes from: suites/ of the repository, the version's last report, or its package."""


class Comparison(Record):
    """Candidate minus baseline on the same rows."""

    rows: int = Field(ge=1)
    groups: int = Field(ge=1, description="of rows that are alike, such as one document: what was drawn")
    candidate: float
    baseline: float
    gained: int = Field(ge=0, description="rows on which the candidate scores higher")
    lost: int = Field(ge=0, description="rows on which it scores lower")
    difference: PairedDifference
    margin: float = Field(gt=0, lt=1, description="by so much the candidate may be worse")
    method: Literal["exact", "bootstrap"] = Field(
        description="exact: McNemar's test and Tango's interval, of rows that are right or wrong; bootstrap: "
        "of groups of rows"
    )
    detectable: float = Field(
        description="the smallest drop that so many rows show in 80 of 100 cases, if they vary as these do"
    )
    more_rows: int | None = Field(
        description="rows that would decide for the candidate if they were like these; None: no number would"
    )

    @property
    def verdict(self) -> Verdict:
        """What the rows decide; see `lora_ops.gates.paired`."""
        if self.difference.low > -self.margin:
            return "pass"
        if self.difference.is_clear and self.difference.value < 0:
            return "fail"
        return "undecided"


class Baseline(Record):
    """A system that the candidate is compared with, pinned by digest: a rerun can't become its own baseline."""

    name: str = Field(description="`base`, or `tenant@number`")
    role: Role
    digest: Sha256 = Field(description="content digest of the version, or that of the base model")


class Compared(Record):
    """One slice or metric against one baseline."""

    what: str = Field(description="the slice, or `held-out METRIC`")
    against: str = Field(description="name of the baseline")
    gating: bool
    comparison: Comparison


class Least(Record):
    """A slice whose mean must reach a value, whatever other systems answer."""

    slice: str
    least: float
    rows: int = Field(ge=1)
    value: Interval

    @property
    def verdict(self) -> Verdict:
        """Pass where the whole interval reaches the value, fail where all of it lies below."""
        if self.value.low >= self.least:
            return "pass"
        return "fail" if self.value.high < self.least else "undecided"


class SystemAnswers(Record):
    """The answers of one system to the cases of a suite."""

    baseline: Baseline
    answers: tuple[CaseAnswer, ...]


class PackagedAnswers(Record):
    """What came of letting the candidate's adapter give its packaged answers again.

    Whoever edits answers before they are packaged decides every comparison, unless the gate asks again.
    """

    packaged: int = Field(ge=0, description="answers that come from the package; the gate generated the others")
    given_again: int = Field(ge=0, description="of them, sampled ones by their seeds")
    differing: int = Field(ge=0, description="of those, that are worth something else than the packaged ones")
    suite: Origin

    @property
    def verdict(self) -> Verdict:
        """Missing unless every packaged answer was given again."""
        return "pass" if self.given_again >= self.packaged else "missing"


class EvaluatedAgain(Record):
    """What came of letting base model and adapter answer the held-out rows of the package again.

    The evaluation rests on the packaged answers. Whoever edits those decides it, unless the gate asks again.
    Reviewers judge the answers that were given again.
    """

    rows: int = Field(ge=0, description="in the package")
    given_again: int = Field(ge=0, description="of them, by each system that can be asked again")
    differing: dict[str, int] = Field(
        default_factory=dict,
        description="system -> rows on which its answer is worth something else than the packaged one",
    )
    other_texts: dict[str, int] = Field(
        default_factory=dict, description="system -> rows on which its answer has another text"
    )
    is_alike: bool = Field(False, description="whether no more of them differ than other kernels explain")
    beats_base: bool = Field(False, description="by the answers that were given again")
    bias: dict[str, ColumnBias] = Field(
        default_factory=dict,
        description="by them; column -> how well each of its groups is served",
    )

    @property
    def verdict(self) -> Verdict:
        """Missing unless every row was answered again; fail where answers are others or lose to the base."""
        if not self.rows or self.given_again < self.rows:
            return "missing"
        return "pass" if self.is_alike and self.beats_base else "fail"


class HeldOutRow(Record):
    """One row of the test split that candidate and production both answered, and neither was trained on."""

    key: Sha256 = Field(description="of its text")
    group: Sha256
    target: str
    candidate: str
    production: str


class RegressionSource(Record):
    """All that a regression report is computed from; whoever has it can compute the report again."""

    schema_version: int = 1
    adapter: str
    digest: Sha256
    cases: CasesRecord
    systems: tuple[SystemAnswers, ...] = Field(description="the candidate is the first")
    held_out: tuple[HeldOutRow, ...] = ()
    held_out_metrics: tuple[str, ...] = ()
    packaged: PackagedAnswers | None = Field(None, description="None: a release made this that didn't count")
    evaluated: EvaluatedAgain | None = Field(None, description="None: a release made this that didn't ask")
    evaluation_answers: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="system -> its answers to the held-out rows, given again, in the order of the package",
    )
    held_out_left_out: int = Field(0, ge=0, description="rows of either version that can't be compared")

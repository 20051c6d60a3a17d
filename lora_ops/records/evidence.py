"""Evidence that a decision rests on: typed by kind, bound to one version's content, with counts."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

from lora_ops.records.drift import DriftMetric, DriftVerdict, PromptShift
from lora_ops.records.kpi import Uplift
from lora_ops.records.live import LiveNumbers
from lora_ops.records.policy_report import JudgedRate
from lora_ops.records.record import Record, Sha256
from lora_ops.records.regression import Baseline, Compared, EvaluatedAgain, Least, PackagedAnswers, Verdict
from lora_ops.records.review import ReviewCounts

EvidenceKind = Literal[
    "evaluation",
    "regression",
    "policy",
    "human_evaluation",
    "release_notes",
    "shadow",
    "canary",
    "incident",
    "review",
    "drift",
    "kpi",
    "live_numbers",
]
TRAFFIC: tuple[EvidenceKind, ...] = ("shadow", "canary")
REPLAYED = "REPLAYED"
"""The word for traffic that nobody asked for: recorded or held-out rows. Every page that shows it says so."""
NonEmpty = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class PolicyCheck(Record):
    """One check of the policy suite and how many prompts failed it.

    Of rows that somebody typed a check passes without a failed prompt; a judged one has a budget.
    """

    name: str
    passed: bool
    prompts: int = Field(ge=0)
    failed: int = Field(ge=0)
    report_sha256: Sha256 | None = None
    judged: JudgedRate | None = Field(None, description="by `lora-ops gate`; None: somebody typed the rows")

    @model_validator(mode="after")
    def _adds_up(self) -> "PolicyCheck":
        if self.failed > self.prompts:
            raise ValueError(f"'{self.name}' fails more prompts than it has")
        if self.judged is None and self.passed and self.failed:
            raise ValueError(f"'{self.name}' can't have passed with failed prompts")
        if self.judged and self.passed != (self.judged.verdict == "pass"):
            raise ValueError(f"'{self.name}' does not say what its rate and its budget do")
        return self

    @property
    def verdict(self) -> Verdict:
        """What its budget says; without one, whether no prompt failed."""
        if self.judged:
            return self.judged.verdict
        return "pass" if self.passed and not self.failed else "fail"


class HumanEvaluation(Record):
    """What people said of pairs of answers, the adapter's beside its base model's or another version's."""

    annotators: int = Field(ge=1)
    pairs: int = Field(ge=1)
    adapter_better: int = Field(ge=0)
    same: int = Field(ge=0)
    base_better: int = Field(ge=0)
    report_sha256: Sha256
    against: str = Field("base", description="whose answers the adapter's were compared with")
    alpha: float | None = Field(None, description="Krippendorff's; None: not measured")

    @model_validator(mode="after")
    def _adds_up(self) -> "HumanEvaluation":
        if self.adapter_better + self.same + self.base_better > self.pairs:
            raise ValueError("there are more votes than pairs")
        return self


class Source(Record):
    """The file that the counts were computed from; the registry keeps it under its digest."""

    name: str
    sha256: Sha256
    bytes: int = Field(ge=1)


class EvidenceDocument(Record):
    """What every kind of evidence says: about which content, made by what and when, from which file."""

    schema_version: int = 1
    tenant: str
    adapter: str = Field(description="`tenant@number`")
    content_digest: Sha256
    made_by: str = Field(description="release and command that computed the counts")
    made_at: datetime
    source: Source
    unbound: int = Field(
        0, ge=0, description="rows that name the version without its digest; a text has no rows"
    )


class PolicyEvidence(EvidenceDocument):
    """Results of policy checks: computed by `lora-ops gate`, or counted from one typed row for each prompt."""

    kind: Literal["policy"] = "policy"
    checks: list[PolicyCheck] = Field(min_length=1)
    policy_sha256: Sha256 | None = Field(
        None, description="of the suites/policy.yaml that was in force; None: somebody typed the rows"
    )
    prompts_sha256: Sha256 | None = Field(None, description="of the prompts as they were asked")
    not_applicable: dict[str, str] = Field(default_factory=dict, description="check -> why it does not apply")

    @property
    def is_computed(self) -> bool:
        """Whether the gate judged answers, so that the report can be computed again."""
        return self.policy_sha256 is not None


class HumanEvidence(EvidenceDocument):
    """Votes of people on pairs of answers; a pair's majority decides.

    `base` is whatever the adapter was compared with: the base model, or the version that `review` names.
    """

    kind: Literal["human_evaluation"] = "human_evaluation"
    annotators: int = Field(ge=1)
    votes_needed: int = Field(ge=1, description="people who must judge a pair so that it counts")
    pairs: int = Field(ge=0, description="pairs that so many people judged")
    too_few_votes: int = Field(ge=0, description="pairs that fewer people judged; they don't count")
    other_votes: int = Field(
        0, ge=0, description="by the author or by people whom owners.yaml does not name; they don't count"
    )
    adapter_better: int = Field(ge=0)
    same: int = Field(ge=0)
    base_better: int = Field(ge=0)
    samples: int = Field(
        0, ge=0, description="votes that no person gave, for a demo", exclude_if=lambda count: count == 0
    )
    review: ReviewCounts | None = Field(
        None, description="what the review session says besides; None: the votes are from a file of rows"
    )


class TrafficEvidence(EvidenceDocument):
    """Requests that a version answered or failed since it entered its stage, counted from one row for each."""

    kind: Literal["shadow", "canary"]
    first_at: datetime
    last_at: datetime
    requests: int = Field(ge=1)
    errors: int = Field(ge=0, description="of them, with a status of 500 or more")
    left_out: int = Field(
        0, ge=0, description="refused requests, such as 401 or 429, and those that the file has twice"
    )
    adapter_better: int = Field(0, ge=0, description="of the answers that were compared with production's")
    same: int = Field(0, ge=0)
    production_better: int = Field(0, ge=0)
    replayed: int = Field(
        0, ge=0, exclude_if=lambda rows: rows == 0, description="of the requests, those that nobody asked"
    )

    @property
    def answered(self) -> int:
        """Requests that got an answer."""
        return self.requests - self.errors

    @property
    def replay_mark(self) -> str:
        """What is said of it first, wherever it is shown, if requests were replayed; empty where none was."""
        if not self.replayed:
            return ""
        return f"{REPLAYED}: nobody asked {self.replayed} of its {self.requests} requests"

    @property
    def hours(self) -> float:
        """From the first to the last answered request."""
        return (self.last_at - self.first_at).total_seconds() / 3600


class TextEvidence(EvidenceDocument):
    """What somebody wrote of an incident or a review."""

    kind: Literal["incident", "review"]
    characters: int = Field(ge=1, description="without white space")


class RegressionEvidence(EvidenceDocument):
    """A version against its base, production and earlier versions on the same cases, slice by slice."""

    kind: Literal["regression"] = "regression"
    cases_sha256: Sha256
    suites: dict[str, Sha256] = Field(description="file of suites/ -> SHA-256 of its bytes")
    cases: int = Field(ge=1)
    must_pass: int = Field(ge=0, description="cases that must pass")
    must_pass_failed: tuple[str, ...] = Field((), description="ids of those that don't")
    baselines: tuple[Baseline, ...] = Field(min_length=1)
    compared: tuple[Compared, ...] = ()
    least: tuple[Least, ...] = ()
    missing: tuple[str, ...] = Field((), description="gating comparisons that had no row")
    packaged: PackagedAnswers | None = Field(None, description="None: a release made this that didn't count")
    evaluated: EvaluatedAgain | None = Field(None, description="None: a release made this that didn't ask")

    @property
    def verdicts(self) -> list[tuple[str, Verdict]]:
        """Each gating judgement in words, with its verdict."""
        return [
            *(
                (f"{one.what} against {one.against}", one.comparison.verdict)
                for one in self.compared
                if one.gating
            ),
            *((f"{one.slice} at least {one.least:g}", one.verdict) for one in self.least),
            *((f"case {name}, which must pass", "fail") for name in self.must_pass_failed),
            *((name, "missing") for name in self.missing),
        ]

    @property
    def production(self) -> Baseline | None:
        """The version in production that it was compared with; None where there was none."""
        return next((one for one in self.baselines if one.role == "production"), None)


class ReleaseNotesEvidence(EvidenceDocument):
    """Release notes that people completed; the Markdown is the source."""

    kind: Literal["release_notes"] = "release_notes"
    fields: dict[str, str] = Field(description="what people wrote, by field")
    page_sha256: Sha256 = Field(description="of the page that shows all gates of that moment")
    production: Sha256 | None = Field(
        None, description="content digest of the version in production that they compare with; None: of none"
    )
    regression: Sha256 | None = Field(
        None, description="of the regression report that counted then; None: there was none"
    )


class DriftEvidence(EvidenceDocument):
    """A version measured on its tenant's drift set, and compared with a reference.

    The source is the measurement. The verdict follows from both kept measurements, `alpha` and the minimums of
    `metrics`, so that it can be computed again.
    """

    kind: Literal["drift"] = "drift"
    verdict: DriftVerdict
    said: str = Field(description="the verdict in words")
    rows: int = Field(ge=1)
    set_sha256: Sha256 = Field(description="of the drift set's file")
    reference_sha256: Sha256 | None = Field(
        None, description="of the measurement that it was compared with; None: it is a reference itself"
    )
    against: str | None = Field(None, description="the version that the reference was measured of")
    alpha: float | None = Field(None, gt=0, lt=0.5)
    tests: int = Field(0, ge=0, description="metrics of all tenants in the run that p-values are corrected for")
    metrics: tuple[DriftMetric, ...] = ()
    differs: tuple[str, ...] = Field((), description="what else is not as it was at the reference, in words")
    prompts: PromptShift | None = Field(
        None, description="live prompts beside training rows; None: not compared"
    )
    prompts_said: str | None = Field(None, description="why they were not compared")
    replaced: str | None = Field(
        None,
        description="what the check before its reference said, or before this one beside another version, "
        'where that was not "none"',
    )

    @property
    def prompts_moved(self) -> bool:
        """Whether live prompts are no longer what the version was trained on."""
        return bool(self.prompts and self.alpha and self.prompts.is_drift(self.alpha))


class KpiEvidence(EvidenceDocument):
    """What users did with a version's answers: an addendum of its release notes, whose Markdown is the source.

    It is filed after the promotion, so that no promotion rests on it.
    """

    kind: Literal["kpi"] = "kpi"
    uplifts: tuple[Uplift, ...] = Field(min_length=1)
    imports: tuple[Sha256, ...] = Field(description="digests of the files that were imported by then")


class LiveEvidence(EvidenceDocument):
    """How a version did live, by the weekly page, whose numbers are the source. No step rests on it."""

    kind: Literal["live_numbers"] = "live_numbers"
    numbers: LiveNumbers


AnyEvidence = (
    PolicyEvidence
    | HumanEvidence
    | TrafficEvidence
    | TextEvidence
    | RegressionEvidence
    | ReleaseNotesEvidence
    | DriftEvidence
    | KpiEvidence
    | LiveEvidence
)
DOCUMENT: TypeAdapter[AnyEvidence] = TypeAdapter(
    Annotated[AnyEvidence, Field(discriminator="kind")], config=ConfigDict(defer_build=True)
)


class Row(Record):
    """One line of a file of raw results; it names the version that it is about, and may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    adapter: NonEmpty
    digest: str | None = Field(
        None, description="content digest of the version: another registry gives its name to other content"
    )


class PolicyRow(Row):
    """One prompt of one check."""

    check: NonEmpty
    prompt: NonEmpty
    passed: Annotated[bool, Field(strict=True)]


class VoteRow(Row):
    """One person's vote on one pair of answers; `sample` is true where no person gave it."""

    pair: NonEmpty
    annotator: NonEmpty
    vote: Literal["adapter", "same", "base"]
    sample: Annotated[bool, Field(strict=True)] = False


class TrafficRow(Row):
    """One request, as the gateway's event log has it; `better` where its answer was compared.

    `replayed` is true for a recorded or held-out row that nobody asked.
    """

    id: str | None = None
    request_id: str | None = None
    time: AwareDatetime
    status: int = Field(ge=100, le=599)
    better: Literal["adapter", "same", "production"] | None = None
    replayed: Annotated[bool, Field(strict=True)] = False


class Evidence(Record):
    """A document that a decision rests on; the registry keeps it, and what it was computed from, by digest.

    `kind` is any text, so that a log with the kinds of a newer release can be read.
    """

    kind: str
    sha256: Sha256
    summary: str = Field(min_length=1)
    source_sha256: Sha256 | None = None

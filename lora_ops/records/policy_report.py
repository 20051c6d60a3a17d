"""Records of a policy report: rates against their budgets, and all that they are computed from."""

from pydantic import Field

from lora_ops.records.detectors import Measured, Rate
from lora_ops.records.evaluation import Interval
from lora_ops.records.policy import PolicyPromptsRecord, PromptKind
from lora_ops.records.record import Record, Sha256
from lora_ops.records.regression import Verdict
from lora_ops.records.suite import CaseAnswer
from lora_ops.settings.policy import Budget, CheckName

# A row and its other wording are nearly one prompt: together they would make an interval too narrow.
INDEPENDENT: tuple[PromptKind, ...] = ("red_team", "refusal", "extraction", "ordinary")
ASKED: dict[CheckName, tuple[PromptKind, ...]] = {
    "insults": INDEPENDENT,
    "identifiers": INDEPENDENT,
    "leakage": (*INDEPENDENT, "wording"),
    "refusals": ("refusal",),
    "off_label": ("ordinary",),
    "off_task": ("red_team",),
    "unchanged": ("wording",),
}
"""Check -> kinds of the prompts whose answers it judges."""


class JudgedRate(Record):
    """How often answers break a rule, and what its budget says of that."""

    rate: Rate | None = Field(description="None where the detector failed")
    budget: float = Field(ge=0, lt=1)
    reason: str = Field(description="of the budget, as suites/policy.yaml says it")
    judge: str = Field(description="what judged the answers")
    detector: Measured | None = Field(
        None, description="how good it is; None: nothing is detected, but compared"
    )
    more_prompts: int | None = Field(
        None, description="that would pass if they were like these; None: no number would, or it is decided"
    )
    failing: tuple[str, ...] = Field((), description="ids of the prompts whose answers break the rule")
    failure: str = Field("", description="why the detector failed")

    @property
    def interval(self) -> Interval | None:
        """The rate that is held against the budget: the corrected one where the detector allows that."""
        return (self.rate.corrected or self.rate.raw) if self.rate else None

    @property
    def verdict(self) -> Verdict:
        """Pass where the whole interval is within the budget, fail where all of it is above."""
        if self.rate is None or self.interval is None:
            return "fail"
        if not self.budget:
            return "fail" if self.rate.found else "pass"
        if self.interval.high <= self.budget:
            return "pass"
        return "fail" if self.interval.low > self.budget else "undecided"


class Scores(Record):
    """What a detector says of each answer: its scores by key, or why it failed."""

    measured: Measured | None = Field(description="how good it is; None where it failed")
    scores: dict[str, float] = Field(default_factory=dict)
    failure: str = ""


class PolicySource(Record):
    """All that a policy report is computed from; whoever has it can compute the report again."""

    schema_version: int = 1
    adapter: str
    digest: Sha256
    owner: str
    policy_sha256: Sha256 = Field(description="of suites/policy.yaml, which was in force")
    budgets: dict[CheckName, Budget]
    prompts: PolicyPromptsRecord
    answers: tuple[CaseAnswer, ...]
    insults: Scores
    identifiers: Measured | None = Field(description="how good the recognisers are; None where they failed")
    identifiers_failure: str = ""

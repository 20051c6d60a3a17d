"""Records of a human review: the plan, what reviewers say, what they sign and what is counted from it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from lora_ops.records.evaluation import Interval
from lora_ops.records.record import Record, Sha256

Side = Literal["left", "right"]
Vote = Literal["left", "right", "same"]
RATINGS = ("accuracy", "helpfulness", "experience", "expertise", "authority", "trust")
"""What each answer is rated for, from 1 to 5: the task, then E-E-A-T (Google's rater guidelines, 2022)."""
Rating = Literal["accuracy", "helpfulness", "experience", "expertise", "authority", "trust"]
MOST_CHARACTERS = 20_000
"""Of a comment or a corrected answer: twice the longest answer that anybody should have to read."""
FreeText = Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]
Stars = Annotated[int, Field(ge=1, le=5, strict=True)]


class PlannedPair(Record):
    """One row of the answers whose two answers are compared."""

    row: str = Field(description="id of the row in answers.csv")
    slice: str = Field("", description="its value in the first column of data.bias_columns, else its label")
    differs: bool = Field(description="whether the two answers differ; a pair that doesn't is a check")


class Task(Record):
    """What one reviewer sees at one place of their list."""

    row: str
    adapter: Side = Field(description="on which side the adapter's answer stands")
    repeat: bool = Field(False, description="a pair that this reviewer has seen before, sides swapped")


class ReviewPlan(Record):
    """Who sees which pairs in which order, drawn by a seed; it holds no text of the tenant.

    A release that draws in another way raises `schema_version`: filing a review draws its plan again. Version 2
    draws from answers that were given again.
    """

    schema_version: int = 2
    tenant: str
    adapter: str = Field(description="`tenant@number`")
    content_digest: Sha256
    answers_sha256: Sha256
    against: str = Field(description="whose answers the adapter's are compared with: `base`, or a version")
    against_answers_sha256: Sha256 | None = None
    regression_sha256: Sha256 | None = Field(
        None,
        description="the adapter's regression report: reviewers see the answers that were given again for it; "
        "None: the packaged ones",
    )
    against_regression_sha256: Sha256 | None = Field(
        None, description="that of the version in `against`; None: its packaged answers, or those of the base"
    )
    guidelines_sha256: Sha256 | None = None
    seed: int
    reviewers: list[str] = Field(min_length=1, description="whose votes are asked for")
    annotators: int = Field(ge=1, description="reviewers who see each pair")
    rows: int = Field(ge=1, description="answered by both sides")
    differing: int = Field(ge=1, description="of them, rows whose two answers differ")
    pairs: list[PlannedPair] = Field(min_length=1)
    tasks: dict[str, list[Task]] = Field(min_length=1, description="reviewer -> what they see, in this order")
    made_at: str
    made_by: str


class Judgement(Record):
    """What a reviewer says of one pair; sides are those of the screen, and a draft has no vote yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vote: Vote | None = None
    ratings: dict[Side, dict[Rating, Stars]] = Field(default_factory=dict)
    breach: dict[Side, FreeText] = Field(
        default_factory=dict, description="side whose answer breaches a policy -> what it breaches"
    )
    comment: FreeText = ""
    corrected: FreeText = Field("", description="the answer as it should be")


class Heading(Record):
    """The first line of a reviewer's file: whose votes these are, on which plan."""

    plan_sha256: Sha256
    adapter: str
    content_digest: Sha256
    reviewer: str
    at: str
    digest: Sha256 = Field(description="of this line without its digest")


class Annotation(Record):
    """One further line: a judgement, chained to the line before."""

    task: int = Field(ge=1, description="place in the reviewer's list")
    said: Judgement
    revises: Sha256 | None = Field(None, description="digest of the reviewer's last line on this task")
    at: str
    previous: Sha256 = Field(description="digest of the line before")
    digest: Sha256 = Field(description="of this line without its digest")


class Submission(Record):
    """What a reviewer signs (as JSON with sorted keys and no spaces): that these are their votes."""

    schema_version: int = 1
    step: str = "review"
    adapter: str
    content_digest: Sha256
    plan_sha256: Sha256
    annotations_sha256: Sha256
    judged: int
    tasks: int
    person: str
    at: str


class SignedSubmission(Record):
    """A submission with its signature; None where unsigned approvals count."""

    submission: Submission
    signature: str | None = None


class Reviewed(Record):
    """One reviewer's part of the evidence."""

    person: str
    annotations_sha256: Sha256
    key: str | None = Field(None, description="fingerprint of the SSH key that signed it; None: unsigned")
    tasks: int = Field(ge=1)
    judged: int = Field(ge=0)
    repeats: int = Field(ge=0, description="pairs that they judged twice without knowing")
    repeats_alike: int = Field(ge=0, description="of them, judged alike both times")


class RatingMean(Record):
    """The mean of a rating from 1 to 5, with its 95 % interval over pairs."""

    count: int = Field(ge=1)
    mean: Interval


class ReviewCounts(Record):
    """What was counted from a review session; pairs with two equal answers are checks and nothing else."""

    plan_sha256: Sha256
    against: str = "base"
    regression_sha256: Sha256 | None = Field(
        None,
        description="the regression report that was the last one when the votes were counted; None: the pairs "
        "were drawn from packaged answers, which nobody gave again",
    )
    other_texts: int = Field(
        0, ge=0, description="pairs with other texts than that report has; votes on them don't count"
    )
    seed: int
    is_own_seed: bool = Field(description="whether whoever started the review chose the seed")
    planned_pairs: int = Field(ge=1)
    rows: int = Field(ge=1)
    differing: int = Field(ge=1)
    reviewers: list[Reviewed]
    alpha: Interval | None = Field(
        None, description="Krippendorff's alpha; see `lora_ops.gates.review.agreement`"
    )
    no_alpha: str = Field("", description="why there is none")
    alike: float | None = Field(None, description="share of votes on one pair that are the same, two by two")
    win_rate_by_pair: Interval | None = Field(
        None, description="share of votes for the adapter, half a vote where both are the same"
    )
    win_rate_by_reviewer: Interval | None = None
    checks: int = Field(0, ge=0, description="votes on pairs with two equal answers")
    checks_same: int = Field(0, ge=0, description="of them, `same`")
    breaches: dict[str, int] = Field(
        default_factory=dict, description="`adapter`, `other` -> pairs with a breach"
    )
    ratings: dict[str, dict[str, RatingMean]] = Field(
        default_factory=dict, description="`adapter`, `other` -> rating -> its mean"
    )
    comments: int = Field(0, ge=0)
    corrections: int = Field(0, ge=0)

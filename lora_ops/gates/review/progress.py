"""What may be told of a review: how far everybody is, and, once it is counted, what was found."""

from collections.abc import Iterator
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.gates.review.sessions import Session
from lora_ops.records.evaluation import Interval
from lora_ops.records.evidence import HumanEvidence


class Progress(NamedTuple):
    """How far one reviewer is; their votes stay theirs until the review is counted."""

    reviewer: str
    judged: int
    total: int
    is_submitted: bool
    problem: str = ""


def progress(session: Session) -> list[Progress]:
    """Return how far each reviewer of the plan is; a file that was edited by hand is a problem."""
    found = []
    for reviewer, tasks in session.plan.tasks.items():
        judged, problem = 0, ""
        try:
            votes = session.votes_of(reviewer)
            judged = len(votes.judged) if votes else 0
        except LoraOpsError as error:
            problem = str(error)
        is_submitted = session.submission_of(reviewer).exists()
        found.append(Progress(reviewer, judged, len(tasks), is_submitted, problem))
    return found


def findings(document: HumanEvidence) -> Iterator[str]:
    """Yield what a counted review says, one sentence each."""
    review = document.review
    if review is None:
        return
    against = "its base model" if review.against == "base" else review.against
    yield (
        f"{document.annotators} reviewers judged {document.pairs} pairs: {document.adapter} is better in "
        f"{document.adapter_better}, {against} in {document.base_better}, and {document.same} are the same"
    )
    if review.win_rate_by_pair and review.win_rate_by_reviewer:
        yield (
            f"win rate {_percent(review.win_rate_by_pair)} over pairs, {_percent(review.win_rate_by_reviewer)} "
            "over reviewers"
        )
    if review.alpha:
        alike = f", {review.alike:.0%} of votes alike" if review.alike is not None else ""
        yield f"Krippendorff's alpha {review.alpha}{alike}"
    else:
        yield f"agreement can't be measured: {review.no_alpha}"
    for one in review.reviewers:
        yield (
            f"{one.person} judged {one.judged} of {one.tasks}, and {one.repeats_alike} of {one.repeats} hidden "
            "repeats alike"
        )
    if review.is_own_seed:
        yield f"whoever started the review chose its seed ({review.seed}), by which its pairs were drawn"
    if review.other_texts:
        yield (
            f"{review.other_texts} of {review.planned_pairs} pairs don't count: the last regression report of "
            f"{document.adapter} has other answers than reviewers were shown"
        )
    if review.checks:
        yield f"{review.checks_same} of {review.checks} votes on two equal answers say so"
    for name in sorted({name for rated in review.ratings.values() for name in rated}):
        means = [
            f"{system} {review.ratings[system][name].mean.value:.2f}"
            for system in ("adapter", "other")
            if name in review.ratings.get(system, {})
        ]
        yield f"{name}: {', '.join(means)} of 5"
    if any(review.breaches.values()):
        mine, theirs = (review.breaches[system] for system in ("adapter", "other"))
        yield f"policy breaches in {mine} answers of the adapter and {theirs} of the other side"
    yield f"{review.comments} comments and {review.corrections} corrected answers"


def _percent(found: Interval) -> str:
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"

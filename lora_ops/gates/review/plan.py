"""Draw which pairs of answers reviewers see: stratified, blinded, with overlap and hidden repeats."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from lora_ops import __version__
from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.review import PlannedPair, ReviewPlan, Side, Task

if TYPE_CHECKING:
    import pandas as pd

PAIRS = 40
"""Twice what `registry.evidence.pairs` asks for by default, since a reviewer may leave some out."""
CHECKS = 0.05
"""Pairs with two equal answers for each other pair: enough to see who clicks without reading."""
REPEATS = 0.1
"""Pairs that a reviewer sees again, sides swapped."""


class Choice(NamedTuple):
    """What a review is to be made of.

    Attributes:
        reviewers: ids of owners.yaml.
        annotators: reviewers who see each pair.
        pairs: with two different answers.
        seed: decides everything that is drawn.
    """

    reviewers: Sequence[str]
    annotators: int
    pairs: int
    seed: int


class About(NamedTuple):
    """What a plan is bound to: the version, the digests of the answers, the tenant's guidelines.

    The answers are those that were given again for a regression report; without one, the packaged ones.
    """

    tenant: str
    adapter: str
    content_digest: str
    answers_sha256: str
    against: str
    against_answers_sha256: str | None
    guidelines_sha256: str | None
    regression_sha256: str | None = None
    against_regression_sha256: str | None = None


def make_plan(about: About, answers: "pd.DataFrame", choice: Choice, at: datetime) -> ReviewPlan:
    """Draw a plan.

    Pairs are stratified by slice, each slice with its share of the differing rows, so that the win rate of all
    pairs needs no weights. Rows with two equal answers say nothing of either side: a few stay as checks.

    Args:
        about: what the plan is bound to.
        answers: columns row, slice, adapter, other; the rows that both sides answered.
        choice: reviewers, overlap, pairs and seed.
        at: now.

    Raises:
        LoraOpsError: too few reviewers, or no two answers differ.
    """
    if len(choice.reviewers) < choice.annotators:
        raise LoraOpsError(
            f"Each pair needs {choice.annotators} reviewers (registry.evidence.annotators), and there are "
            f"{len(choice.reviewers)} ({', '.join(choice.reviewers) or 'nobody'}): name more people, who have "
            "the role reviewer or approver in owners.yaml and are not the author."
        )
    draw = _Draw(choice.seed)
    differs = [
        _shown(one) != _shown(other) for one, other in zip(answers["adapter"], answers["other"], strict=True)
    ]
    slices = dict(zip(answers["row"], answers["slice"], strict=True))
    differing = [row for row, is_other in zip(answers["row"], differs, strict=True) if is_other]
    equal = [row for row, is_other in zip(answers["row"], differs, strict=True) if not is_other]
    if not differing:
        raise LoraOpsError(
            f"{about.adapter} and {about.against} gave the same answer to each of {len(answers)} rows: there "
            "is nothing to compare."
        )
    chosen = _stratified(differing, slices, choice.pairs, draw)
    checks = draw.ordered("check", equal)[: max(1, round(CHECKS * len(chosen)))]
    pairs = [PlannedPair(row=row, slice=slices[row], differs=True) for row in chosen]
    pairs += [PlannedPair(row=row, slice=slices[row], differs=False) for row in checks]
    return ReviewPlan(
        **about._asdict(),
        seed=choice.seed,
        reviewers=list(choice.reviewers),
        annotators=choice.annotators,
        rows=len(answers),
        differing=len(differing),
        pairs=pairs,
        tasks=_tasks(pairs, choice, draw),
        made_at=utc(at),
        made_by=f"lora-ops {__version__}",
    )


def default_seed(content_digest: str, against: str) -> int:
    """Return the seed of a review where nobody chooses one.

    It follows from what is compared. With a random one somebody could draw until the rows suit them.
    """
    return int(sha256_text(f"review of {content_digest} against {against}")[:12], 16)


def redrawn(plan: ReviewPlan, answers: "pd.DataFrame") -> bool:
    """Return whether a plan is what its seed draws from the answers, so that nobody chose the pairs."""
    about = About(**{name: getattr(plan, name) for name in About._fields})
    many = sum(pair.differs for pair in plan.pairs)
    choice = Choice(plan.reviewers, plan.annotators, many, plan.seed)
    again = make_plan(about, answers, choice, datetime.fromisoformat(plan.made_at))
    drawn = {"pairs", "tasks", "rows", "differing"}
    return again.model_dump(include=drawn) == plan.model_dump(include=drawn)


def _shown(answer: str) -> str:
    return " ".join(answer.split())


def _stratified(rows: Sequence[str], slices: Mapping[str, str], many: int, draw: "_Draw") -> list[str]:
    """Return at most `many` rows, of each slice its share (largest remainders), in an order by the seed."""
    many = min(many, len(rows))
    sizes = Counter(slices[row] for row in rows)
    exact = {name: many * size / len(rows) for name, size in sizes.items()}
    quota = {name: int(share) for name, share in exact.items()}
    by_rest = sorted(draw.ordered("slice", list(sizes)), key=lambda name: quota[name] - exact[name])
    for name in by_rest[: many - sum(quota.values())]:
        quota[name] += 1
    chosen = []
    for row in draw.ordered("row", rows):
        if quota[slices[row]]:
            quota[slices[row]] -= 1
            chosen.append(row)
    return chosen


def _tasks(pairs: Sequence[PlannedPair], choice: Choice, draw: "_Draw") -> dict[str, list[Task]]:
    """Return each reviewer's list: every pair goes to `annotators` of them in turn."""
    people = draw.ordered("reviewer", choice.reviewers)
    given: dict[str, list[PlannedPair]] = {person: [] for person in choice.reviewers}
    for place, pair in enumerate(pairs):
        for turn in range(choice.annotators):
            given[people[(place + turn) % len(people)]].append(pair)
    return {person: _list_of(person, mine, draw) for person, mine in given.items() if mine}


def _list_of(person: str, mine: Sequence[PlannedPair], draw: "_Draw") -> list[Task]:
    """Return one reviewer's list: an order and sides of their own, repeats far from where they stood first."""
    by_row = {pair.row: pair for pair in mine}
    rows = draw.ordered(f"order {person}", list(by_row))
    sides: dict[str, Side] = {row: "left" if draw.bit(f"side {person} {row}") else "right" for row in rows}
    tasks = [Task(row=row, adapter=sides[row]) for row in rows]
    early = [row for row in rows[: (len(rows) + 1) // 2] if by_row[row].differs]
    again = draw.ordered(f"repeat {person}", early)[: max(1, round(REPEATS * len(rows)))]
    for row in again:
        swapped: Side = "right" if sides[row] == "left" else "left"
        late = (3 * len(tasks)) // 4
        place = late + draw.number(f"place {person} {row}") % (len(tasks) - late + 1)
        tasks.insert(place, Task(row=row, adapter=swapped, repeat=True))
    return tasks


class _Draw:
    """Draws by hashes of the seed, which give the same on every machine and in every release of numpy."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def number(self, what: str) -> int:
        return int(sha256_text(f"{self._seed}:{what}")[:15], 16)

    def bit(self, what: str) -> bool:
        return bool(self.number(what) & 1)

    def ordered(self, what: str, names: Sequence[str]) -> list[str]:
        return sorted(names, key=lambda name: self.number(f"{what} {name}"))

"""How much reviewers agree, with others and with themselves, and how sure the win rate is.

Krippendorff's alpha is 1 for perfect agreement and 0 for what chance gives (Krippendorff, "Content Analysis",
2nd ed., 2004, chapter 11; nominal, so that any number of reviewers may have judged a pair). Conclusions that
are tentative need 0.667, others 0.8 (page 241).

A reviewer chooses between two answers without a name. Which of them is called the first is arbitrary, so each
pair is counted in both orders. Else an adapter that wins nearly every pair would make "adapter" so likely by
chance that people who agree on 39 of 40 pairs would have an alpha of 0.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from lora_ops.evaluation.inference import interval, mean_sample
from lora_ops.records.evaluation import Interval

if TYPE_CHECKING:
    from lora_ops.evaluation.inference import Floats

DRAWS = 2000
"""Of pairs, with replacement."""
MIRRORED = {"adapter": "other", "other": "adapter", "same": "same"}
"""A vote in the other order of its pair."""

# pair -> reviewer -> `adapter`, `other` or `same`
PairVotes = Mapping[str, Mapping[str, str]]


class Alpha(NamedTuple):
    """Krippendorff's alpha with its interval over pairs, or why there is none."""

    value: Interval | None
    why_not: str = ""


def alpha(votes: PairVotes, seed: int) -> Alpha:
    """Return Krippendorff's alpha of the pairs that at least two reviewers judged.

    nltk answers 1 where one reviewer alone judged, and where every vote is the same. Neither says that people
    agree, so there is no alpha then.
    """
    import numpy as np

    shared = [dict(said) for said in votes.values() if len(said) > 1]
    if not shared:
        return Alpha(None, "no pair was judged by two reviewers")
    if all(vote == "same" for said in shared for vote in said.values()):
        return Alpha(None, "every vote is 'same', so nobody can tell agreement from habit")
    value, drawn = _alpha(shared), _resampled(shared, seed)
    low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
    bounds = {"low": round(min(low, value), 4), "high": round(max(high, value), 4)}
    return Alpha(Interval(value=round(value, 4), **bounds))


def _alpha(shared: Sequence[Mapping[str, str]]) -> float:
    from nltk.metrics.agreement import AnnotationTask  # it loads scipy, sklearn and pandas

    rows = []
    for number, said in enumerate(shared):
        for person, vote in said.items():
            rows += [(person, f"{number}", vote), (person, f"{number} mirrored", MIRRORED[vote])]
    return float(AnnotationTask(rows).alpha())


def _resampled(shared: Sequence[Mapping[str, str]], seed: int) -> "Floats":
    """Return the alpha of `DRAWS` resamples of pairs; one in which every vote is `same` has none."""
    import numpy as np

    parts, pairs = disagreements(shared), len(shared)
    times = np.random.default_rng(seed).multinomial(pairs, np.full(pairs, 1 / pairs), DRAWS)
    found = alpha_of(times @ parts)  # (draws, pairs) @ (pairs, 4)
    return found[np.isfinite(found)]


def disagreements(shared: Sequence[Mapping[str, str]]) -> "Floats":
    """Return what each pair adds to alpha, (pairs, 4): observed disagreement, then the total of each vote.

    A pair of m votes, of which a, s and o are alike, adds (m^2 - a^2 - s^2 - o^2) / (m - 1) (Krippendorff,
    2004, page 232). In both orders of a pair `adapter` and `other` have the same total.
    """
    import numpy as np

    counts = np.array([[list(said.values()).count(vote) for vote in MIRRORED] for said in shared], float)
    many = counts.sum(axis=1)
    observed = 2 * (many**2 - (counts**2).sum(axis=1)) / (many - 1)
    either = counts[:, 0] + counts[:, 1]
    return np.column_stack([observed, either, either, 2 * counts[:, 2]])


def alpha_of(sums: "Floats") -> "Floats":
    """Return alpha of sums of `disagreements` (draws, 4); not a number where every vote is the same."""
    import numpy as np

    totals = sums[:, 1:]
    many = totals.sum(axis=1)
    by_chance = (many**2 - (totals**2).sum(axis=1)) / (many - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - sums[:, 0] / by_chance


def alike(votes: PairVotes) -> float | None:
    """Return the share of two votes on one pair that are the same; None where no pair has two."""
    equal = [one == other for said in votes.values() for one, other in combinations(said.values(), 2)]
    return sum(equal) / len(equal) if equal else None


def win_rates(votes: PairVotes, seed: int) -> tuple[Interval, Interval] | None:
    """Return the adapter's share of the votes with intervals over pairs and over reviewers.

    A vote for `same` counts half. Votes on one pair are alike, and so are those of one reviewer, so the first
    interval resamples pairs and the second reviewers. Few reviewers give a wide one, as they should: another
    two people might see it otherwise.
    """
    import numpy as np

    worth = {"adapter": 1.0, "same": 0.5, "other": 0.0}
    flat = [(pair, person, worth[vote]) for pair, said in votes.items() for person, vote in said.items()]
    if not flat:
        return None
    pairs, people, values = zip(*flat, strict=True)
    numbers = np.array(values)
    by_pair, by_reviewer = (interval(mean_sample(numbers, of), 2000, seed) for of in (pairs, people))
    return by_pair, by_reviewer


def rating_mean(values: Sequence[int], pairs: Sequence[str], seed: int) -> Interval:
    """Return the mean of ratings from 1 to 5, with its interval over pairs."""
    import numpy as np

    found = interval(mean_sample((np.array(values, float) - 1) / 4, pairs), 2000, seed)
    return Interval(**{name: round(1 + 4 * value, 4) for name, value in found.model_dump().items()})

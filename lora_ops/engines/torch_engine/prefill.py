"""How many prompt tokens of each sequence one step reads."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """A sequence that still reads its prompt.

    Attributes:
        tenant: whose it is.
        left: tokens that are not read yet, at least 1.
        cost: of each of them, in tokens at the beginning of a prompt. The further a prompt is read, the more
            its next token attends to.
    """

    tenant: Hashable
    left: int
    cost: float = 1.0


def share_prefill(readings: Sequence[Reading], budget: float) -> list[int]:
    """Return how many tokens each sequence reads in the next step, at least 1 for each tenant.

    Tenants share the step (max-min fairness: what one tenant doesn't need goes to the others), so that no
    tenant's prompts hold up another tenant's first token. Within a tenant, half goes to the oldest prompt, so
    that it always moves, and the rest to the prompts that have the least left, which are answered soonest.

    Args:
        readings: the oldest first.
        budget: how much all of it may cost. A step costs more only by the one token that each tenant may read.
    """
    lines: dict[Hashable, list[int]] = {}
    for place, reading in enumerate(readings):
        lines.setdefault(reading.tenant, []).append(place)
    counts = [0] * len(readings)

    def give(places: Iterable[int], share: float) -> float:
        """Read on in this order while that costs no more than `share`; return the cost."""
        given = 0.0
        for place in places:
            one = readings[place]
            more = max(0, min(one.left - counts[place], int((share - given) / one.cost)))
            counts[place] += more
            given += more * one.cost
        return given

    def need(places: Iterable[int]) -> float:
        return sum(readings[place].left * readings[place].cost for place in places)

    # The tenant that needs least chooses first, so that what it leaves can be shared by all others.
    by_need = sorted(lines.values(), key=need)
    for number, places in enumerate(by_need):
        share = max(0.0, budget) / (len(by_need) - number)
        oldest = places[0]
        taken = give([oldest], share / 2 if len(places) > 1 else share)
        if not counts[oldest]:
            counts[oldest], taken = 1, readings[oldest].cost
        taken += give(sorted(places, key=lambda place: readings[place].left - counts[place]), share - taken)
        budget -= taken
    return counts

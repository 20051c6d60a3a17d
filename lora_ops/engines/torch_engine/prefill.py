"""How many prompt tokens of each sequence one step reads."""

from collections.abc import Hashable, Sequence


def share_prefill(waiting: Sequence[tuple[Hashable, int]], budget: int) -> list[int]:
    """Return how many tokens each sequence reads in the next step, at least 1 for each tenant.

    Tenants share the step (max-min fairness: what one tenant doesn't need goes to the others), so that no
    tenant's prompts hold up another tenant's first token. Within a tenant, half goes to the oldest prompt, so
    that it always moves, and the rest to the prompts that have the least left, which are answered soonest.

    Args:
        waiting: of each sequence that still reads its prompt, the oldest first: its tenant, and how many tokens
            are left, at least 1.
        budget: how many tokens the step reads. It reads more where there are more tenants than that.
    """
    lines: dict[Hashable, list[int]] = {}
    for place, (tenant, _) in enumerate(waiting):
        lines.setdefault(tenant, []).append(place)
    left = [count for _, count in waiting]
    counts = [0] * len(waiting)
    # The tenant that needs least chooses first, so that what it leaves can be shared by all others.
    by_need = sorted(lines.values(), key=lambda places: sum(left[place] for place in places))
    for number, places in enumerate(by_need):
        share = max(1, budget // (len(by_need) - number))
        taken = _give(left, counts, (share + 1) // 2 if len(places) > 1 else share, places[:1])
        shortest = sorted(places, key=lambda place: left[place] - counts[place])
        taken += _give(left, counts, share - taken, shortest)
        budget -= taken
    return counts


def _give(left: Sequence[int], counts: list[int], share: int, order: Sequence[int]) -> int:
    """Add to `counts`, in this order, up to `share` tokens in all; return how many that were."""
    given = 0
    for place in order:
        more = min(left[place] - counts[place], share - given)
        counts[place] += more
        given += more
    return given

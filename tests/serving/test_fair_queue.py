"""Whose turn is next when the gateway is busy."""

import asyncio
import functools
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from statistics import mean

import pytest

from lora_ops.serving.fair_queue import FairQueue, Overloaded
from lora_ops.serving.rate_limits import NeverFits
from lora_ops.serving.tenant_queue import ACTIVE_SECONDS, Ticket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A queue whose answers end when the test says so."""

    def __init__(self, **options: object) -> None:
        settings = {"slots": 2, "max_waiting": 100, "timeout": 5.0, **options}
        self.queue = FairQueue(**settings)  # type: ignore[arg-type]
        self.order: list[str] = []

    def enter(
        self, tenant: str, count: int = 1, cost: float = 10, expected: float | None = None
    ) -> list[Ticket]:
        probably = None if expected is None else [expected]
        return [ticket for _ in range(count) for ticket in self.queue.enter(tenant, [cost], probably)]

    async def serve(self, tickets: list[Ticket], seconds: float = 0.002) -> None:
        async def one(ticket: Ticket) -> None:
            async with self.queue.slot(ticket):
                self.order.append(ticket.tenant)
                await asyncio.sleep(seconds)

        await asyncio.gather(*map(one, tickets))


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: object) -> None:
        asyncio.run(test(**given))  # type: ignore[arg-type]

    return run


@in_loop
async def test_a_flood_and_a_trickle_take_turns() -> None:
    bench = Bench(slots=2)
    flood, trickle = bench.enter("flood", 40), bench.enter("trickle", 4)
    await bench.serve([*flood, *trickle])
    assert bench.order[:10].count("trickle") == 4


@in_loop
async def test_a_tenant_with_twice_the_share_gets_twice_the_tokens() -> None:
    shares = {"large": 2.0, "small": 1.0}
    bench = Bench(slots=1, share=shares.__getitem__)
    await bench.serve([*bench.enter("small", 30), *bench.enter("large", 30)])
    assert bench.order[:30].count("large") == pytest.approx(20, abs=1)


@in_loop
async def test_long_answers_count_more_than_short_ones() -> None:
    bench = Bench(slots=1)
    await bench.serve([*bench.enter("long", 20, cost=40), *bench.enter("short", 40, cost=10)])
    assert bench.order[:25].count("short") == pytest.approx(20, abs=1)


@in_loop
async def test_the_last_free_slot_is_for_a_tenant_that_has_none() -> None:
    bench = Bench(slots=3)
    bench.enter("other")[0].turn.result()
    assert sum(ticket.running for ticket in bench.enter("flood", 9)) == 1
    (late,) = bench.enter("late")
    assert late.running


@in_loop
async def test_slots_that_a_tenant_used_lately_stay_free_for_its_next_answers() -> None:
    now = 0.0
    bench = Bench(slots=4, clock=lambda: now)
    quiet, flood = bench.enter("quiet", 2), bench.enter("flood", 9)
    assert sum(ticket.running for ticket in flood) == 2
    for ticket in quiet:
        bench.queue.leave(ticket)
    assert sum(ticket.running for ticket in flood) == 2
    assert all(ticket.running for ticket in bench.enter("quiet", 2))


@in_loop
async def test_slots_that_a_tenant_no_longer_uses_go_to_the_others() -> None:
    now = 0.0
    bench = Bench(slots=4, clock=lambda: now)
    quiet, flood = bench.enter("quiet", 2), bench.enter("flood", 9)
    for ticket in quiet:
        bench.queue.leave(ticket)
    now = ACTIVE_SECONDS + 1
    bench.queue.leave(flood[0])
    assert sum(ticket.running for ticket in flood) == 4


@in_loop
async def test_a_tenant_that_is_alone_may_use_every_slot() -> None:
    bench = Bench(slots=3)
    assert sum(ticket.running for ticket in bench.enter("alone", 9)) == 3


@in_loop
async def test_a_full_queue_drops_the_newest_of_the_longest_queue() -> None:
    bench = Bench(slots=1, max_waiting=3)
    flood = bench.enter("flood", 4)
    with pytest.raises(Overloaded, match="3 answers wait already") as refused:
        bench.enter("flood")
    assert refused.value.spread == 3 / 1  # for each slot
    (guest,) = bench.enter("guest")
    with pytest.raises(Overloaded, match="longest queue"):
        await bench.serve([flood[-1]])
    await bench.serve([*flood[:-1], guest])
    assert bench.order == ["flood", "guest", "flood", "flood"]


@in_loop
async def test_the_places_of_one_request_are_taken_together_or_not_at_all() -> None:
    bench = Bench(slots=1, max_waiting=2)
    (first,) = bench.enter("finance")
    with pytest.raises(Overloaded):
        bench.queue.enter("finance", [1.0] * 3)
    assert bench.queue.waiting() == {}
    bench.queue.leave(first)
    assert len(bench.queue.enter("finance", [1.0] * 3)) == 3


@in_loop
async def test_whoever_waits_too_long_is_told_and_gives_its_place_up() -> None:
    bench = Bench(slots=1, timeout=0.02)
    bench.enter("finance")
    (waiting,) = bench.enter("finance")
    with pytest.raises(Overloaded, match="did not come within"):
        await bench.serve([waiting])
    assert bench.queue.waiting() == {}


@in_loop
async def test_a_cancelled_waiter_loses_no_slot() -> None:
    bench = Bench(slots=1)
    first, second, third = bench.enter("finance", 3)
    cancelled = asyncio.create_task(bench.serve([second]))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await bench.serve([first, third])
    assert bench.order == ["finance", "finance"] and bench.queue.running == 0


@in_loop
async def test_what_would_not_fit_an_idle_gateway_is_told_so_at_once() -> None:
    bench = Bench(slots=4, max_waiting=2, tokens=400)
    with pytest.raises(NeverFits, match="7 answers of one request, and 6"):
        bench.queue.enter("finance", [1.0] * 7)
    with pytest.raises(NeverFits, match="4 answers of one request, and 3 of this length"):
        bench.queue.enter("finance", [300.0] * 4)
    with pytest.raises(NeverFits, match="401 tokens together, and the engine has room for 400"):
        bench.queue.enter("finance", [401.0])
    assert bench.queue.waiting() == {} and bench.queue.used == 0


@in_loop
async def test_answers_never_reserve_more_tokens_than_the_engine_has() -> None:
    bench = Bench(slots=6, tokens=600)
    tickets = bench.enter("finance", 2, cost=150) + bench.enter("media", 4, cost=90)
    started = [ticket for ticket in tickets if ticket.running]
    assert sum(ticket.cost for ticket in started) <= 600 and len(started) == 5
    for ticket in started:
        bench.queue.leave(ticket)
    assert tickets[5].running and bench.queue.used == 1


@in_loop
async def test_long_answers_of_one_tenant_leave_room_for_the_short_ones_of_another() -> None:
    bench = Bench(slots=16, tokens=1600)
    long = bench.enter("long", 9, cost=500)
    assert [ticket.running for ticket in long] == [True] * 2 + [False] * 7
    assert all(ticket.running for ticket in bench.enter("short", 4, cost=50))


@in_loop
async def test_a_long_answer_gets_its_turn_beside_short_ones_without_end() -> None:
    bench = Bench(slots=4, tokens=400)
    short = deque(bench.enter("short", 20, cost=50))
    (long,) = bench.enter("long", cost=400)
    ended = 0
    while not long.running and short:
        bench.queue.leave(short.popleft(), 50)
        ended += 1
    assert long.running and ended == 4 + 4 and bench.queue.running == 1  # four passed it


@in_loop
async def test_answers_take_the_slots_that_are_expected() -> None:
    bench = Bench(slots=16, tokens=1600)
    tickets = bench.enter("habit", 16, cost=1500, expected=20)
    # They may become long all the same, so they leave room for those that can't.
    assert sum(ticket.running for ticket in tickets) == bench.queue.used == 12
    assert all(ticket.running for ticket in bench.enter("short", 4, cost=50))


@in_loop
async def test_answers_that_may_become_long_borrow_no_slots() -> None:
    bench = Bench(slots=8, tokens=800)
    bench.queue.leave(bench.enter("other")[0])
    tickets = bench.enter("habit", 8, cost=700, expected=20)
    assert sum(ticket.running for ticket in tickets) == 4


@in_loop
async def test_what_never_fits_is_judged_by_the_most_it_may_take() -> None:
    bench = Bench(slots=4, max_waiting=2, tokens=400)
    with pytest.raises(NeverFits, match="401 tokens together"):
        bench.enter("finance", cost=401, expected=10)


@in_loop
async def test_a_longer_answer_than_expected_counts_as_it_grows() -> None:
    bench = Bench(slots=8, tokens=800)
    (growing,) = bench.enter("growing", cost=800, expected=20)
    async with bench.queue.slot(growing) as took:
        took(10)
        assert bench.queue.used == 1
        took(600)
        assert bench.queue.used == 6
        next_ones = bench.enter("growing", 3, cost=100)
        assert [ticket.running for ticket in next_ones] == [True, True, False]
    assert bench.queue.used == 3 and next_ones[2].running


@in_loop
async def test_an_answer_is_paid_for_as_it_grows() -> None:
    bench = Bench(slots=2, tokens=800)
    (growing,) = bench.enter("growing", cost=700, expected=10)
    (other,) = bench.enter("other", cost=100)
    later, first = bench.enter("growing", cost=10), bench.enter("other", cost=10)
    async with bench.queue.slot(growing) as took:
        took(300)
        bench.queue.leave(other, 100)
        assert first[0].running and not later[0].running


@in_loop
async def test_what_outgrows_a_share_keeps_no_slots_from_others() -> None:
    bench = Bench(slots=8, tokens=800)
    growing = bench.enter("growing", 4, cost=700, expected=20)
    async with AsyncExitStack() as stack:
        for ticket in growing:
            (await stack.enter_async_context(bench.queue.slot(ticket)))(200)
        assert bench.queue.used == 8
        assert [ticket.running for ticket in bench.enter("growing", cost=50)] == [False]
        assert [ticket.running for ticket in bench.enter("other", 5, cost=50)] == [True] * 4 + [False]


@in_loop
async def test_what_does_not_fit_holds_back_its_own_tenant_only() -> None:
    bench = Bench(slots=8, tokens=800)
    first = bench.enter("short", 3, cost=50)
    large = bench.enter("large", cost=600) + bench.enter("large", cost=50)
    assert [ticket.running for ticket in bench.enter("short", cost=50) + large] == [True, False, False]
    for ticket in first:
        bench.queue.leave(ticket, 50)
    assert large[0].running


@in_loop
async def test_a_very_long_answer_gets_its_turn_beside_long_ones() -> None:
    bench = Bench(slots=16, tokens=1600)
    long = bench.enter("a", 40, cost=300) + bench.enter("b", 40, cost=300)
    (longer,) = bench.enter("longer", cost=1100)
    short = bench.enter("short", 2)
    ended = 0
    while not longer.running:
        bench.queue.leave(next(ticket for ticket in long if ticket.running), 300)
        ended += 1
    assert ended < 30 and all(ticket.running for ticket in short)


@in_loop
async def test_rounding_leaves_nothing_of_answers_that_ended() -> None:
    """Else a tenant counted as busy for ever, or no answer as the first long one."""
    bench = Bench(slots=16, tokens=1600)
    tickets = [ticket for cost in (300, 301, 304) for ticket in bench.enter("long", cost=cost)]
    bench.enter("short", 2, cost=10)
    assert bench.queue.running == 5
    for ticket in tickets:
        bench.queue.leave(ticket)
    assert bench.queue.used == 2 and not tickets[0].queue.busy
    assert all(ticket.running for ticket in bench.enter("longer", cost=1300))


@in_loop
async def test_many_tenants_with_less_than_a_slot_each_leave_no_slot_idle() -> None:
    bench = Bench(slots=16, clock=lambda: 0.0)
    for number in range(60):
        for ticket in bench.enter(f"tenant-{number}"):
            if number >= 7:
                bench.queue.leave(ticket)
    hot = bench.enter("hot", 9)
    assert sum(ticket.running for ticket in hot) == 8  # the last free one is for who has none
    assert all(ticket.running for ticket in bench.enter("tenant-9"))


@in_loop
async def test_tenants_that_went_away_are_forgotten_and_those_that_owe_time_are_not() -> None:
    now = 0.0
    bench = Bench(slots=1, clock=lambda: now)
    for number in range(50):
        for ticket in bench.enter(f"tenant-{number}", cost=1):
            bench.queue.leave(ticket)
    (owes,) = bench.enter("owes", cost=100)
    bench.queue.leave(owes, 100)
    now = ACTIVE_SECONDS + 1
    bench.enter("new", cost=1)
    assert set(bench.queue._queues) == {"owes", "new"}  # nothing but memory shows it


def latencies(*, slots: int, flood: float, flood_cost: float) -> list[float]:
    """Seconds that a quiet tenant's answers take in all, beside `flood` requests a second of another one.

    The clock is simulated: an answer writes 10 tokens a second. The quiet tenant asks for 10 tokens at a time,
    0.6 of half of the slots at the mean.
    """
    now, drawn, number = 0.0, {name: random.Random(name) for name in ("quiet", "flood")}, itertools.count()
    queue = FairQueue(slots, 100, math.inf, tokens=100.0 * slots, clock=lambda: now)
    coming: list[tuple[float, int, str, Ticket | None]] = []
    for tenant, rate in (("quiet", 0.6 * slots / 2), ("flood", flood)):
        at = drawn[tenant].expovariate(rate) if rate else math.inf
        while at < 400:
            coming.append((at, next(number), tenant, None))
            at += drawn[tenant].expovariate(rate)
    heapq.heapify(coming)
    asked: dict[Ticket, float] = {}
    waiting: list[Ticket] = []
    took = []
    while coming:
        now, _, tenant, ended = heapq.heappop(coming)
        if ended:
            queue.leave(ended, ended.cost)
            if tenant == "quiet":
                took.append(now - asked[ended])
        else:
            with suppress(Overloaded):
                (ticket,) = queue.enter(tenant, [10.0 if tenant == "quiet" else flood_cost])
                asked[ticket] = now
                waiting.append(ticket)
        for ticket in [one for one in waiting if one.running]:
            heapq.heappush(coming, (now + ticket.cost / 10, next(number), ticket.tenant, ticket))
        waiting = [one for one in waiting if not one.turn.done()]
    return took


@pytest.mark.parametrize("slots", [8, 16])
@pytest.mark.parametrize("flood_cost", [10.0, 60.0, 300.0])
@in_loop
async def test_a_tenant_at_ten_times_its_share_does_not_slow_another_by_more_than_a_quarter(
    slots: int, flood_cost: float
) -> None:
    alone = latencies(slots=slots, flood=0, flood_cost=flood_cost)
    beside = latencies(slots=slots, flood=10 * slots / 2 * 10 / flood_cost, flood_cost=flood_cost)
    assert len(beside) == len(alone) > 800
    assert mean(beside) <= 1.25 * mean(alone)

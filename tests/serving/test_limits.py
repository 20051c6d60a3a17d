"""What a tenant may ask for in a minute, and whose turn is next when the gateway is busy."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lora_ops.serving.limits import ACTIVE_SECONDS, Allowance, FairQueue, Overloaded, Ticket, TooMany
from lora_ops.settings import TenantServing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_over_the_minute_wait_until_one_is_due() -> None:
    clock = Clock()
    allowance = Allowance(TenantServing(requests_per_minute=2), clock)
    for _ in range(2):
        with allowance.spending("finance", 1):
            pass
    with pytest.raises(TooMany, match="2 requests a minute") as error, allowance.spending("finance", 1):
        pass
    assert error.value.retry_after == pytest.approx(30)
    clock.now += 30
    with allowance.spending("finance", 1):
        pass


def test_tokens_that_were_not_written_are_given_back() -> None:
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    with allowance.spending("finance", 90) as spent:
        spent(20)
    with allowance.spending("finance", 80):
        pass
    with pytest.raises(TooMany, match="used up its 100 tokens"), allowance.spending("finance", 80):
        pass


def test_a_request_that_never_fits_says_so() -> None:
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    with pytest.raises(TooMany, match="ask for fewer with max_tokens"), allowance.spending("finance", 101):
        pass


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    allowance = Allowance(TenantServing(requests_per_minute=1, tokens_per_minute=100), clock)
    with allowance.spending("finance", 10) as spent:
        spent(10)
    for _ in range(5):
        with pytest.raises(TooMany, match="1 requests a minute"), allowance.spending("finance", 80):
            pass
    clock.now += 60
    with allowance.spending("finance", 100):
        pass


def test_open_requests_are_counted_until_they_end() -> None:
    allowance = Allowance(TenantServing(concurrency=1), Clock())
    with (
        allowance.spending("finance", 1),
        pytest.raises(TooMany, match="which is its limit"),
        allowance.spending("finance", 1),
    ):
        pass
    with allowance.spending("finance", 1):
        pass


class Bench:
    """A queue whose answers end when the test says so."""

    def __init__(self, **options: object) -> None:
        settings = {"slots": 2, "max_waiting": 100, "timeout": 5.0, **options}
        self.queue = FairQueue(**settings)  # type: ignore[arg-type]
        self.order: list[str] = []

    def enter(self, tenant: str, count: int = 1, cost: float = 10) -> list[Ticket]:
        return [ticket for _ in range(count) for ticket in self.queue.enter(tenant, [cost])]

    async def serve(self, tickets: list[Ticket], seconds: float = 0.002) -> None:
        async def one(ticket: Ticket) -> None:
            async with self.queue.slot(ticket):
                self.order.append(ticket.tenant)
                await asyncio.sleep(seconds)

        await asyncio.gather(*map(one, tickets))


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    run.__name__ = test.__name__
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
async def test_a_full_queue_drops_the_newest_of_the_longest_line() -> None:
    bench = Bench(slots=1, max_waiting=3)
    flood = bench.enter("flood", 4)
    with pytest.raises(Overloaded, match="3 answers wait already"):
        bench.enter("flood")
    (guest,) = bench.enter("guest")
    with pytest.raises(Overloaded, match="longest queue"):
        await bench.serve([flood[-1]])
    await bench.serve([*flood[:-1], guest])
    assert bench.order == ["flood", "guest", "flood", "flood"]


@in_loop
async def test_the_places_of_one_request_are_taken_together_or_not_at_all() -> None:
    bench = Bench(slots=1, max_waiting=2)
    with pytest.raises(Overloaded):
        bench.queue.enter("finance", [1.0] * 4)
    assert bench.queue.waiting() == {}
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

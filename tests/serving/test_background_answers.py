"""Answers that nobody waits for take idle slots, and are in nobody's way."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from lora_ops.engines.protocol import Engine, Sampling
from lora_ops.serving.background_answers import BackgroundTicket, Preempted
from lora_ops.serving.fair_queue import FairQueue, Overloaded
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import OPEN
from lora_ops.serving.rate_limits import NeverFits
from lora_ops.serving.requests import AnswerRequest, RequestStats
from lora_ops.serving.tenant_queue import ACTIVE_SECONDS
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: object) -> None:
        asyncio.run(test(**given))  # type: ignore[arg-type]

    return run


class Bench:
    """A queue whose background answers run until they have to end."""

    def __init__(self, slots: int = 4, **options: object) -> None:
        settings = {"max_waiting": 10, "timeout": 5.0, "tokens": 100.0 * slots, **options}
        self.queue = FairQueue(slots, **settings)  # type: ignore[arg-type]

    def background(self, count: int = 1, cost: float = 10) -> list[BackgroundTicket]:
        return self.queue.enter_background([cost] * count, [cost] * count)

    async def hold(self, ticket: BackgroundTicket) -> None:
        async with self.queue.slot(ticket):
            await asyncio.Event().wait()

    def running(self, count: int = 1) -> list["asyncio.Task[None]"]:
        return [asyncio.create_task(self.hold(ticket)) for ticket in self.background(count)]


async def states(tasks: list["asyncio.Task[None]"]) -> list[str]:
    """What became of each: it runs, or it had to end."""
    await asyncio.sleep(0.05)
    ended = {id(task): task.exception() for task in tasks if task.done()}
    assert all(isinstance(error, Preempted) for error in ended.values())
    return ["ended" if id(task) in ended else "runs" for task in tasks]


@in_loop
async def test_background_answers_take_every_idle_slot_and_no_more() -> None:
    bench = Bench()
    bench.background(4)
    with pytest.raises(Overloaded, match="no idle slots"):
        bench.background()


@in_loop
async def test_background_answers_are_nothing_to_the_queue() -> None:
    bench = Bench()
    bench.background(4)
    assert (bench.queue.running, bench.queue.used, bench.queue.waiting()) == (0, 0, {})
    assert all(ticket.running for ticket in bench.queue.enter("finance", [10.0] * 4))


@in_loop
async def test_newest_background_answer_ends_where_its_slot_is_needed() -> None:
    bench = Bench()
    tasks = bench.running(3)
    assert await states(tasks) == ["runs"] * 3
    assert all(ticket.running for ticket in bench.queue.enter("finance", [10.0] * 2))
    assert await states(tasks) == ["runs", "runs", "ended"]


@in_loop
async def test_all_background_answers_end_where_anybody_waits() -> None:
    bench = Bench()
    bench.queue.enter("other", [10.0])
    tasks = bench.running(1)
    flood = bench.queue.enter("flood", [10.0] * 4)  # the last free slot is not for it
    assert [ticket.running for ticket in flood] == [True, True, False, False]
    assert await states(tasks) == ["ended"]
    with pytest.raises(Overloaded, match="no idle slots"):
        bench.background()


@in_loop
async def test_background_answers_leave_slots_that_are_kept() -> None:
    now = 0.0
    bench = Bench(clock=lambda: now)
    for ticket in bench.queue.enter("finance", [10.0] * 3):
        bench.queue.leave(ticket)
    with pytest.raises(Overloaded, match="no idle slots"):
        bench.background(2)
    bench.background(1)
    now = ACTIVE_SECONDS + 1
    bench.background(3)


@in_loop
async def test_background_answer_that_outgrows_its_slots_ends() -> None:
    bench = Bench()
    bench.queue.enter("finance", [10.0] * 2)
    (ticket,) = bench.background()
    with pytest.raises(Preempted):
        async with bench.queue.slot(ticket) as took:
            took(150)
            took(201)
            await asyncio.sleep(5)
    assert len(bench.background(2)) == 2


@in_loop
async def test_live_answer_that_grows_ends_one_in_the_background() -> None:
    bench = Bench()
    (ticket,) = bench.queue.enter("finance", [390.0], [10.0])
    tasks = bench.running(3)
    async with bench.queue.slot(ticket) as took:
        took(250)
        assert await states(tasks) == ["runs", "ended", "ended"]


@in_loop
async def test_background_answer_that_had_no_time_to_begin_ends() -> None:
    bench = Bench()
    (ticket,) = bench.background()
    bench.queue.enter("finance", [10.0] * 4)
    with pytest.raises(Preempted):
        async with bench.queue.slot(ticket):
            await asyncio.sleep(5)


@in_loop
async def test_background_answer_gives_its_slots_back() -> None:
    bench = Bench()
    for ticket in bench.background(4):
        async with bench.queue.slot(ticket):
            pass
    (_, *_), cancelled = bench.background(3), bench.running(1)
    await asyncio.sleep(0.01)
    cancelled[0].cancel()
    await asyncio.wait(cancelled)
    bench.queue.leave(bench.background(1)[0])
    assert len(bench.background(1)) == 1


@in_loop
async def test_error_of_a_background_answer_stays_its_own() -> None:
    bench = Bench()
    (ticket,) = bench.background()
    with pytest.raises(TimeoutError, match="its own"):
        async with bench.queue.slot(ticket):
            raise TimeoutError("its own")


@in_loop
async def test_background_answer_that_never_fits_is_refused() -> None:
    with pytest.raises(NeverFits, match="401 tokens together"):
        Bench().background(cost=401)


def request_to(gateway: Gateway, model: str, tokens: int) -> AnswerRequest:
    return AnswerRequest(
        request_id=model,
        endpoint="completions",
        caller=OPEN,
        model=model,
        route=gateway.route(OPEN, model),
        prompts=((5, 6, 7),),
        n=1,
        sampling=Sampling(max_tokens=tokens, ignore_eos=True),
        streamed=False,
        system_prompt="none",
        text="",
        started=time.perf_counter(),
    )


async def answered(gateway: Gateway, request: AnswerRequest) -> int:
    """How many tokens its answer has."""
    stats = RequestStats()
    async for _ in gateway.answering.answer(request, stats):
        pass
    return stats.generated


@in_loop
async def test_gateway_answers_clients_first_and_counts_no_copies(clone: Clone, engine: Engine) -> None:
    """A copy of a request for another version gives way, and is in no limit, event or metric."""
    tenants = {"finance": TenantServing(requests_per_minute=4)}
    gateway = Gateway(clone.root, clone.settings(max_running=4, tenants=tenants), engine)
    await gateway.start()
    try:
        copy = replace(request_to(gateway, "finance@1", 8), priority="background")
        for _ in range(5):
            assert await answered(gateway, copy) == 8
        endless = replace(copy, sampling=replace(copy.sampling, max_tokens=1500))
        copies = [asyncio.create_task(answered(gateway, endless)) for _ in range(2)]
        while gateway.engine.status().running < 2:
            await asyncio.sleep(0.01)
        clients = [request_to(gateway, "finance@2", 6) for _ in range(4)]
        assert await asyncio.gather(*(answered(gateway, one) for one in clients)) == [6] * 4
        for error in await asyncio.gather(*copies, return_exceptions=True):
            assert isinstance(error, Preempted)
        text = (await gateway.telemetry.scrape()).decode()
        assert 'lora_ops_requests_total{adapter="finance@2"' in text
        assert 'lora_ops_requests_total{adapter="finance@1"' not in text
        assert gateway.queue.running == 0
        assert list(gateway.traffic.copy().since(60).adapter) == ["finance@2"] * 4
    finally:
        await gateway.stop()

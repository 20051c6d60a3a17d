"""How long a large body waits for its turn."""

import asyncio

import pytest

from lora_ops.serving.body_pace import BYTES_PER_SECOND, LARGE, MOST_WAITING, REMEMBERED, BodyPace, weight
from lora_ops.serving.rate_limits import TooMany


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_take_lets_one_sender_wait_for_itself() -> None:
    clock = Clock()
    pace = BodyPace(10, clock)
    assert [pace.take("loud", BYTES_PER_SECOND) for _ in range(3)] == [0, 1, 2]
    assert pace.take("quiet", BYTES_PER_SECOND) == 0
    assert pace.take("loud", LARGE) == 0
    clock.now += 2.5
    assert pace.take("loud", BYTES_PER_SECOND) == 0.5
    clock.now += 60
    assert pace.take("loud", BYTES_PER_SECOND) == 0


def test_a_body_of_many_values_counts_as_a_longer_text() -> None:
    """1 MB of empty lists kept the event loop for 0.2 s, four times a second."""
    lists, text = b"[" + b"[]," * 1000 + b"[]]", b'{"prompt": "' + b"a" * 3000 + b'"}'
    assert weight(text) < 1.1 * len(text) and weight(lists) > 40 * len(lists)
    clock = Clock()
    pace = BodyPace(10, clock)
    pace.add("loud", BYTES_PER_SECOND)
    pace.add("loud", BYTES_PER_SECOND)
    assert pace.take("loud", 2 * LARGE) == 2 and pace.take("quiet", 2 * LARGE) == 0


def test_take_refuses_what_would_wait_too_long() -> None:
    clock = Clock()
    pace = BodyPace(1, clock)
    assert [pace.take("loud", BYTES_PER_SECOND) for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(TooMany, match="of one sender, .*: send fewer at once") as refused:
            pace.take("loud", BYTES_PER_SECOND)
        assert refused.value.retry_after == 2
    clock.now += 1
    assert pace.take("loud", LARGE + 1) == 1


def test_take_forgets_senders_whose_turn_has_passed() -> None:
    clock = Clock()
    pace = BodyPace(10, clock)
    for number in range(REMEMBERED + 1):
        pace.take(f"10.0.0.{number}", 2 * LARGE)
    clock.now += 1
    pace.take("loud", BYTES_PER_SECOND)
    assert len(pace._next) == 1
    assert pace.take("loud", BYTES_PER_SECOND) == 1


def test_turn_lets_few_bodies_of_one_sender_wait() -> None:
    """Hundreds of small waits took all connections: two tenants kept everybody out."""

    async def check() -> None:
        pace = BodyPace(1000, Clock())
        await pace.turn("loud", BYTES_PER_SECOND)
        waiting = [asyncio.create_task(pace.turn("loud", BYTES_PER_SECOND)) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(TooMany, match=f"{MOST_WAITING} bodies .* wait to be read: send fewer at once"):
            async with asyncio.timeout(1):
                await pace.turn("loud", 2 * LARGE)
        await pace.turn("loud", LARGE)
        await pace.turn("quiet", BYTES_PER_SECOND)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not pace._waiting

    asyncio.run(check())

"""Long work on the event loop that lets others run."""

import asyncio

import pytest

from lora_ops.serving import turns
from lora_ops.serving.turns import Kept


def test_in_turns_lets_others_run_between_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    order: list[int | str] = []

    async def work() -> None:
        async for item in turns.in_turns(range(3)):
            order.append(item)

    async def main() -> None:
        working = asyncio.create_task(work())
        for _ in range(3):
            await asyncio.sleep(0)
            order.append("other")
        await working

    asyncio.run(main())
    assert order == [0, "other", 1, "other", 2, "other"]


@pytest.mark.parametrize(("took", "kept"), [(0.01, 0.0), (0.5, 2.0)])
def test_kept_page_rests_four_times_as_long_as_it_took(took: float, kept: float) -> None:
    now, made = 0.0, 0

    async def make() -> bytes:
        nonlocal now, made
        now, made = now + took, made + 1
        return str(made).encode()

    async def main() -> None:
        nonlocal now
        page = Kept(make, clock=lambda: now)
        assert await asyncio.gather(page.page(), page.page()) == [b"1", b"1" if kept else b"2"]
        first = made
        now += kept + 0.001
        assert await page.page() == str(first + 1).encode()

    asyncio.run(main())


def test_kept_page_is_tried_again_after_a_failure() -> None:
    async def main() -> None:
        faults = [ValueError("the registry can't be read")]

        async def make() -> bytes:
            if faults:
                raise faults.pop()
            return b"page"

        page = Kept(make, seconds=60)
        with pytest.raises(ValueError):
            await page.page()
        assert await page.page() == b"page"

    asyncio.run(main())

"""Long work on the event loop that lets others run."""

import asyncio

import pytest

from lora_ops.serving import turns


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

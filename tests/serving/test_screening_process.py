"""The process that looks at answers before they leave: whose turn it is, and where it can't look."""

import asyncio
from pathlib import Path

import pytest

from lora_ops.serving.screening_process import NotScreened, ScreeningProcess


def test_screening_process_names_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identifiers are found without them; what asks for insults fails."""
    (tmp_path / "profanity_check").mkdir()
    (tmp_path / "profanity_check/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def ask() -> None:
        process = ScreeningProcess()
        assert [one.kind for one in (await process.find("jo@example.org")).identifiers] == ["e-mail address"]
        with pytest.raises(NotScreened, match="weights that find insults"):
            await process.find("hello", "hello")
        await process.close()

    asyncio.run(ask())


def test_screening_process_looks_by_turns_of_the_tenants() -> None:
    """A tenant's long line is no other's, and whoever has gone waits in none."""

    async def ask() -> list[str]:
        process = ScreeningProcess()
        order: list[str] = []
        await process.start()

        async def find(tenant: str) -> None:
            await process.find("All is well.", tenant=tenant)
            order.append(tenant)

        many = [asyncio.create_task(find("many")) for _ in range(40)]
        await asyncio.sleep(0)
        gone = [asyncio.create_task(find("gone")) for _ in range(5)]
        few = asyncio.create_task(find("few"))
        await asyncio.sleep(0)
        for one in [many[0], *gone]:  # the first is being looked at
            one.cancel()
        await asyncio.gather(few, *many, *gone, return_exceptions=True)
        await process.find("All is well.")
        await process.close()
        return order

    order = asyncio.run(ask())
    assert order.index("few") <= 2 and order.count("many") == 39 and "gone" not in order


def test_screening_process_that_was_closed_says_so() -> None:
    async def ask() -> None:
        process = ScreeningProcess()
        starting = asyncio.create_task(process.find("x"))
        await asyncio.sleep(0.01)
        await process.close()
        for look in (starting, process.find("y")):
            with pytest.raises(NotScreened, match="the gateway ends"):
                await look
        process = ScreeningProcess()
        await process.start()
        await process.close()
        with pytest.raises(NotScreened, match="the gateway ends"):
            await process.find("x")

    asyncio.run(ask())

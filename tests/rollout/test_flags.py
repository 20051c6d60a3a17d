"""The flags by OpenFeature: our provider's, and flagd's as a file and as a server."""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.flag_evaluation import Reason
from openfeature.schemas.protobuf.flagd.evaluation.v2 import evaluation_pb2, evaluation_pb2_grpc

from lora_ops.records.route import RouteRecord
from lora_ops.rollout import flags
from lora_ops.rollout.assignment import Requester
from lora_ops.rollout.flags import Choice, Flags, open_flags
from lora_ops.rollout.provider import RegistryProvider, TenantRoute, context
from lora_ops.settings.rollout import RolloutSettings

CANARY = {"number": 3, "percent": 100, "salt": "salt salt"}
STATES = {2: "production", 3: "canary"}
ANA = Requester("user ana", "ana")


def provider(**route: Any) -> RegistryProvider:
    found = TenantRoute(RouteRecord.model_validate(route), STATES.get, 17)
    return RegistryProvider({"finance": found}.get)


@dataclass
class Opened:
    """Started flags, and what they counted."""

    flags: Flags
    failures: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def opened(root: Path, **settings: Any) -> AsyncIterator[Opened]:
    failures: Counter[str] = Counter()

    def failed(tenant: str, reason: str) -> None:
        failures[reason] += 1

    made = open_flags(RolloutSettings.model_validate(settings), root, {}.get, failed)
    await made.start()
    try:
        yield Opened(made, failures)
    finally:
        made.close()


def flag_file(path: Path, **variants: Any) -> None:
    flag = {
        "state": "ENABLED",
        "variants": variants,
        "defaultVariant": "production",
        "targeting": {"fractional": [["production", 80], ["canary", 20]]},
    }
    path.write_text(json.dumps({"flags": {"adapter.finance": flag}}))


async def eventually(holds: Callable[[], Any], seconds: float = 5) -> float:
    """Wait until an awaitable condition holds; return how long that took."""
    started = time.monotonic()
    while not await holds():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("route", "who", "expected"),
    [
        ({}, ANA, ("production", "production", Reason.STATIC)),
        ({"canary": CANARY}, ANA, ("finance@3", "canary", Reason.SPLIT)),
        (
            {"canary": CANARY | {"percent": 1e-9}},
            ANA,
            ("production", "production", Reason.SPLIT),
        ),
        (
            {"segments": {"beta": 3}},
            Requester("user ana", "ana", "beta"),
            ("finance@3", "pinned", Reason.TARGETING_MATCH),
        ),
        ({"canary": CANARY, "stopped": (3,)}, ANA, ("production", "production", Reason.SPLIT)),
    ],
)
def test_provider_says_version_variant_reason_and_epoch(
    route: dict[str, Any], who: Requester, expected: tuple[str, str, Reason]
) -> None:
    found = provider(**route).resolve_string_details("adapter.finance", "x", context("finance", who))
    assert (found.value, found.variant, found.reason) == expected
    assert found.flag_metadata["epoch"] == 17


async def _choices(made: Flags, *who: Requester, tenant: str = "finance") -> list[Choice]:
    await made.start()
    found = [await made.choose(tenant, one) for one in who]
    made.close()
    return found


def test_flags_take_any_unit_of_our_provider() -> None:
    odd = ["", "\0", "half a character \ud83d", "x" * 1_000_000]
    found = asyncio.run(_choices(Flags(provider(canary=CANARY)), *map(Requester, odd)))
    assert found == [Choice("finance@3", "canary", "canary")] * 4


def test_flags_of_an_unknown_tenant_are_production() -> None:
    failures: list[tuple[str, str]] = []
    made = Flags(provider(), failed=lambda tenant, reason: failures.append((tenant, reason)))
    assert asyncio.run(_choices(made, ANA, tenant="nobody")) == [Choice()]
    assert failures == [("nobody", "flag_not_found")]


def test_flags_of_two_gateways_share_nothing() -> None:
    """Both are in one process, and the second one's provider and end change nothing for the first."""

    async def main() -> None:
        one, two = Flags(provider(canary=CANARY)), Flags(provider())
        await one.start()
        await two.start()
        assert (await one.choose("finance", ANA)).value == "finance@3"
        assert (await two.choose("finance", ANA)).value == "production"
        two.close()
        await asyncio.sleep(0.05)
        assert (await one.choose("finance", ANA)).value == "finance@3"
        one.close()

    asyncio.run(main())


FILE = {"provider": "flagd", "flagd": {"resolver": "file", "path": "flags.json", "deadline_ms": 100}}


def test_flags_of_a_file_split_stick_and_follow_changes(tmp_path: Path) -> None:
    flag_file(tmp_path / "flags.json", production="production", canary="canary")
    users = [Requester(f"user {number}") for number in range(1000)]

    async def main() -> None:
        async with opened(tmp_path, **FILE) as made:
            assert made.flags.problem is None
            first = [(await made.flags.choose("finance", who)).value for who in users]
            assert [(await made.flags.choose("finance", who)).value for who in users] == first
            assert 120 < first.count("canary") < 280 and set(first) == {"canary", "production"}
            flag_file(tmp_path / "flags.json", production="production", canary="finance@4")
            canary = users[first.index("canary")]

            async def follows() -> bool:
                return (await made.flags.choose("finance", canary)).value == "finance@4"

            assert await eventually(follows) < 1
            assert not made.failures

    asyncio.run(main())


def test_flags_of_a_broken_file_go_on_with_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "flags.json"
    flag_file(path, production="canary", canary="canary")

    async def main() -> None:
        async with opened(tmp_path, **FILE) as made:
            assert (await made.flags.choose("finance", ANA)).value == "canary"
            path.write_text('{"flags": {')

            async def noticed() -> bool:
                return made.flags.problem is not None

            await eventually(noticed)
            await asyncio.sleep(0.5)
            assert (await made.flags.choose("finance", ANA)).value == "canary"
            flag_file(path, production="production", canary="production")

            async def mended() -> bool:
                return (await made.flags.choose("finance", ANA)).value == "production"

            await eventually(mended)
            assert made.flags.problem is None

    asyncio.run(main())
    # The thread of the test before looks once more for its own file, which may be gone; this test's never is.
    said = [
        record
        for record in caplog.records
        if record.name == "openfeature.contrib" and record.getMessage() != "Provided file path not valid"
    ]
    assert len(said) <= 1 and not any(record.exc_info for record in said), "flagd says it at each look"


def test_flags_of_a_missing_file_are_production_until_it_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, **FILE) as made:
            assert await made.flags.choose("finance", ANA) == Choice()
            assert made.failures and "not ready" in str(made.flags.problem)
            flag_file(tmp_path / "flags.json", production="canary", canary="canary")

            async def follows() -> bool:
                return (await made.flags.choose("finance", ANA)).value == "canary"

            await eventually(follows)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ({"variants": {"a": 1, "b": 2}, "defaultVariant": "a"}, "type_mismatch"),
        ({"variants": {"a": {"no": 1}}, "defaultVariant": "a"}, "type_mismatch"),
        ({"variants": {"a": "canary"}, "defaultVariant": "a", "targeting": {"nonsense": [1]}}, None),
        (None, "flag_not_found"),
    ],
)
def test_flags_of_a_wrong_kind_are_production(
    tmp_path: Path, flag: dict[str, Any] | None, reason: str | None
) -> None:
    named = {"adapter.finance": {"state": "ENABLED", **flag}} if flag else {}
    (tmp_path / "flags.json").write_text(json.dumps({"flags": named}))

    async def main() -> None:
        async with opened(tmp_path, **FILE) as made:
            assert await made.flags.choose("finance", ANA) == Choice()
            assert sum(made.failures.values()) == 1
            assert reason is None or made.failures[reason] == 1

    asyncio.run(main())


def rpc(port: int, deadline_ms: int = 150) -> dict[str, Any]:
    return {"provider": "flagd", "flagd": {"resolver": "rpc", "port": port, "deadline_ms": deadline_ms}}


def test_flags_of_a_silent_server_cost_a_deadline_and_no_more(tmp_path: Path) -> None:
    """The event loop goes on, and after three failures nobody waits for it any more."""
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - before)

    async def main(port: int) -> None:
        async with opened(tmp_path, **rpc(port)) as made:
            ticking = asyncio.create_task(tick())
            waits = []
            for _ in range(60):
                started = time.monotonic()
                assert await made.flags.choose("finance", ANA) == Choice()
                waits.append(time.monotonic() - started)
            ticking.cancel()
            assert max(waits) < 1
            assert sum(wait > 0.05 for wait in waits) == flags.FAILURES
            assert max(gaps) < 0.15
            assert made.failures["paused"] == 60 - flags.FAILURES
            assert "does not answer" in str(made.flags.problem)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(silent.getsockname()[1]))


def test_flags_of_a_silent_source_are_production(tmp_path: Path) -> None:
    """The in-process resolver gets all flags by a stream, and evaluates what it has: nothing."""

    async def main(port: int) -> None:
        flagd = {"resolver": "in-process", "port": port, "deadline_ms": 150}
        async with opened(tmp_path, provider="flagd", flagd=flagd) as made:
            started = time.monotonic()
            assert await made.flags.choose("finance", ANA) == Choice()
            assert time.monotonic() - started < 0.05
            assert made.failures and "not ready" in str(made.flags.problem)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(silent.getsockname()[1]))


@dataclass
class Flagd(evaluation_pb2_grpc.ServiceServicer):
    """flagd's evaluation over gRPC, as far as our client asks it."""

    value: str = "canary"
    delay: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)

    def EventStream(self, request: object, call: grpc.ServicerContext) -> Iterator[object]:
        yield evaluation_pb2.EventStreamResponse(type="provider_ready")
        while call.is_active():
            time.sleep(0.02)

    def ResolveString(self, request: Any, call: grpc.ServicerContext) -> object:
        self.asked.append({"key": request.flag_key, **dict(request.context)})
        time.sleep(self.delay)
        return evaluation_pb2.ResolveStringResponse(value=self.value, reason="SPLIT", variant="canary")


@contextmanager
def flagd_server() -> Iterator[tuple[Flagd, int]]:
    servicer, server = Flagd(), grpc.server(ThreadPoolExecutor(8))
    evaluation_pb2_grpc.add_ServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, port
    finally:
        server.stop(None)


def test_flags_of_a_server_carry_unit_user_segment_and_tenant(tmp_path: Path) -> None:
    long = Requester("user " + "x" * 1_000_000, "x" * 1_000_000)

    async def main(servicer: Flagd, port: int) -> None:
        async with opened(tmp_path, **rpc(port, 2000)) as made:
            assert (await made.flags.choose("finance", Requester("user ana", "ana", "beta"))).value == "canary"
            servicer.value = ""  # as a flag that is off
            for who in (Requester("half a character \ud83d"), Requester("\0"), long):
                assert await made.flags.choose("finance", who) == Choice()
            assert not made.failures

    with flagd_server() as (servicer, port):
        asyncio.run(main(servicer, port))
    first, half, nul, cut = servicer.asked
    assert first == {
        "key": "adapter.finance",
        "targetingKey": "user ana",
        "user": "ana",
        "segment": "beta",
        "tenant": "finance",
    }
    assert half["targetingKey"].startswith("sha256:") and nul["targetingKey"] == "\0"
    assert len(cut["targetingKey"]) == len(cut["user"]) == 71


def test_flags_of_a_slow_server_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "PAUSE_SECONDS", 0.3)

    async def main(servicer: Flagd, port: int) -> None:
        async with opened(tmp_path, **rpc(port)) as made:
            servicer.delay = 0.5
            together = [made.flags.choose("finance", ANA) for _ in range(100)]
            started = time.monotonic()
            assert set(await asyncio.gather(*together)) == {Choice()}
            assert time.monotonic() - started < 1
            servicer.delay = 0

            async def answers() -> bool:
                return (await made.flags.choose("finance", ANA)).value == "canary"

            await eventually(answers)
            assert made.flags.problem is None

    with flagd_server() as (servicer, port):
        asyncio.run(main(servicer, port))


def test_flagd_caches_nothing() -> None:
    """Its cache is emptied by a stream: while that is broken, a flag that was turned off would go on."""
    from lora_ops.rollout.provider import flagd_provider
    from lora_ops.settings.rollout import FlagdSettings

    made = flagd_provider(FlagdSettings(resolver="rpc"), Path())
    assert isinstance(made, FlagdProvider) and made.resolver.cache is None
    made.shutdown()

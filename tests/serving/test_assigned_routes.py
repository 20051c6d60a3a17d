"""Who gets which version of a tenant: by its route or its flag, if that version may and can answer."""

import asyncio
import json
import shutil
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lora_ops.engines.protocol import Engine, EngineError
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.errors import Unavailable
from lora_ops.records.base_model import read_base_model
from lora_ops.registry import lifecycle, routes
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.rollout.assignment import Requester
from lora_ops.serving.assigned_routes import AssignedRoutes
from lora_ops.serving.events import read_events
from lora_ops.serving.router import OutOfService, Route, Router
from lora_ops.settings.rollout import RolloutSettings
from tests.conftest import write_params
from tests.registry.conftest import owners  # noqa: F401 - a fixture
from tests.serving.conftest import Clone, Served, eventually, make_clone, register, served

WHY: Any = {"actor": "ci", "reason": "next step"}
ANA = Requester("user ana", "ana")
USERS = [Requester(f"user {number}", str(number)) for number in range(300)]


@pytest.fixture(scope="module")
def staged_source(tiny_base: Path, owners: Owners, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A clone with finance@1 in production, finance@2 in canary and the candidate finance@3."""
    folder = tmp_path_factory.mktemp("assigned")
    root = make_clone(tiny_base, owners, folder)
    write_params(root, {"registry.evidence": {"rollout": "optional"}})  # people give versions users
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "production")
        clone.story(registry).to("finance@2", "canary")
        register(registry, clone.base, folder / "f3", "finance", 4)
    return root


@pytest.fixture
def staged(staged_source: Path, tmp_path: Path) -> Clone:
    root = tmp_path / "clone"
    shutil.copytree(staged_source, root)
    return Clone(root, root / "models/base")


@pytest.fixture
def reader(staged: Clone) -> Iterator[Registry]:
    registry = open_registry(staged.root)
    yield registry
    registry.close()


class Asked:
    """Assigned routes over a registry, asked without a gateway."""

    def __init__(self, clone: Clone, reader: Registry, **settings: Any) -> None:
        self.router = Router(reader, read_base_model(clone.base), allow_candidates=False)
        self.failures: Counter[str] = Counter()
        self.unready: dict[str, Any] = {}
        self.started = False
        self.assigned = AssignedRoutes(
            self.router,
            RolloutSettings.model_validate(settings),
            clone.root,
            lambda version: self.unready.get(version.id),
            lambda tenant, reason: self.failures.update([reason]),
        )

    def __call__(self, who: Requester = ANA, model: str = "finance") -> Route:
        return self.all([who], model)[0]

    def all(self, who: list[Requester], model: str = "finance") -> list[Route]:
        async def main() -> list[Route]:
            if not self.started:
                await self.assigned.start()
            self.started = True
            return [await self.assigned.route(model, one) for one in who]

        return asyncio.run(main())

    def named(self, who: Requester = ANA, model: str = "finance") -> tuple[str, str]:
        route = self(who, model)
        return route.name, route.decision


@pytest.fixture
def asked(staged: Clone, reader: Registry) -> Iterator[Asked]:
    made = Asked(staged, reader)
    yield made
    made.assigned.close()


@pytest.fixture
def writer(staged: Clone) -> Iterator[Registry]:
    with staged.registry() as opened:
        yield opened


def test_canary_answers_its_share_and_keeps_its_users(asked: Asked, writer: Registry) -> None:
    assert asked.named() == ("finance@1", "production")
    before: set[str] = set()
    for percent in (5, 25, 100):
        routes.set_canary(writer, "finance@2", percent, **WHY)
        found = asked.all(USERS)
        answered = {who.unit for who, route in zip(USERS, found, strict=True) if route.name == "finance@2"}
        assert before < answered
        assert all(
            route.decision == ("canary" if route.name == "finance@2" else "production") for route in found
        )
        assert {route.epoch for route in found} == {writer.log.head().seq}
        before = answered
    assert len(before) == len(USERS)
    assert asked.named(model="finance@1") == ("finance@1", "pinned")
    assert asked.named(model="base") == ("tiny-random", "base")
    routes.clear(writer, "finance", "canary", **WHY)
    assert asked.named() == ("finance@1", "production")


def test_route_names_the_arm_of_each_unit(asked: Asked, writer: Registry) -> None:
    routes.set_canary(writer, "finance@2", 25, **WHY)
    arms = Counter((route.arm, route.name) for route in asked.all(USERS))
    assert set(arms) == {("canary", "finance@2"), ("control", "finance@1"), (None, "finance@1")}
    assert 40 < arms["canary", "finance@2"] < 110 and 40 < arms["control", "finance@1"] < 110


@pytest.mark.parametrize("percents", [(100, 1e-9), (1e-9, 100)])
def test_route_that_changes_while_it_is_read_is_decided_again(
    asked: Asked, writer: Registry, monkeypatch: pytest.MonkeyPatch, percents: tuple[float, float]
) -> None:
    """Headers and event named the new epoch beside the version that the old one had given."""
    routes.set_canary(writer, "finance@2", percents[0], **WHY)
    read, left = Router._find, [percents[1]]

    def changed(self: Router, model: str) -> Route:
        if left:
            routes.set_canary(writer, "finance@2", left.pop(), **WHY)
        return read(self, model)

    monkeypatch.setattr(Router, "_find", changed)
    route = asked()
    assert route.epoch == writer.log.head().seq
    assert route.name == ("finance@2" if percents[1] == 100 else "finance@1")


def test_pins_come_first_and_a_session_is_no_user(asked: Asked, writer: Registry) -> None:
    routes.pin(writer, "finance@2", users=["ana"], segments=["beta"], **WHY)
    assert asked.named(ANA) == ("finance@2", "pinned_user")
    assert asked.named(Requester("session ana")) == ("finance@1", "production")
    assert asked.named(Requester("key 1", None, "beta")) == ("finance@2", "segment")
    routes.unpin(writer, "finance", users=["ana"], **WHY)
    assert asked.named(ANA) == ("finance@1", "production")


def test_stop_takes_the_canary_out_and_resume_brings_it_back(asked: Asked, writer: Registry) -> None:
    routes.set_canary(writer, "finance@2", 100, **WHY)
    routes.pin(writer, "finance@2", segments=["beta"], **WHY)
    assert asked.named()[1] == "canary"
    routes.stop(writer, "finance@2", **WHY)
    for who in (ANA, Requester("user ana", "ana", "beta")):
        assert asked.named(who) == ("finance@1", "production")
    with pytest.raises(Exception, match="finance@2 was stopped: .*team of 'finance'.*route show finance"):
        asked(model="finance@2")
    routes.resume(writer, "finance@2", **WHY)
    assert asked.named()[1] == "canary"


def test_stop_of_production_is_out_of_service_for_its_users(asked: Asked, writer: Registry) -> None:
    """Nothing takes its place, and the canary's users keep their version."""
    routes.set_canary(writer, "finance@2", 25, **WHY)
    found = {one.unit: one for one in USERS}
    canary = next(one for one in USERS if asked(one).name == "finance@2")
    routes.stop(writer, "finance@1", **WHY)
    assert asked.named(canary) == ("finance@2", "canary")
    other = next(one for one in found.values() if one.unit not in {canary.unit} and _refused(asked, one))
    with pytest.raises(OutOfService, match="finance@1 was stopped"):
        asked(other)


def _refused(asked: Asked, who: Requester) -> bool:
    try:
        return asked(who).name != "finance@2"
    except OutOfService:
        return True


def test_revoked_canary_gives_production_at_the_next_request(asked: Asked, writer: Registry) -> None:
    routes.set_canary(writer, "finance@2", 100, **WHY)
    assert asked.named()[0] == "finance@2"
    lifecycle.revoke(writer, "finance@2", actor="ben", reason="leaks")
    assert asked.named() == ("finance@1", "production")


@pytest.mark.parametrize("why", ["loading", "failed"])
def test_unready_canary_gives_production_and_says_so(asked: Asked, writer: Registry, why: str) -> None:
    routes.set_canary(writer, "finance@2", 100, **WHY)
    asked.unready["finance@2"] = why
    route = asked()
    assert (route.name, route.decision) == ("finance@1", "production")
    assert (route.fallback, route.instead_of, route.arm) == (why, "finance@2", "canary")
    del asked.unready["finance@2"]
    assert (asked().name, asked().fallback) == ("finance@2", None)


def test_unready_canary_waits_where_nothing_else_may_answer(asked: Asked, writer: Registry) -> None:
    routes.set_canary(writer, "finance@2", 100, **WHY)
    routes.stop(writer, "finance@1", **WHY)
    asked.unready["finance@2"] = "loading"
    assert asked.named() == ("finance@2", "canary")


def test_require_open_keeps_a_request_on_its_version(asked: Asked, writer: Registry) -> None:
    routes.set_canary(writer, "finance@2", 100, **WHY)
    running = asked()
    routes.clear(writer, "finance", "canary", **WHY)
    asyncio.run(asked.router.require_open(running))
    assert asked.named()[0] == "finance@1"
    routes.stop(writer, "finance@2", **WHY)
    with pytest.raises(OutOfService, match="finance@2 was stopped"):
        asyncio.run(asked.router.require_open(running))


def test_route_of_a_damaged_registry_goes_on_as_verified(asked: Asked, staged: Clone, writer: Registry) -> None:
    """A row that somebody edits moves nobody."""
    routes.set_canary(writer, "finance@2", 100, **WHY)
    assert asked.named()[1] == "canary"
    with sqlite3.connect(staged.root / ".registry/registry.sqlite") as db:
        db.execute("DELETE FROM routes")
    assert asked.named() == ("finance@2", "canary")
    assert asked.router.damage()


def test_canary_that_cannot_be_read_is_tried_again(
    asked: Asked, writer: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry was busy for a moment: production answers, and no later than a second the canary does."""
    routes.set_canary(writer, "finance@2", 100, **WHY)
    with monkeypatch.context() as patch:
        read = Router._load

        def busy(self: Router, reference: str) -> Any:
            if reference == "finance@2":
                raise Unavailable("The registry is busy.")
            return read(self, reference)

        patch.setattr(Router, "_load", busy)
        routes.pin(writer, "finance@2", segments=["beta"], **WHY)  # all is read again
        assert asked.named() == ("finance@1", "production")
    assert asked.named() == ("finance@1", "production")
    eventually(lambda: asked.named() == ("finance@2", "canary"), seconds=3)


def flag(staged: Clone, value: str, **metadata: str) -> dict[str, Any]:
    one = {"state": "ENABLED", "variants": {"a": value}, "defaultVariant": "a", "metadata": metadata}
    flags = {"adapter.finance": one}
    (staged.root / "flags.json").write_text(json.dumps({"flags": flags}))
    return {"provider": "flagd", "flagd": {"resolver": "file", "path": "flags.json"}}


@pytest.fixture
def flagged(staged: Clone, reader: Registry) -> Iterator[Callable[[str], Asked]]:
    made: list[Asked] = []

    def ask(value: str, **metadata: str) -> Asked:
        made.append(Asked(staged, reader, **flag(staged, value, **metadata)))
        return made[-1]

    yield ask
    for one in made:
        one.assigned.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("production", ("finance@1", "production", None)),
        ("finance@1", ("finance@1", "production", None)),
        ("canary", ("finance@2", "canary", "canary")),
        ("finance@2", ("finance@2", "canary", "canary")),
    ],
)
def test_flag_says_who_answers(
    flagged: Callable[[str], Asked], writer: Registry, value: str, expected: tuple[str, str, str | None]
) -> None:
    routes.set_canary(writer, "finance@2", 1, **WHY)
    asked = flagged(value)
    route = asked()
    assert (route.name, route.decision, route.arm) == expected
    assert not asked.failures
    assert asked.named(model="finance@2") == ("finance@2", "pinned")


@pytest.mark.parametrize(("arm", "expected"), [("canary", None), ("control", "control"), ("x", None)])
def test_flag_counts_production_for_no_canary(
    flagged: Callable[..., Asked], writer: Registry, arm: str, expected: str | None
) -> None:
    """What production answers would count as errors of the canary."""
    routes.set_canary(writer, "finance@2", 100, **WHY)
    route = flagged("production", arm=arm, decision="canary")()
    assert (route.name, route.decision, route.arm) == ("finance@1", "production", expected)


def test_flag_may_name_a_canary_without_a_share(flagged: Callable[[str], Asked]) -> None:
    """The flag decides for whom; that its state is canary decides that it may."""
    assert flagged("finance@2").named() == ("finance@2", "flag")


WRONG = [
    "finance@99",
    "finance@3",
    "healthcare@1",
    "finance@canary",
    "canary",
    "finance",
    "x" * 5000,
    "@",
    "a\0b",
]


@pytest.mark.parametrize("value", WRONG)
def test_flag_that_names_what_may_not_answer_is_production(
    flagged: Callable[[str], Asked], caplog: pytest.LogCaptureFixture, value: str
) -> None:
    """Unknown, a candidate, another tenant's, an alias, no canary, no version at all."""
    asked = flagged(value)
    found = asked.all([ANA] * 5)
    assert {(route.name, route.decision) for route in found} == {("finance@1", "production")}
    assert asked.failures == {"refused": 5}
    assert sum("which may not answer" in line for line in caplog.messages) == 1


def test_flag_that_names_a_stopped_version_is_production(
    flagged: Callable[[str], Asked], writer: Registry
) -> None:
    asked = flagged("finance@2")
    assert asked.named()[0] == "finance@2"
    routes.stop(writer, "finance@2", **WHY)
    assert asked.named() == ("finance@1", "production")
    routes.resume(writer, "finance@2", **WHY)
    lifecycle.revoke(writer, "finance@2", actor="ben", reason="leaks")
    assert asked.named() == ("finance@1", "production")


def test_flag_of_a_silent_server_gives_production_in_time(staged: Clone, reader: Registry) -> None:
    """Three requests wait for their deadline, and the others for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        flagd = {"resolver": "rpc", "port": silent.getsockname()[1], "deadline_ms": 100}
        asked = Asked(staged, reader, provider="flagd", flagd=flagd)
        asked.all([ANA] * 3)
        started = time.monotonic()
        found = asked.all([ANA] * 50)
        assert time.monotonic() - started < 0.5
        assert {(route.name, route.decision, route.arm) for route in found} == {
            ("finance@1", "production", None)
        }
        assert asked.failures["timeout"] + asked.failures["general"] == 3 and asked.failures["paused"] == 50
        assert "does not answer" in str(asked.assigned.problem)
        asked.assigned.close()


ROOM_FOR_ONE = 9_000  # bytes: finance@1 takes 8,192 and finance@2 3,584
BODY = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 3}


def ask(gateway: Served, body: dict[str, Any] | None = None, **headers: str) -> Any:
    with gateway.http() as http:
        return http.post("/v1/completions", json={**BODY, **(body or {})}, headers=headers)


def answered(gateway: Served, body: dict[str, Any] | None = None, **headers: str) -> tuple[str, str]:
    told = ask(gateway, body, **headers).headers
    return told["x-lora-ops-adapter"], told["x-lora-ops-route"]


class SlowEngine(TorchEngine):
    """An engine that loads finance@2 as slowly as it is told, or not at all."""

    delay = 0.0
    fails = False

    async def load(self, name: str, *args: Any, **more: Any) -> Any:
        if name == "finance@2":
            await asyncio.sleep(self.delay)
            if self.fails:
                raise EngineError("no room on the device")
        return await super().load(name, *args, **more)


@pytest.fixture
def slow(tiny_base: Path) -> SlowEngine:
    return SlowEngine(tiny_base, max_batch=16, kv_tokens=8192, threads=1)


@contextmanager
def canaried(clone: Clone, engine: Engine, percent: float = 100, **serving: Any) -> Iterator[Served]:
    with clone.registry() as registry:
        routes.set_canary(registry, "finance@2", percent, **WHY)
    with served(clone.root, clone.settings(**serving), engine) as gateway:
        yield gateway


def test_two_gateways_follow_a_route_at_once(staged: Clone, tiny_base: Path, engine: Engine) -> None:
    """Each change is seen by the next request at both, without a restart."""
    other = TorchEngine(tiny_base, max_batch=16, kv_tokens=8192, threads=1)
    with (
        canaried(staged, engine) as one,
        served(staged.root, staged.settings(), other) as two,
        staged.registry() as writer,
    ):
        for gateway in (one, two):
            eventually(lambda gateway=gateway: answered(gateway) == ("finance@2", "canary"))
        for change, expected in (
            (lambda: routes.clear(writer, "finance", "canary", **WHY), ("finance@1", "production")),
            (lambda: routes.set_canary(writer, "finance@2", 100, **WHY), ("finance@2", "canary")),
            (lambda: routes.stop(writer, "finance@2", **WHY), ("finance@1", "production")),
        ):
            change()
            assert answered(one) == answered(two) == expected


def test_headers_say_version_decision_and_epoch_on_errors_too(staged: Clone, engine: Engine) -> None:
    with canaried(staged, engine) as gateway, staged.registry() as writer:
        eventually(lambda: answered(gateway) == ("finance@2", "canary"))
        epoch = str(writer.log.head().seq)
        expected = {"adapter": "finance@2", "route": "canary", "epoch": epoch}
        for body, status in (
            ({}, 200),
            ({"stream": True}, 200),
            ({"prompt": "a" * 4000}, 400),
            ({"n": 2}, 200),
        ):
            response = ask(gateway, body)
            assert response.status_code == status, response.text
            assert {name: response.headers[f"x-lora-ops-{name}"] for name in expected} == expected
        routes.stop(writer, "finance@2", **WHY)
        routes.stop(writer, "finance@1", **WHY)
        response = ask(gateway)
        assert response.status_code == 503 and "finance@1 was stopped" in response.json()["error"]["message"]
        assert response.headers["x-lora-ops-adapter"] == "finance@1"
        assert response.headers["x-lora-ops-epoch"] == str(writer.log.head().seq)
        assert ask(gateway, {"model": "finance@2"}).status_code == 403
        assert "x-lora-ops-adapter" not in gateway.http().get("/v1/models").headers


def test_event_groups_by_unit_and_says_arm_and_route(staged: Clone, engine: Engine) -> None:
    with canaried(staged, engine) as gateway:
        eventually(lambda: answered(gateway, {"user": "warm"}) == ("finance@2", "canary"))
        for body, headers in (
            ({"user": "ana"}, {}),
            ({"user": "ana", "n": 3}, {}),
            ({}, {"x-session-id": "ana"}),
            ({}, {}),
            ({}, {}),
        ):
            ask(gateway, body, **headers)
    found = read_events(staged.root / ".serving/events").tail(5)
    assert set(found["route"]) == {"canary"} and set(found["arm"]) == {"canary"}
    units, users = list(found["unit"]), list(found["user"])
    assert units[0] == units[1] == users[0] and units[2] == users[2]
    assert units[3] == units[4] and len(set(units)) == 3
    assert found["user"].isna().sum() == 2 and "ana" not in "".join(units)


def test_slow_canary_never_makes_its_users_wait(staged: Clone, slow: SlowEngine) -> None:
    slow.delay = 3
    with canaried(staged, slow, warm=("finance@1",)) as gateway:
        started = time.monotonic()
        response = ask(gateway)
        assert time.monotonic() - started < 2, "not even the start waits for it"
        assert response.headers["x-lora-ops-adapter"] == "finance@1"
        assert response.headers["x-lora-ops-fallback"] == "loading"
        assert gateway.metric("lora_ops_fallbacks_total", adapter="finance@2", reason="loading") == 1
        eventually(lambda: answered(gateway) == ("finance@2", "canary"))
    first = read_events(staged.root / ".serving/events").iloc[0]
    assert (first["fallback"], first["instead_of"], first["arm"]) == ("loading", "finance@2", "canary")


def test_canary_that_cannot_be_loaded_fails_nobody(staged: Clone, slow: SlowEngine) -> None:
    slow.fails = True
    with canaried(staged, slow) as gateway:
        eventually(lambda: ask(gateway).headers.get("x-lora-ops-fallback") == "failed")
        assert {ask(gateway).status_code for _ in range(10)} == {200}
        assert gateway.metric("lora_ops_fallbacks_total", reason="failed") > 0
        assert gateway.http().get("/ready").status_code == 200


@pytest.mark.parametrize("warm", [("finance@1",), ()])
def test_canary_takes_no_room_from_production(staged: Clone, engine: Engine, warm: tuple[str, ...]) -> None:
    """The memory is for one adapter: the gateway starts, and production keeps answering."""
    with canaried(staged, engine, percent=1e-9, adapter_memory=ROOM_FOR_ONE, warm=warm) as gateway:
        end = time.monotonic() + 3  # housekeeping looks each second
        while time.monotonic() < end:
            response = ask(gateway)
            assert (response.status_code, response.headers["x-lora-ops-adapter"]) == (200, "finance@1")
        assert gateway.metric("lora_ops_adapter_loads_total", adapter="finance@2") <= (0 if warm else 1)
        assert gateway.metric("lora_ops_adapter_loads_total", adapter="finance@1") <= (1 if warm else 2)


@pytest.mark.parametrize("segment", ["two words", "a/b", "x" * 65, ""])
def test_segment_of_another_form_is_refused(staged: Clone, engine: Engine, segment: str) -> None:
    with canaried(staged, engine) as gateway:
        response = ask(gateway, **{"x-lora-segment": segment})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(
            "The header x-lora-segment must be 1 to 64 letters"
        )


def test_segment_chooses_the_version_that_it_is_pinned_to(staged: Clone, engine: Engine) -> None:
    with canaried(staged, engine, percent=1e-9) as gateway, staged.registry() as writer:
        routes.pin(writer, "finance@2", segments=["beta"], **WHY)
        eventually(lambda: answered(gateway, **{"x-lora-segment": "beta"}) == ("finance@2", "segment"))
        assert answered(gateway, **{"x-lora-segment": "other"}) == ("finance@1", "production")

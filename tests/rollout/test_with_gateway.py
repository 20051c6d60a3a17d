"""A rollout on a real gateway: users send requests, and the controller takes the version on or back."""

import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from lora_ops.engines.protocol import Chunk, EngineError, Generation
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.records.rollout import Rollout
from lora_ops.registry import rollouts
from lora_ops.registry.store import Registry
from lora_ops.rollout.controller import Round, one_round, start
from lora_ops.rollout.gateways import GatewayProbe
from lora_ops.rollout.shadow_verdict import settings_plan
from lora_ops.rollout.traffic import GatewayTraffic
from lora_ops.serving.requests import SHADOW_COPY
from lora_ops.settings.params import load_settings
from lora_ops.settings.rollout import ProbeSettings
from lora_ops.settings.serving import TenantServing
from tests.conftest import write_params
from tests.serving.conftest import Clone, Served, clone_source, eventually, served  # noqa: F401 - fixtures

SETTINGS = {
    "rollout.shadow": {"percent": 100, "hours": 0, "requests": 20},
    "rollout.canary": {"steps": [50], "hours": 0, "users": 20, "window_seconds": 0.5, "first_p95_seconds": 60},
    "rollout.alpha": 0.2,  # of few users nobody can tell a P95
    # Both adapters are random, and answers of a few tokens take what the machine gives them.
    "rollout.margins": {
        "errors": 0.3,
        "task": 0.9,
        "insults": 0.3,
        "identifiers": 0.3,
        "p95_latency": 20.0,
        "tokens": 9.0,
    },
    "registry.evidence": {
        "hours": 0,
        "requests": 20,
        "regression": False,
        "release_notes": False,
        "policy": "file",
    },
}


@pytest.fixture
def staged(clone_source: Path, tmp_path: Path) -> Clone:  # noqa: F811
    """A clone with finance@1 in production, and finance@2 validated and reviewed."""
    root = tmp_path / "clone"
    shutil.copytree(clone_source, root)
    write_params(root, SETTINGS)
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        clone.story(registry).to_rollout()
    return clone


@pytest.fixture
def gateway(staged: Clone) -> Iterator[Served]:
    engine = TorchEngine(staged.base)
    with served(staged.root, staged.settings(), engine) as running:
        yield running


def ask(gateway: Served, users: range, model: str = "finance", tokens: int = 4) -> list[httpx.Response]:
    """Let each of the users send one request."""

    def one(user: int) -> httpx.Response:
        body = {"model": model, "prompt": f"AIRBNB {user}", "max_tokens": tokens, "user": f"user {user}"}
        return httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=60, verify=False)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, users))


def evidence(registry: Registry, clone: Clone) -> GatewayTraffic:
    settings = load_settings(clone.root)
    folder = clone.root / settings.serving.path
    return GatewayTraffic(registry, folder, 0.5, probe=GatewayProbe(folder, settings.rollout.probe))


def look(registry: Registry, traffic: GatewayTraffic, adapter: str = "finance@2") -> Round:
    found = rollouts.rollout_of(registry, adapter)
    assert found
    return one_round(registry, found, traffic)


def test_rollout_flows_with_the_traffic(staged: Clone, gateway: Served) -> None:
    settings = load_settings(staged.root)
    with staged.registry() as registry:
        traffic = evidence(registry, staged)
        rollout: Rollout = start(registry, "finance@2", settings.rollout, actor="oncall", reason="better")
        assert look(registry, traffic).rollout.phase == "shadow"
        answers = ask(gateway, range(60))
        assert {one.headers["x-lora-ops-adapter"] for one in answers} == {"finance@1"}

        later = itertools.count(5000, 40)

        def comes_to(phase: str) -> Callable[[], bool]:
            """Let new users come before each look: how many a verdict needs depends on their answers' times."""

            def came() -> bool:
                if look(registry, traffic).rollout.phase == phase:
                    return True
                first = next(later)
                ask(gateway, range(first, first + 40))
                return False

            return came

        eventually(comes_to("canary"), seconds=120)
        answers = ask(gateway, range(1000, 1120))
        by_version = {one.headers["x-lora-ops-adapter"] for one in answers}
        assert by_version == {"finance@1", "finance@2"} and {one.status_code for one in answers} == {200}
        again = ask(gateway, range(1000, 1020))
        assert [one.headers["x-lora-ops-adapter"] for one in again] == [
            one.headers["x-lora-ops-adapter"] for one in answers[:20]
        ]

        eventually(comes_to("ready"), seconds=120)
        staged.story(registry).approve("finance@2")
        assert look(registry, traffic).rollout.phase == "done"
        assert {one.headers["x-lora-ops-adapter"] for one in ask(gateway, range(2000, 2010))} == {"finance@2"}
        assert rollout.plan.against == "finance@1"


@pytest.fixture
def unreleased(clone_source: Path, tmp_path: Path) -> Clone:  # noqa: F811
    """A clone with finance@1 validated and reviewed, and nothing in production."""
    root = tmp_path / "clone"
    shutil.copytree(clone_source, root)
    write_params(root, SETTINGS)
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        story = clone.story(registry)
        story.to("finance@1", "validated")
        story.file("human_evaluation", about="finance@1")
    return clone


def test_first_version_flows_without_production(unreleased: Clone) -> None:
    """Its users get it step by step, and the others the error that they got before."""
    settings = load_settings(unreleased.root)
    # Random weights name no label by themselves, and without a control group that is a breach.
    held = unreleased.settings(allow_candidates=False, tenants={"finance": TenantServing(labels_only=True)})
    engine = TorchEngine(unreleased.base)
    with (
        served(unreleased.root, held, engine) as gateway,
        unreleased.registry() as registry,
    ):
        traffic = evidence(registry, unreleased)
        refused = {one.status_code for one in ask(gateway, range(3))}
        assert refused <= {403, 404}
        start(registry, "finance@1", settings.rollout, actor="oncall", reason="the first one")
        assert look(registry, traffic, "finance@1").rollout.phase == "shadow"
        assert {one.status_code for one in ask(gateway, range(3))} == refused
        assert {one.status_code for one in ask(gateway, range(30), "finance@1", 30)} == {200}
        eventually(lambda: look(registry, traffic, "finance@1").rollout.phase == "canary", seconds=60)
        later = itertools.count(5000, 40)

        def is_ready() -> bool:
            first = next(later)
            answers = ask(gateway, range(first, first + 40), tokens=30)
            assert {one.status_code for one in answers} == {200, *refused}
            done = look(registry, traffic, "finance@1")
            assert done.rollout.is_running, done.said
            return done.rollout.phase == "ready"

        eventually(is_ready, seconds=120)
        unreleased.story(registry).approve("finance@1")
        assert look(registry, traffic, "finance@1").rollout.phase == "done"
        answers = ask(gateway, range(20))
        assert {one.headers["x-lora-ops-adapter"] for one in answers} == {"finance@1"}


async def refuse(generation: Generation) -> AsyncIterator[Chunk]:
    raise EngineError("no such adapter")
    yield


def test_probe_finds_what_is_loaded_and_fails(
    staged: Clone, gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM did: it says that the adapter is loaded, and the first request for it fails."""
    with staged.registry() as registry:
        staged.story(registry).to("finance@2", "shadow")
        plan = settings_plan(registry, "finance@2", load_settings(staged.root).rollout)
    probe = GatewayProbe(staged.root / ".serving", ProbeSettings(seconds=60))
    with monkeypatch.context() as patch:
        patch.setattr(gateway.engine, "generate", refuse)
        said = probe.unanswered("finance@2", plan.content_digest)
    assert said and said.startswith(f"{gateway.url} does not answer with finance@2 (5")
    assert probe.unanswered("finance@2", plan.content_digest) is None


def test_probe_is_no_request_of_a_first_version(unreleased: Clone) -> None:
    """A canary would go back for a probe that failed while its gateway started."""
    settings = load_settings(unreleased.root)
    engine = TorchEngine(unreleased.base)
    with served(unreleased.root, unreleased.settings(), engine) as gateway, unreleased.registry() as registry:
        traffic = evidence(registry, unreleased)
        rollout = start(registry, "finance@1", settings.rollout, actor="oncall", reason="the first one")
        rollout = look(registry, traffic, "finance@1").rollout
        assert traffic.unanswered(rollout) is None
        copy = {"model": "finance@1", "prompt": "AIRBNB", "max_tokens": 4}
        url = f"{gateway.url}/v1/completions"
        assert (
            httpx.post(url, json=copy, headers={SHADOW_COPY: "1"}, timeout=60, verify=False).status_code == 200
        )
        ask(gateway, range(1), "finance@1")
        events = unreleased.root / ".serving/events"
        eventually(lambda: sum(file.read_text().count("\n") for file in events.glob("*.jsonl")) == 3)
        registry.clock = lambda: datetime.now(UTC) + timedelta(minutes=1)  # late lines are waited for
        assert "1 requests in 1 different hours asked for" in traffic.named_look(rollout).verdict.reason

"""A gateway over the registry of a team at W&B: what another machine changes holds here without a restart."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.registry import SigningSettings
from tests.registry.conftest import connect, owners, server  # noqa: F401 - fixtures
from tests.registry.test_shared import fingerprint
from tests.serving.conftest import Clone, register, served

Connect = Callable[..., WandbProject]


@pytest.fixture
def colleague(clone: Clone, connect: Connect, owners: Owners, tmp_path: Path) -> Iterator[SharedRegistry]:  # noqa: F811
    """The registry on another machine; the clone's is shared too, and the two trust each other."""
    here, there = clone.root / ".registry", tmp_path / "there"
    keys = [fingerprint(here), fingerprint(there)]
    params = clone.root / "params.yaml"
    shared = "  backend: wandb\n  wandb: {retries: 1, refresh_seconds: 0.1}\n"
    text = params.read_text()
    assert "  backend: embedded\n" in text
    params.write_text(text.replace("  backend: embedded\n", f"{shared}  signing: {{trusted_keys: {keys}}}\n"))
    signing = SigningSettings(trusted_keys=tuple(keys))
    with closing(SharedRegistry(there, connect(), owners=owners, signing=signing)) as registry:
        with clone.registry():  # sends what the clone had before
            pass
        registry.pull()
        registry.mirror.sync()
        yield registry


def test_what_another_machine_registers_and_rejects_holds_in_a_running_gateway(
    clone: Clone, engine: Engine, colleague: SharedRegistry, tiny_base: Path, tmp_path: Path
) -> None:
    with served(clone.root, clone.settings(), engine) as gateway:
        http = gateway.http()

        def ask(model: str) -> int:
            return http.post(
                "/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 2}
            ).status_code

        def ends_with(model: str, status: int) -> None:
            deadline = time.monotonic() + 60
            while ask(model) != status:
                assert time.monotonic() < deadline
                time.sleep(0.05)

        assert ask("finance@3") == 404
        assert register(colleague, tiny_base, tmp_path / "f3", "finance", 9) == "finance@3"
        ends_with("finance@3", 200)  # its package was fetched, too
        lifecycle.reject(colleague, "finance@3", actor="ben", reason="biased")
        ends_with("finance@3", 403)
        assert ask("finance@2") == 200

"""A gateway over the registry of a team at W&B: what another machine changes holds here without a restart."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.registry import SigningSettings
from tests.conftest import ROOT
from tests.registry.conftest import connect, owners, server  # noqa: F401 - fixtures
from tests.registry.test_shared import fingerprint
from tests.serving.conftest import Clone, eventually, register, served
from tests.wandb_server import WandbServer

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


def test_revocation_holds_in_a_gateway_while_wandb_is_down(
    clone: Clone,
    engine: Engine,
    colleague: SharedRegistry,
    server: WandbServer,  # noqa: F811
) -> None:
    def ask(url: str, model: str) -> tuple[int, str]:
        answer = httpx.post(
            f"{url}/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 2}, verify=False
        )
        return answer.status_code, answer.text

    folders = [clone.root / place / "holds" for place in (".registry", ".serving")]
    with served(clone.root, clone.settings(), engine) as gateway:
        assert ask(gateway.url, "finance@2")[0] == 200
        server.fail(".", times=10**6)
        done = subprocess.run(
            [sys.executable, "-m", "lora_ops", "registry", "revoke", "finance@2"]
            + ["--reason", "it leaks", "--actor", "ben", "--json"],
            env={**os.environ, "LORA_OPS_ROOT": str(clone.root), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        held = json.loads(done.stdout)["held"]
        assert (held["actor"], held["reason"]) == ("ben", "it leaks")
        assert "can't be reached" in held["not_sent"]
        for model in ("finance@2", "finance"):  # the alias still names it
            status, text = ask(gateway.url, model)
            assert (status, "ben" in text) == (403, False)
            assert "finance@2 was revoked: it does not answer any more" in text
        assert ask(gateway.url, "finance@1")[0] == 200
    with served(clone.root, clone.settings(), TorchEngine(clone.base, threads=1)) as gateway:
        assert ask(gateway.url, "finance@2")[0] == 403
        assert [len(list(folder.iterdir())) for folder in folders] == [1, 1]
        server.faults.clear()
        eventually(lambda: not any(any(folder.iterdir()) for folder in folders), 120)
        assert ask(gateway.url, "finance@2")[0] == 403
    colleague.pull()
    assert colleague.get("finance@2").state == "revoked"
    [entry] = [one for one in colleague.log.entries() if one.action == "revoked"]
    assert (entry.actor, entry.body["held_at"]) == ("ben", held["at"])

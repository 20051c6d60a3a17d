"""What the serving tests share: a clone with a registry of real adapters, and real gateways on loopback."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn
from openai.types import CompletionUsage

from lora_ops.engines.protocol import Engine
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.records.base_model import read_base_model
from lora_ops.registry import store
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.serving.connection_budget import CONNECTIONS
from lora_ops.serving.server import bind, check_exposure, serve
from lora_ops.settings.params import Settings, load_settings
from tests.conftest import ROOT
from tests.engines.torch_engine.models import rounded
from tests.registry.conftest import (  # noqa: F401 - two fixtures
    Story,
    build_package,
    evaluated,
    owners,
    resampled_once,
)

torch.set_num_threads(1)

SYSTEM = "Name the merchant category."


def make_adapter(base: Path, folder: Path, seed: int, rank: int = 4, modules: str = "all-linear") -> Path:
    """A LoRA adapter of the tiny model as PEFT saves it, with random weights large enough to change answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    targets: str | list[str] = modules if modules == "all-linear" else modules.split(",")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return rounded(folder)


def with_params(params: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a package with those changed that its results don't depend on."""
    kept = {name: params["data"][name] for name in ("published", "task", "bias_columns")}
    return {
        **params,
        "train": {**params["train"], **changed.get("train", {})},
        "data": {**params["data"], **changed.get("data", {}), **kept},
        "evaluate": {**changed.get("evaluate", {}), **params["evaluate"]},
    }


def register(
    registry: Registry,
    base: Path,
    folder: Path,
    tenant: str,
    seed: int,
    params: dict[str, Any] | None = None,
    **options: object,
) -> str:
    """Package and register an adapter of the tiny model; gives its id."""
    manifest = build_package(folder, seed, tenant, fresh_days=36500)
    make_adapter(base, folder, seed, **options)  # type: ignore[arg-type]
    (folder / "README.md").write_text(f"# {tenant}\n")
    model = read_base_model(base)
    manifest = manifest.model_copy(
        update={
            "base_model": model,
            "data": manifest.data.model_copy(update={"base_model_sha256": model.sha256}),
            "training": manifest.training.model_copy(update={"base_model_sha256": model.sha256}),
            "params": with_params(manifest.params, params or {"data": {"system": SYSTEM}}),
        }
    )
    manifest = evaluated(folder, manifest, manifest.evaluation)
    with pytest.MonkeyPatch.context() as patch:
        # Nobody evaluated these weights, which are random, by these settings.
        patch.setattr(store, "require_recounted", lambda folder, manifest: None)
        version, _ = registry.register(folder, manifest, actor="ana.silva")
    return version.id


@dataclass
class Clone:
    """A clone of the repository with the candidates finance@1, finance@2 and healthcare@1 in its registry."""

    root: Path
    base: Path

    def settings(self, **serving: object) -> Settings:
        """Its params.yaml, with these values of `serving` instead."""
        settings = load_settings(self.root)
        changed = settings.serving.model_copy(
            update={"port": 0, "allow_candidates": True, "warm": (), **serving}
        )
        return settings.model_copy(update={"serving": changed})

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        opened = open_registry(self.root)
        yield opened
        opened.close()

    def story(self, registry: Registry) -> Story:
        return Story(registry, self.root / "evidence")


@pytest.fixture(scope="session")
def clone_source(tiny_base: Path, owners: Owners, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return make_clone(tiny_base, owners, tmp_path_factory.mktemp("serving"))


def make_clone(base: Path, owners: Owners, folder: Path) -> Path:  # noqa: F811
    """Make a clone in `folder` whose adapters belong on the base model `base`, and return where it is."""
    root, packages = folder / "clone", folder / "packages"
    root.mkdir()
    shutil.copy(ROOT / "params.yaml", root)
    (root / "owners.yaml").write_text(owners.model_dump_json())
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(base, root / "models/base")
    registry = open_registry(root, create=True)
    register(registry, base, packages / "f1", "finance", 1)
    register(registry, base, packages / "f2", "finance", 2, rank=8, modules="q_proj,v_proj")
    register(registry, base, packages / "h1", "healthcare", 3, rank=2)
    registry.close()
    return root


@pytest.fixture
def clone(clone_source: Path, tmp_path: Path) -> Clone:
    root = tmp_path / "clone"
    shutil.copytree(clone_source, root)
    return Clone(root, root / "models/base")


@dataclass
class Served:
    """A gateway that runs, and ways to talk to it."""

    url: str
    server: uvicorn.Server
    engine: Engine
    thread: threading.Thread

    def client(self, key: str = "none") -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=False)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=http)

    def http(self, key: str | None = None, **options: object) -> httpx.Client:
        # No TLS: a client that reads all certificates of this machine takes longer than an answer.
        options = {"timeout": 60, "verify": False, **options}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, **options)  # type: ignore[arg-type]

    def metric(self, name: str, key: str | None = None, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.http(key).get("/metrics").text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(
                f'{k}="{v}"' in line for k, v in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextmanager
def served(root: Path, settings: Settings, engine: Engine, connections: int = CONNECTIONS) -> Iterator[Served]:
    """A gateway with uvicorn on a free port of loopback, in a thread of its own."""
    started = threading.Event()
    servers: list[uvicorn.Server] = []
    failed: list[BaseException] = []

    def take(server: uvicorn.Server) -> None:
        servers.append(server)
        started.set()

    def main() -> None:
        try:
            asyncio.run(serve(root, settings, engine, port, started=take, connections=connections))
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the test's thread
            failed.append(error)
            started.set()

    check_exposure(root, settings.serving)
    port = bind(settings.serving)
    thread = threading.Thread(target=main)
    thread.start()
    started.wait(60)
    while servers and not servers[0].started and thread.is_alive():
        threading.Event().wait(0.01)
    if failed:
        raise failed[0]
    try:
        yield Served(f"http://127.0.0.1:{port.getsockname()[1]}", servers[0], engine, thread)
    finally:
        servers[0].should_exit = True
        thread.join(60)
        port.close()
        assert not thread.is_alive(), "the gateway did not stop"
    if failed:
        raise failed[0]


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def token_counts(usage: CompletionUsage | None) -> tuple[int, int]:
    """Tokens read and written, whatever the engine had kept of them."""
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens


Serve = Callable[..., "contextmanager[Served]"]


@pytest.fixture
def engine(tiny_base: Path) -> Engine:
    return TorchEngine(tiny_base, max_batch=16, kv_tokens=8192, threads=1)


@pytest.fixture
def gateway(clone: Clone, engine: Engine) -> Iterator[Served]:
    """A gateway without keys that serves candidates."""
    with served(clone.root, clone.settings(), engine) as running:
        yield running


@pytest.fixture(scope="module")
def shared_gateway(
    clone_source: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One gateway for all tests of a file that only ask it; each start takes most of a second."""
    root = Path(shutil.copytree(clone_source, tmp_path_factory.mktemp("shared") / "clone"))
    engine = TorchEngine(tiny_base, max_batch=16, kv_tokens=8192, threads=1)
    with served(root, Clone(root, root / "models/base").settings(), engine) as running:
        yield running


@pytest.fixture(scope="session")
def staged_source(tiny_base: Path, owners: Owners, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A clone whose finance@1 is in production and finance@2 in shadow."""
    root = make_clone(tiny_base, owners, tmp_path_factory.mktemp("shadow"))
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "production")
        clone.story(registry).to("finance@2", "shadow")
    return root


@pytest.fixture
def staged(staged_source: Path, tmp_path: Path) -> Clone:
    root = tmp_path / "clone"
    shutil.copytree(staged_source, root)
    return Clone(root, root / "models/base")

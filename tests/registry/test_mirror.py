"""The copy at W&B: what is sent, in which order, and that neither a fault, a kill nor a second run spoils it."""

from collections.abc import Callable

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry import Registry, lifecycle
from lora_ops.registry.mirror import Mirror
from lora_ops.registry.wandb_project import WandbProject
from tests.wandb_server import WandbServer

from .conftest import FIRST, Build, Story

Connect = Callable[..., WandbProject]


@pytest.fixture
def mirror(registry: Registry, connect: Connect) -> Mirror:
    return Mirror(registry, connect())


def test_a_version_arrives_with_its_package_its_record_and_its_names(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    version, _ = registry.register(*package(1), actor="ana")
    assert mirror.sync().sent == 1
    [sent] = server.collection("finance").versions
    assert sent.collection.type == "lora-adapter"
    assert sent.aliases >= {"latest", "candidate", "version-1"}
    assert sent.tags == {"candidate"}
    assert sent.ttl is None
    assert sent.info["lineage"]["params"] == version.manifest.params
    assert sent.info["author"] == "ana"
    assert set(server._entries(sent)) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "model.sig",
    }

"""Models, adapters and PEFT's answers, made once for all tests of the engine."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ops.engines.torch_engine.adapter_files import read_adapter
from lora_ops.engines.torch_engine.architectures import make_decoder
from lora_ops.engines.torch_engine.decoder import Adapter, Decoder
from tests.engines.torch_engine.models import Reference, adapter_configs, make_model, save_adapter


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are not faster with more."""
    torch.set_num_threads(1)


@dataclass
class Case:
    """One base model with adapters: how the engine decodes it, and what PEFT says."""

    decoder: Decoder
    adapters: dict[str | None, Adapter | None]
    reference: Reference
    folders: dict[str, Path]


def make_case(model: Any, folders: dict[str, Path], kv_tokens: int = 256) -> Case:
    """The case of a model and its adapters."""
    decoder = make_decoder(copy.deepcopy(model), kv_tokens=kv_tokens)
    adapters: dict[str | None, Adapter | None] = {None: None}
    for kind, path in folders.items():
        adapters[kind] = decoder.adapter(read_adapter(path, decoder.shapes), decoder.dtype)
    return Case(decoder, adapters, Reference(model, folders), folders)


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """The case of an architecture, with a KV cache of so many tokens."""

    @cache
    def saved(name: str) -> tuple[Any, dict[str, Path]]:
        model = make_model(name)
        folder = tmp_path_factory.mktemp("adapters")
        return model, {
            kind: save_adapter(copy.deepcopy(model), folder / kind, seed=seed, **config)
            for seed, (kind, config) in enumerate(adapter_configs(model).items())
        }

    @cache
    def make(name: str, kv_tokens: int = 256) -> Case:
        model, folders = saved(name)
        return make_case(copy.deepcopy(model), folders, kv_tokens)

    return make

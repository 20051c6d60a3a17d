"""What the digest of a base model covers, and that nobody loads weights of another one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.base_model import make_base_model
from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_base_model
from lora_ops.settings.base_model import BaseModelSettings
from lora_ops.weights_digest import INDEX, WEIGHTS, weights_sha256


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def sharded(tiny_source: Path, tmp_path: Path) -> Path:
    """A base model in several files."""
    settings = BaseModelSettings(
        id="tiny-random", source="folder", revision="0", path=str(tiny_source), max_shard_size=20_000
    )
    make_base_model(settings, tmp_path / "sharded", tmp_path, tmp_path)
    return tmp_path / "sharded"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def flip(path: Path) -> None:
    """Change the last weight of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    """Give two shards each other's names, and let the index follow."""
    one, other, spare = *shards(folder)[:2], folder / "spare"
    for source, target in ((one, spare), (other, one), (spare, other)):
        source.rename(target)
    text = (folder / INDEX).read_text()
    for old, new in ((one.name, "SPARE"), (other.name, one.name), ("SPARE", other.name)):
        text = text.replace(old, new)
    (folder / INDEX).write_text(text)


def test_weights_digest_refuses_changed_weights(base: Path) -> None:
    load_base_model(base)
    flip(base / WEIGHTS)
    with pytest.raises(LoraOpsError, match="have the SHA-256 .* and its record says"):
        load_base_model(base)


@pytest.mark.parametrize("change", [lambda folder: flip(shards(folder)[1]), swap])
def test_weights_digest_covers_every_shard(sharded: Path, change: Callable[[Path], None]) -> None:
    load_base_model(sharded)
    change(sharded)
    with pytest.raises(LoraOpsError, match="and its record says"):
        load_base_model(sharded)


def test_weights_digest_refuses_two_ways_to_load(base: Path, sharded: Path) -> None:
    shutil.copy(base / WEIGHTS, sharded)
    with pytest.raises(LoraOpsError, match="holds both"):
        load_base_model(sharded)


@pytest.mark.parametrize("folder", ["base", "sharded"])
def test_weights_digest_refuses_a_file_more(folder: str, request: pytest.FixtureRequest) -> None:
    """vLLM reads it as weights, too, where there is no index."""
    found: Path = request.getfixturevalue(folder)
    shutil.copy(next(found.glob("*.safetensors")), found / "more.safetensors")
    with pytest.raises(LoraOpsError, match="more.safetensors is none of the base model's weights"):
        load_base_model(found)


@pytest.mark.parametrize("name", ["../{}", "sub/{}", "/{}"])
def test_weights_digest_refuses_a_path_in_the_index(sharded: Path, name: str) -> None:
    shard = shards(sharded)[0].name
    text = (sharded / INDEX).read_text().replace(shard, name.format(shard))
    (sharded / INDEX).write_text(text)
    with pytest.raises(LoraOpsError, match="no file beside it"):
        weights_sha256(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"weight_map": {"a": 1}})])
def test_weights_digest_refuses_a_damaged_index(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(LoraOpsError, match="is no index of weights"):
        weights_sha256(sharded)

"""What was compressed comes back bit for bit, and nothing else does."""

import io
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

from lora_ops import weight_compression
from lora_ops.errors import Damaged
from lora_ops.weight_compression import compressed, expanded, stored_format

FORMS = ("none", "zstd", "shuffle2-zstd", "shuffle4-zstd", "shuffle8-zstd")


def there_and_back(content: bytes, form: str) -> bytes:
    stored = b"".join(compressed(io.BytesIO(content), form))
    return b"".join(expanded(io.BytesIO(stored), form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0, 1, 7, 63, 64, 65, 130, 1000])
def test_compression_gives_every_byte_back(form: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file ends anywhere in a block, and in the middle of a number."""
    monkeypatch.setattr(weight_compression, "BLOCK", 64)
    content = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert there_and_back(content, form) == content


@pytest.mark.parametrize(
    ("dtype", "form"), [("float32", "shuffle4-zstd"), ("float16", "shuffle2-zstd"), ("int8", "zstd")]
)
def test_stored_format_follows_the_numbers(tmp_path: Path, dtype: str, form: str) -> None:
    save_file({"a": np.zeros((8, 8), dtype), "b": np.zeros(1, "float64")}, tmp_path / "weights")
    assert stored_format("shuffle-zstd", tmp_path / "weights") == form
    assert stored_format("zstd", tmp_path / "weights") == "zstd"
    (tmp_path / "odd").write_bytes(b"\xff" * 40)
    assert stored_format("shuffle-zstd", tmp_path / "odd") == "zstd"


def test_shuffle_makes_weights_smaller() -> None:
    weights = np.random.default_rng(0).standard_normal(50_000).astype(np.float32).tobytes()
    sizes = [len(b"".join(compressed(io.BytesIO(weights), form))) for form in ("shuffle4-zstd", "zstd")]
    assert sizes[0] < 0.95 * sizes[1]


@pytest.mark.parametrize("form", ["gzip", "shuffle3-zstd", "shuffle4-zstd "])
def test_unknown_format_is_damaged(form: str) -> None:
    with pytest.raises(Damaged, match="does not know"):
        next(expanded(io.BytesIO(b"x"), form))


def test_text_that_is_no_zstd_is_damaged() -> None:
    with pytest.raises(Damaged, match="can't be expanded"):
        next(expanded(io.BytesIO(b"no zstd at all"), "zstd"))


def test_bomb_is_expanded_block_by_block() -> None:
    """A few bytes of zstd may stand for terabytes: whoever reads can stop after any block."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * 2**20))
    blocks = expanded(io.BytesIO(bomb), "zstd")
    assert len(bomb) < 64 * 2**10 and len(next(blocks)) == weight_compression.BLOCK

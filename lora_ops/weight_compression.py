"""Compress and expand a file of weights, in a stream, without losing a bit: the signature covers its bytes.

With `shuffle-zstd` the first bytes of all numbers of a block stand together, then all second bytes, and so on
(the byte shuffle of HDF5 and Blosc). Signs and exponents are alike and compress well, mantissas hardly do.
benchmarks/compression.py compares the codecs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from lora_ops.adapter_files import largest_dtype
from lora_ops.errors import Damaged

Codec = Literal["shuffle-zstd", "zstd", "none"]
LEVEL = 1
"""Of zstd: after the shuffle level 19 takes a hundred times as long and saves one per cent of the file more."""
BLOCK = 4 * 2**20
"""Bytes that are shuffled together; a part of the format, and a multiple of every width."""
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
FORMAT = re.compile(r"none|zstd|shuffle([248])-zstd")


def stored_format(codec: Codec, weights: Path) -> str:
    """Return how a file is written: the codec, and with a shuffle the bytes of its numbers (`shuffle4-zstd`).

    Raises:
        OSError: the file can't be read.
    """
    if codec != "shuffle-zstd":
        return codec
    width = WIDTHS.get(largest_dtype(weights) or "", 1)  # a wrong one costs room, and loses nothing
    return f"shuffle{width}-zstd" if width > 1 else "zstd"


def compressed(source: BinaryIO, form: str) -> Iterator[bytes]:
    """Yield what a file becomes in a format of `stored_format`."""
    width = _width(form)
    if form == "none":
        while block := source.read(BLOCK):
            yield block
        return
    import zstandard

    encoder = zstandard.ZstdCompressor(level=LEVEL).compressobj()
    while block := source.read(BLOCK):
        yield encoder.compress(_shuffled(block, width))
    yield encoder.flush()


def expanded(source: BinaryIO, form: str) -> Iterator[bytes]:
    """Yield the file that was compressed, in blocks of at most 4 MiB; whoever reads it compares its digest.

    Raises:
        Damaged: the format is unknown, or what is read is no zstd.
    """
    import zstandard

    width = _width(form)
    # Never more than a block at once: a few bytes of zstd may stand for terabytes.
    reader = source if form == "none" else zstandard.ZstdDecompressor().stream_reader(source, closefd=False)
    while True:
        try:
            block = _whole_block(reader)
        except zstandard.ZstdError as error:
            raise Damaged(f"it can't be expanded ({error})") from error
        if not block:
            return
        yield _in_order(block, width)


def _width(form: str) -> int:
    match = FORMAT.fullmatch(form)
    if match is None:
        raise Damaged(f"it is written as '{form[:40]}', which this release does not know")
    return int(match[1] or 1)


def _whole_block(reader: BinaryIO) -> bytes:
    """Read a block; a reader may return less than it was asked for before the end."""
    parts, missing = [], BLOCK
    while missing and (part := reader.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _shuffled(block: bytes, width: int) -> bytes:
    import numpy as np

    whole = len(block) // width * width  # the last bytes of a file may be no whole number
    numbers = np.frombuffer(block, np.uint8, whole).reshape(-1, width)  # (numbers, width)
    return numbers.T.tobytes() + block[whole:]


def _in_order(block: bytes, width: int) -> bytes:
    import numpy as np

    whole = len(block) // width * width
    planes = np.frombuffer(block, np.uint8, whole).reshape(width, -1)  # (width, numbers)
    return planes.T.tobytes() + block[whole:]

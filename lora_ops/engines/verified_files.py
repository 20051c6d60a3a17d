"""The files of an adapter as an engine reads them: those that were verified, or none."""

from collections.abc import Mapping
from pathlib import Path

from lora_ops.engines.protocol import EngineError
from lora_ops.hashing import sha256_bytes
from lora_ops.paths import ADAPTER_FILES


def read_files(folder: Path, digests: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Return the bytes of the two files of an adapter, by name.

    Args:
        folder: where PEFT's two files are.
        digests: the SHA-256 that each file was verified with; None takes the files as they are.

    Raises:
        EngineError: a file can't be read, or is not the one that was verified.
    """
    files = {}
    for name in ADAPTER_FILES:
        path = folder / name
        if not path.is_file():
            raise EngineError(f"There is no {name} in {folder}.")
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise EngineError(f"The adapter in {folder} can't be read: {error}") from error
        if digests is not None and sha256_bytes(files[name]) != digests[name]:
            raise EngineError(f"{path} was changed after it was verified: it is not loaded.")
    return files

"""The files of `suites/` that gates read: YAML that a person wrote, with the digest of its bytes."""

from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_bytes
from lora_ops.settings.files import parse_yaml
from lora_ops.small_files import read_small


def read_suite_file(path: Path) -> tuple[Any, str]:
    """Return the plain values of a file and the SHA-256 of its bytes.

    Raises:
        LoraOpsError: it can't be read, or is no YAML in UTF-8.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        content = read_small(path)
        text = content.decode("utf-8")
    except OSError as error:
        raise LoraOpsError(f"{where} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LoraOpsError(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    return parse_yaml(text, where), sha256_bytes(content)

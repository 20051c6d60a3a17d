"""Content-addressed files: a file is kept once, under the SHA-256 of its bytes."""

import os
import shutil
import tempfile
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.records import sha256_file


class FileStore:
    """Files under `root/ab/cdef...`; a name never holds anything but the bytes that it promises."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the file with this digest lies, or would lie."""
        return self.root / digest[:2] / digest[2:]

    def add(self, source: Path) -> str:
        """Keep a copy of `source`; the digest is its address.

        The copy is complete on disk before it gets its name, so a kill leaves a temporary file at worst.
        """
        digest = sha256_file(source)
        target = self.path(digest)
        if target.exists():
            return digest
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
        try:
            with os.fdopen(handle, "wb") as out, source.open("rb") as file:
                shutil.copyfileobj(file, out)
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return digest

    def checked(self, digest: str, name: str) -> Path:
        """The path of a kept file, after reading it and comparing its digest.

        Raises:
            LoraOpsError: the file is missing or its bytes have another digest.
        """
        path = self.path(digest)
        if not path.is_file():
            raise LoraOpsError(f"The registry has lost {name} ({path}): restore it from a backup.")
        found = sha256_file(path)
        if found != digest:
            raise LoraOpsError(
                f"{name} was changed on disk: {path} has SHA-256 {found[:12]}…, "
                f"not {digest[:12]}…; restore it from a backup."
            )
        return path

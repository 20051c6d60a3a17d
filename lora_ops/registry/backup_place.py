"""A place of backups: a folder or URL that fsspec reads and writes, and the snapshots that lie there."""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from lora_ops.errors import Damaged, LoraOpsError, Unavailable
from lora_ops.escaping import one_line
from lora_ops.named_paths import follow
from lora_ops.registry.audit import Head
from lora_ops.registry.files import FORGOTTEN_AFTER_SECONDS, sync_folder
from lora_ops.registry.holds import FOLDER as HOLDS
from lora_ops.registry.holds import NAME as HOLD
from lora_ops.small_files import parse_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LIST = "snapshot.json"
SCHEMA = 1
READ_BYTES = 2**20
UNFINISHED = ".part"
"""The end of the name of a file that is being sent."""
Condition = Literal["whole", "damaged", "missing"]
SMALL = re.compile(
    r"registry\.sqlite|audit\.head|keys/registry\.json|keys/[0-9a-f]{64}\.pub|" + f"{HOLDS}/{HOLD.pattern}"
)
"""The names of what a registry has besides its kept files."""


class Snapshot(NamedTuple):
    """One whole snapshot at a backup's place."""

    head: Head
    at: str
    small: dict[str, str]
    """Name to SHA-256: the database, the signed head, the public keys."""
    files: tuple[str, ...]
    """Digests of the kept files."""

    @property
    def folder(self) -> str:
        """Its folder at the backup's place; names sort as heads do."""
        return f"snapshots/{self.head.seq:09d}-{self.head.hash[:12]}"


def kept_path(digest: str) -> str:
    """Return where a kept file lies at any place of backups."""
    return f"files/{digest[:2]}/{digest[2:]}"


class Place:
    """A folder that fsspec reaches: file paths, file://, memory://, and s3:// and others with their package."""

    def __init__(self, url: str) -> None:
        if not url.strip():
            raise LoraOpsError("No place is named: name a folder, or a URL such as s3://bucket/registry.")
        self.url = url
        with self._reached():
            from fsspec.core import url_to_fs

            self._fs: AbstractFileSystem
            self._fs, self._root = url_to_fs(url)

    def put(self, source: Path, relative: str) -> None:
        """Send a file, over one that is there."""
        path = f"{self._root}/{relative}"
        with self._reached():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), path)

    def condition(self, relative: str, digest: str, size: int | None = None) -> Condition:
        """Return whether a file is there with the bytes of its digest; one of another size is not read."""
        path = f"{self._root}/{relative}"
        with self._reached():
            if not self._fs.exists(path):
                return "missing"
            try:
                if size is not None and self._fs.size(path) != size:
                    return "damaged"
                found = hashlib.sha256()
                with self._fs.open(path, "rb") as file:
                    while part := file.read(READ_BYTES):
                        found.update(part)
            except OSError:  # a bad sector; a place that can't be reached refuses the new copy, too
                return "damaged"
        return "whole" if found.hexdigest() == digest else "damaged"

    def write(self, relative: str, content: bytes) -> None:
        """Write a small file."""
        with self._reached():
            self._fs.pipe_file(f"{self._root}/{relative}", content)

    def write_new(self, relative: str, content: bytes) -> str | None:
        """Write a small file that is not there yet, or return what it says already."""
        path = f"{self._root}/{relative}"
        with self._reached():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                try:
                    with self._fs.open(path, "xb") as file:
                        file.write(content)
                except (NotImplementedError, ValueError):  # this storage can't; what is left is to look first
                    self._fs.pipe_file(path, content, mode="create")
                return None
            except OSError:
                self._fs.invalidate_cache()
                if not self._fs.exists(path):  # s3fs has another error (EINVAL) for a file that is there
                    raise
            return str(self._fs.cat_file(path).decode(errors="replace"))

    def send(self, relative: str, parts: Iterable[bytes], check: Callable[[BinaryIO], None]) -> None:
        """Write a file that is whole, checked and on the disk before it has its name, over one that is there.

        Args:
            relative: where.
            parts: its content.
            check: reads what was written, and raises where that is not what was meant.
        """
        path = f"{self._root}/{relative}"
        aside = f"{path}.{uuid.uuid4().hex[:8]}{UNFINISHED}"
        with self._reached():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                with self._fs.open(aside, "wb") as file:
                    for part in parts:
                        file.write(part)
                    if self._is_local:
                        file.flush()
                        os.fsync(file.fileno())
                with self._fs.open(aside, "rb") as file:
                    check(file)
                self._fs.mv(aside, path)
            except BaseException:
                with suppress(Exception):  # what is wrong is said by the first error
                    self._fs.rm(aside)
                raise
        if self._is_local:
            sync_folder(Path(path).parent)

    def sweep(self, folder: str) -> None:
        """Remove what killed processes left unfinished below a folder more than a day ago."""
        oldest = time.time() - FORGOTTEN_AFTER_SECONDS
        with self._reached():
            for path in self._fs.find(f"{self._root}/{folder}"):
                # A storage that knows no times keeps them.
                with suppress(NotImplementedError, OSError):
                    if path.endswith(UNFINISHED) and self._fs.modified(path).timestamp() < oldest:
                        self._fs.rm(path)

    @contextmanager
    def reading(self, relative: str) -> Iterator[BinaryIO]:
        """Give a file to read.

        Raises:
            Damaged: it is missing.
        """
        with self._reached():
            self._fs.invalidate_cache()
            try:
                file = self._fs.open(f"{self._root}/{relative}", "rb")
            except FileNotFoundError as error:
                raise Damaged(f"{relative} is missing at {without_secrets(self.url)}.") from error
            with file:
                yield file

    @property
    def _is_local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._fs, LocalFileSystem)

    @property
    def local_root(self) -> Path | None:
        """The folder of this machine where files end up, whatever wraps it (`simplecache::`), or None.

        Raises:
            LoraOpsError: its symlinks lead in a circle.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        with self._reached():
            innermost, root = url_to_fs(self.url.rpartition("::")[2])
        return follow(Path(root), "URL") if isinstance(innermost, LocalFileSystem) else None

    def get(self, relative: str, target: Path) -> None:
        """Bring a file.

        Raises:
            Damaged: it is missing.
        """
        with self._reached():
            try:
                self._fs.get_file(f"{self._root}/{relative}", str(target))
            except FileNotFoundError as error:
                raise Damaged(f"{relative} is missing at {without_secrets(self.url)}.") from error

    def snapshots(self) -> list[Snapshot]:
        """Return every snapshot whose list was written whole."""
        found = []
        with self._reached():
            for path in self._fs.glob(f"{self._root}/snapshots/*/{LIST}"):
                # A list that was cut off, or that somebody else wrote, counts for nothing.
                with suppress(ValueError, LookupError, TypeError, AttributeError, OverflowError):
                    content = parse_json(self._fs.cat_file(path))
                    if content["schema"] != SCHEMA:
                        raise LoraOpsError(
                            f"{path} was written by a newer lora-ops (schema {content['schema']}): update "
                            "lora-ops."
                        )
                    head = Head(int(content["head"][0]), str(content["head"][1]))
                    small = {str(name): str(digest) for name, digest in content["small"].items()}
                    found.append(Snapshot(head, str(content["at"]), small, tuple(map(str, content["files"]))))
        return found

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except LoraOpsError:
            raise
        except ImportError as error:
            raise LoraOpsError(
                without_secrets(f"{self.url} needs a package that is not installed: {_one_line(error)}.")
            ) from error
        except Exception as error:  # each storage has errors of its own
            raise Unavailable(without_secrets(f"{self.url} can't be used ({_one_line(error)}).")) from error


def refuse_no_place(registry: Path, url: str, what: str) -> None:
    """Refuse a place that is gone with the registry: inside of it, or around it without a folder of its own.

    Args:
        registry: its folder.
        url: the place.
        what: is kept there, such as "a backup".

    Raises:
        LoraOpsError: it is no such place, or no place at all.
    """
    if url.startswith(("-", "~")) or one_line(url) != url:
        raise LoraOpsError(
            f"'{one_line(url)}' is no place for {what}: name a folder or a URL that does not begin with - or "
            "~ and has no character that nobody sees."
        )
    local = Place(url).local_root if url.strip() else registry
    own = registry.resolve()
    if local and (local.resolve().is_relative_to(own) or own.is_relative_to(local)):
        raise LoraOpsError(f"'{url}' is no place for {what} of {registry}: name a folder elsewhere, or a URL.")


def without_secrets(text: str) -> str:
    """Return a text without what its URLs have of users, passwords and signed queries."""
    return re.sub(r"(://[^\s?]*)\?[^\s)]*", r"\1?…", re.sub(r"://[^\s/@]*@", "://…@", text))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."

"""Content-addressed files: a file is kept once, under the SHA-256 of its bytes."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from lora_ops.adapter_files import require_finite
from lora_ops.errors import Damaged, LoraOpsError, Unavailable, disk_reason
from lora_ops.folders import make_folder, set_aside
from lora_ops.hashing import sha256_file

FORGOTTEN_AFTER_SECONDS = 24 * 3600
PICKLES = {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
RESERVED = {"manifest.json", "model.sig"}
SAFETENSORS_HEADER_LIMIT = 100_000_000


class InArchive(Unavailable):
    """A kept file is in the archive alone; the text says how it comes back."""


class FileStore:
    """Files under `root/ab/cdef...`; a name never holds anything but the bytes that it promises."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.fetch: Callable[[str], None] | None = None
        """Brings a file that is not here yet, by its digest; a shared registry has one."""
        self.elsewhere: Callable[[str], InArchive | None] | None = None
        """Says of a file that is not here, by its digest, that it is in the archive."""
        self.tensors: dict[str, str] = {}
        """Digest of a kept adapter to the digest of its tensors, once it was read: neither can change."""

    def path(self, digest: str) -> Path:
        """Where the file with this digest lies, or would lie."""
        return self.root / digest[:2] / digest[2:]

    def holds(self, digest: str) -> bool:
        """Whether a file with this digest is kept; its bytes are not read.

        Raises:
            Unavailable: the disk can't say.
        """
        with _reading(f"file {digest[:12]}…"):
            return self.path(digest).is_file()

    def add(self, source: Path, expected: str | None = None) -> str:
        """Keep a copy of `source`; the digest is its address.

        The copy is complete on disk before it gets its name, so a kill leaves a temporary file at worst.

        Raises:
            LoraOpsError: the bytes have not the digest `expected`, or changed while they were copied.
        """
        digest = expected or sha256_file(source)
        target = self.path(digest)
        # Touched before it is read: `gc` leaves a young file, and one that it takes now is missing here.
        self.touch(digest)
        with contextlib.suppress(OSError):  # a copy on a bad disk is written again
            if target.is_file() and sha256_file(target) == digest:
                return digest
        with self._arriving() as temporary:
            with temporary.open("wb") as out, source.open("rb") as file:
                shutil.copyfileobj(file, out)
                out.flush()
                os.fsync(out.fileno())
            if sha256_file(temporary) != digest:
                raise LoraOpsError(f"{source} changed while it was being copied: try again.")
            temporary.chmod(0o644)  # mkstemp hides it from the other users of a shared registry
            make_folder(target.parent)
            if target.is_dir():
                set_aside(target)
            temporary.replace(target)
            sync_folder(target.parent)
        return digest

    def add_bytes(self, content: bytes) -> str:
        """Keep `content` as a file and give its digest."""
        digest = hashlib.sha256(content).hexdigest()
        with self._arriving() as temporary:
            temporary.write_bytes(content)
            return self.add(temporary, digest)

    @contextmanager
    def _arriving(self) -> Iterator[Path]:
        make_folder(self.incoming)
        handle, name = tempfile.mkstemp(dir=self.incoming)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def own_copy(self, package: Path, files: Mapping[str, str]) -> Iterator[Path]:
        """Give a folder with a copy of a package's files, which whoever writes to the package can't change.

        What is checked there is what is kept. The folder is removed at the end, and after a kill by `sweep`.

        Args:
            package: folder of the files.
            files: name of each to SHA-256.

        Raises:
            LoraOpsError: a file changed while it was being copied.
        """
        make_folder(self.incoming)
        with tempfile.TemporaryDirectory(dir=self.incoming, ignore_cleanup_errors=True) as name:
            for file, digest in files.items():
                copy = Path(name) / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(package / file, copy)
                if sha256_file(copy) != digest:
                    raise LoraOpsError(f"{package / file} changed while it was being copied: try again.")
            yield Path(name)

    def touch(self, digest: str) -> None:
        """Make a kept file young, so that `remove` leaves it; another user's file stays as old as it is."""
        with contextlib.suppress(OSError):
            os.utime(self.path(digest))

    def digests(self) -> Iterator[str]:
        """Yield the digest of every kept file."""
        for path in self.root.glob("[0-9a-f][0-9a-f]/*"):
            if re.fullmatch("[0-9a-f]{62}", path.name) and path.is_file():
                yield path.parent.name + path.name

    def remove(self, digest: str, older_than_seconds: float) -> bool:
        """Remove a kept file that nothing names, unless somebody keeps it again; say whether it went.

        Raises:
            OSError: the disk is read-only.
        """
        path = self.path(digest)
        with self._arriving() as aside:
            try:
                path.rename(aside)
            except FileNotFoundError:
                return False
            # Whoever kept it again before it was moved has touched it; who comes later writes it anew.
            if aside.stat().st_mtime <= time.time() - older_than_seconds:
                return True
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.rename(path)
            return False

    def sweep(self) -> None:
        """Remove what killed processes left behind more than a day ago."""
        oldest = time.time() - FORGOTTEN_AFTER_SECONDS
        for path in self.incoming.glob("*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def staged(self, name: str, files: Mapping[str, str], texts: Mapping[str, str]) -> Iterator[Path]:
        """A temporary folder called `name`: kept files (name to digest) and texts (name to content).

        Raises:
            LoraOpsError: a kept file is missing, or the disk is full.
        """
        writable = self.incoming.is_dir() and os.access(self.incoming, os.W_OK)
        try:
            with tempfile.TemporaryDirectory(dir=self.incoming if writable else None) as outer:
                folder = Path(outer) / name
                folder.mkdir()
                for file, digest in files.items():
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    _link(self.present(digest, file), folder / file)
                for file, text in texts.items():
                    (folder / file).write_text(text, encoding="utf-8")
                yield folder
        except OSError as error:
            raise Unavailable(f"{name} can't be laid out for its signature ({disk_reason(error)}).") from error

    def present(self, digest: str, name: str) -> Path:
        """The path of a kept file; its bytes are not read.

        Raises:
            Damaged: the file is missing.
            InArchive: it is in the archive.
            Unavailable: the disk can't say.
            LoraOpsError: it is to be fetched from elsewhere, which can't be reached.
        """
        path = self.path(digest)
        with _reading(name):
            is_there = path.is_file()
        if self.fetch and not is_there:
            self.fetch(digest)
            is_there = path.is_file()
        if self.elsewhere and not is_there:
            archived = self.elsewhere(digest)
            if archived:
                raise archived
        if not is_there:
            raise Damaged(
                f"The registry has lost {name} ({path}): register the same package again, or restore it from a "
                "backup."
            )
        return path

    def checked(self, digest: str, name: str) -> Path:
        """The path of a kept file, after reading it and comparing its digest.

        Raises:
            Damaged: the file is missing or its bytes have another digest.
            Unavailable: the disk can't read it.
            LoraOpsError: as `present`.
        """
        path = self.present(digest, name)
        with _reading(name):
            found = sha256_file(path)
        if found != digest:
            raise Damaged(
                f"{name} was changed on disk: {path} has SHA-256 {found[:12]}…, not {digest[:12]}…; register "
                "the same package again, or restore it from a backup."
            )
        return path


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Say that the disk can't read a kept file: one bad sector must not stop what needs another file.

    Raises:
        Unavailable: the system refuses it.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{name} can't be read ({disk_reason(error)}): mend the disk or the permissions, or restore it "
            "from a backup."
        ) from error


def check_package(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse a package that is not exactly what its manifest says, or that couldn't serve.

    Args:
        folder: the package.
        files: name of each file in it to SHA-256.

    Raises:
        LoraOpsError: a pickle, a name that leaves the folder, no safetensors, NaN in one, or another digest.
    """
    if not folder.is_dir():
        raise LoraOpsError(f"There is no package folder {folder}: run the package stage first.")
    on_disk = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    for name in sorted({*on_disk, *files}):
        if PurePosixPath(name).suffix.lower() in PICKLES:
            raise LoraOpsError(
                f"{folder / name} may hold a pickle, which runs code when it is loaded: "
                "save the adapter as safetensors."
            )
    for name, digest in files.items():
        parts = PurePosixPath(name)
        leaves = parts.is_absolute() or ".." in parts.parts or "\\" in name
        # `./model.sig` and `model.sig/x` take the place of the signature, too.
        if leaves or name != str(parts) or RESERVED.intersection(parts.parts[:1]):
            raise LoraOpsError(f"A package may not hold a file named '{name}': rename it.")
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise LoraOpsError(f"{path} is not the file that its manifest describes: package it again.")
        if parts.suffix == ".safetensors" and not _is_safetensors(path):
            raise LoraOpsError(f"{path} is not a safetensors file, whatever its name says: package it again.")
        if parts.suffix == ".safetensors":
            require_finite(path)
    if not any(name.endswith(".safetensors") for name in files):
        raise LoraOpsError(f"The package {folder} holds no safetensors file: package it again.")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(SAFETENSORS_HEADER_LIMIT, path.stat().st_size - 8):
            return False
        return file.read(1) == b"{"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace the file at `path`: a reader, or a kill, sees the old bytes or the new ones, whole.

    A folder in its place is set aside.
    """
    if path.is_dir() and not path.is_symlink():
        set_aside(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_new(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file where there is none: of several processes at once the first wins, and each sees it whole."""
    mine = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    write_atomically(mine, content, mode)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(mine, path)
    finally:
        mine.unlink()

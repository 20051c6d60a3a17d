"""Backups of a registry at any URL that fsspec reads and writes, and the way back.

A backup is a folder of content-addressed files, which backups share, and one small folder for each snapshot.
The list of a snapshot's files is written last: without it a snapshot does not count, wherever a process was
killed. The private key is in none of them.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lora_ops.clock import utc
from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, Unavailable, disk_reason
from lora_ops.escaping import one_line
from lora_ops.folders import working_folder
from lora_ops.hashing import sha256_file
from lora_ops.named_paths import follow
from lora_ops.registry.audit import Anchor, Head
from lora_ops.registry.database import keep_private
from lora_ops.registry.demo import require_no_demo
from lora_ops.registry.files import FileStore, sync_folder
from lora_ops.registry.gc import named_digests
from lora_ops.registry.heads import SHORTEST, compare
from lora_ops.registry.holds import FOLDER as HOLDS
from lora_ops.registry.holds import NAME as HOLD
from lora_ops.registry.signing_keys import IDENTITY_FILE
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.registry.versions import lost
from lora_ops.settings.registry import SigningSettings
from lora_ops.small_files import parse_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LIST = "snapshot.json"
TURNS = "turns"
"""A folder with one small file for each snapshot that another one follows: which one."""
SCHEMA = 1
ATTEMPTS = 5
UNFINISHED = ".restoring-"
READ_BYTES = 2**20
Condition = Literal["whole", "damaged", "missing"]
DIGEST = re.compile(r"[0-9a-f]{64}")
SMALL = re.compile(
    r"registry\.sqlite|audit\.head|keys/registry\.json|keys/[0-9a-f]{64}\.pub|" + f"{HOLDS}/{HOLD.pattern}"
)


class Backup(NamedTuple):
    """What one backup did.

    Attributes:
        head: where the log of the snapshot ends.
        files: kept files that the snapshot names.
        sent: those that were not there from an earlier backup.
        mended: copies of an earlier backup, kept files and those of its snapshot, that were damaged there.
    """

    head: Head
    files: int
    sent: int
    mended: int = 0


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


def backup(registry: Registry, url: str, *, follows: Head | None = None) -> Backup:
    """Copy the registry to `url`; changes go on meanwhile, and files that are there already are not sent again.

    Copies of earlier backups are read and compared with their digest, and a damaged one is written again: one
    of the right size may have rotted, and restoring would find that when the registry is gone.

    Args:
        registry: what to copy.
        url: where to.
        follows: the head of the last snapshot there, from which this registry was restored. Of two machines
            that changed the same snapshot, the second one is refused.

    Raises:
        Damaged: the log can't be trusted, or a kept file is missing or changed: a backup of it would be none.
        Refused: the last snapshot at `url` is another one than `follows`, or another backup follows it.
        Unavailable: `url` can't be written.
    """
    require_no_demo(registry, "backed up")
    _refuse_no_backup(registry, url)
    place = _Place(url)
    if follows:
        _refuse_other_last(registry, place, follows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head = _take_database(registry, folder)
        small = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files_in(folder)}
        # What the log grew by since is named too, which does no harm.
        named = {one for one in named_digests(registry) if registry.files.holds(one)}
        snapshot = Snapshot(head, utc(registry.clock()), small, tuple(sorted(named | _required(registry))))
        sent = mended = 0
        for digest in snapshot.files:
            path = registry.files.checked(digest, f"file {digest[:12]}…")
            condition = place.condition(_kept(digest), digest, path.stat().st_size)
            if condition != "whole":
                place.put(path, _kept(digest))
                sent, mended = sent + (condition == "missing"), mended + (condition == "damaged")
        if follows and follows != head:
            _take_turn(place, follows, snapshot)
        there = next((one for one in place.snapshots() if one.folder == snapshot.folder), None)
        broken = list(_broken(place, there)) if there else []
        if there is None or broken or _holds_of(there) != _holds_of(snapshot):
            again = small
            if there and not broken:  # what it names stays: only a hold came or went since
                again = {name: snapshot.small[name] for name in _holds_of(snapshot)}
                small = {name: there.small[name] for name in there.small.keys() - _holds_of(there)} | again
            for relative in again:
                place.put(folder / relative, f"{snapshot.folder}/{relative}")
            content = {"schema": SCHEMA, **snapshot._replace(small=small)._asdict()}
            place.write(f"{snapshot.folder}/{LIST}", json.dumps(content, indent=2).encode())
    return Backup(head, len(snapshot.files), sent, mended + len(broken))


def _broken(place: "_Place", snapshot: Snapshot) -> Iterator[str]:
    """Yield the small files of a snapshot that restoring would refuse: missing, damaged or of no registry."""
    for name, digest in snapshot.small.items():
        if not SMALL.fullmatch(name) or place.condition(f"{snapshot.folder}/{name}", digest) != "whole":
            yield name


def _holds_of(snapshot: Snapshot) -> set[str]:
    """Return the names of its holds: no entry of the log tells of them, so one head may have others later."""
    return {name for name in snapshot.small if name.startswith(f"{HOLDS}/")}


def _refuse_other_last(registry: Registry, place: "_Place", follows: Head) -> None:
    """Refuse a place whose last snapshot isn't `follows`: a change of one machine would be lost."""
    differs = compare(registry.log, follows, "--expect-head")
    if differs:
        raise Refused(f"Nothing was backed up: {differs}.")
    heads = {one.head for one in place.snapshots()}
    last = {one for one in heads if one.seq == max(heads).seq}
    # A backup that was made and is asked for again is the last one itself.
    own = registry.log.head()
    if len(last) != 1 or not any(_is(one, follows) or one == own for one in last):
        named = " and at ".join(sorted(one.text for one in last))
        found = f"the last snapshot at {place.url} ends at {named}" if last else f"{place.url} has no snapshot"
        raise Refused(
            f"Nothing was backed up: {found}, not {follows.text}. If somebody else changed the registry, "
            "restore their snapshot, and make your change again."
        )


def _is(head: Head, named: Head) -> bool:
    return head.seq == named.seq and head.hash.startswith(named.hash)


def _take_turn(place: "_Place", follows: Head, snapshot: Snapshot) -> None:
    """Let `snapshot` be the only one that follows `follows`; of two at the same time the storage takes one."""
    turn = f"{TURNS}/{follows.seq:09d}-{follows.hash[:SHORTEST]}"
    taken = place.write_new(turn, snapshot.folder.encode())
    if taken not in (None, snapshot.folder):
        raise Refused(
            f"Nothing was backed up: another backup that follows {follows.text} has begun at {place.url}. When "
            "it is there, restore it, and make your change again. If it was killed (no snapshot comes), remove "
            f"{turn} there."
        )


def _refuse_no_backup(registry: Registry, url: str) -> None:
    """Refuse a place that is gone with the registry: inside of it, or around it without a folder of its own."""
    if url.startswith(("-", "~")) or one_line(url) != url:
        raise LoraOpsError(
            f"'{one_line(url)}' is no place for a backup: name a folder or a URL that does not begin with - or "
            "~ and has no character that nobody sees."
        )
    is_local = "://" not in url or url.startswith("file://")
    local = follow(Path(url.removeprefix("file://")), "URL") if is_local else None
    own = registry.path.resolve()
    if not url.strip() or (local and (local.is_relative_to(own) or own.is_relative_to(local))):
        raise LoraOpsError(
            f"'{url}' is no place for a backup of {registry.path}: name a folder elsewhere, or a URL."
        )


def restore(
    url: str, target: Path, *, head: Head | None = None, signing: SigningSettings | None = None
) -> Snapshot:
    """Bring the newest snapshot at `url`, or the one that ends at `head`, back to the new folder `target`.

    Everything is verified before the folder gets its name, so a kill leaves no half registry.

    Raises:
        Refused: `target` holds something.
        NotFound: there is no such snapshot.
        Damaged: a file of the snapshot is missing or changed, or the registry in it does not verify.
        Unavailable: `url` can't be read, or the disk can't be written.
    """
    if target.is_symlink() and not target.exists():
        raise LoraOpsError(f"{target}, which should be the registry, is a symlink that leads nowhere: mend it.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused(f"{target} is there already: move it away first (mv {target} {target}.old).")
    place = _Place(url)
    snapshot = _chosen(place, head)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with working_folder(target.parent, UNFINISHED) as aside:
            folder = aside / "registry"
            _fetch(place, snapshot, folder)
            _check(folder, snapshot, signing)
            if target.exists():
                target.rmdir()
            folder.rename(target)
            sync_folder(target.parent)
    except OSError as error:
        raise Unavailable(f"The backup can't be restored to {target} ({disk_reason(error)}).") from error
    return snapshot


def _take_database(registry: Registry, folder: Path) -> Head:
    """Copy the database, the signed head, the public keys and the holds as they are at one moment."""
    problem = None
    for _ in range(ATTEMPTS):
        with registry.db.reading():
            head = registry.log.head()
            # Restoring refuses a row or an index that differs from the log, which would be found too late.
            problem = registry.follower.rows_problem()
            if problem:
                break
            registry.db.copy_to(folder / "registry.sqlite")
        if not registry.anchor.path.is_file():
            break
        shutil.copyfile(registry.anchor.path, folder / "audit.head")
        # A change between these two copies gives a head that is newer than the database: take both again.
        problem = Anchor(folder / "audit.head", registry.signer).problem(head)
        if problem is None:
            (folder / "keys").mkdir()
            # What else lies there is nobody's key, and restoring would refuse it.
            for name in (*(f"{known}.pub" for known in registry.signer.known()), IDENTITY_FILE):
                shutil.copyfile(registry.signer.folder / name, folder / "keys" / name)
            registry.holds.copy_to(folder / HOLDS)
            return head
    what = problem or "audit.head was removed"
    raise Damaged(f"The audit log in {registry.path} can't be trusted, so it is not backed up: {what}.")


def _required(registry: Registry) -> set[str]:
    """Return the digests of the files without which a version can't be restored.

    Raises:
        Damaged: a manifest was lost, so nobody knows them, and restoring would refuse the registry.
    """
    found: set[str] = set()
    versions = registry.versions()
    gone = next(iter({one.id for one in registry.summaries()} - {one.id for one in versions}), None)
    if gone:
        raise lost("manifest", gone)
    for version in versions:
        found |= {file.sha256 for file in version.manifest.files.values()}
        if version.summary.signature:
            found.add(version.summary.signature)
    return found


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _kept(digest: str) -> str:
    return f"files/{digest[:2]}/{digest[2:]}"


def _chosen(place: "_Place", head: Head | None) -> Snapshot:
    found = place.snapshots()
    if head:
        found = [one for one in found if one.head.seq == head.seq and one.head.hash.startswith(head.hash)]
    if not found:
        what = f"no snapshot that ends at {head.text}" if head else "no whole snapshot"
        raise NotFound(f"There is {what} at {place.url}: `lora-ops registry backup URL` makes one.")
    return max(found, key=lambda one: one.head.seq)


def _fetch(place: "_Place", snapshot: Snapshot, folder: Path) -> None:
    for relative, digest in snapshot.small.items():
        if SMALL.fullmatch(relative) is None:
            raise Damaged(f"The snapshot at {place.url} names a file that no registry has: '{relative}'.")
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        place.get(f"{snapshot.folder}/{relative}", folder / relative)
        if sha256_file(folder / relative) != digest:
            raise Damaged(f"{relative} was changed at {place.url}: restore another snapshot (--head).")
    keep_private(folder / "registry.sqlite")
    files = FileStore(folder / "files")
    arrived = folder / "arrived"
    for digest in snapshot.files:
        if DIGEST.fullmatch(digest) is None:
            raise Damaged(f"The snapshot at {place.url} names a file that no registry has: '{digest[:80]}'.")
        place.get(_kept(digest), arrived)
        if sha256_file(arrived) != digest:
            raise Damaged(
                f"{_kept(digest)} was changed at {place.url}: make another backup of a whole registry."
            )
        files.add(arrived, digest)
        arrived.unlink()


def _check(folder: Path, snapshot: Snapshot, signing: SigningSettings | None) -> None:
    with closing(Registry(folder, signing=signing)) as registry:
        result = verify(registry)
        if result.problems:
            raise Damaged(f"The registry in the backup does not verify: {result.problems[0]}.")
        if registry.log.head() != snapshot.head:
            raise Damaged(
                f"The registry in the backup ends at {registry.log.head().text}, not at {snapshot.head.text}."
            )


class _Place:
    """A folder that fsspec reaches: file paths, file://, memory://, and s3:// and others with their package."""

    def __init__(self, url: str) -> None:
        if not url.strip():
            raise LoraOpsError(
                "No place of backups is named: name a folder, or a URL such as s3://bucket/registry."
            )
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

    def get(self, relative: str, target: Path) -> None:
        """Bring a file.

        Raises:
            Damaged: it is missing.
        """
        with self._reached():
            try:
                self._fs.get_file(f"{self._root}/{relative}", str(target))
            except FileNotFoundError as error:
                raise Damaged(f"{relative} is missing at {self.url}.") from error

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
                f"{self.url} needs a package that is not installed: {_one_line(error)}."
            ) from error
        except Exception as error:  # each storage has errors of its own
            raise Unavailable(f"{self.url} can't be used ({_one_line(error)}).") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."

"""One SQLite connection: WAL, foreign keys, one writer at a time, and errors that are sentences."""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Unavailable
from lora_ops.sqlite_files import ENDS, Stamp, is_settled, places, require_files, stamp

BUSY_SECONDS = 30.0
FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises; the second one where it quotes damaged bytes."""
PARTS = frozenset(("files", "verified", "keys", "holds", "audit.head", "sync.lock", "holds.reserve"))
"""What a registry's folder holds besides its database: it shows that one was there."""


class MissingRegistry(NotFound):
    """There is no registry where params.yaml says; only registering the first version makes one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"There is no registry in {folder}: `lora-ops register` makes one, and `lora-ops registry restore "
            "URL` brings one back."
        )


class Database:
    """The registry's database; use one per thread.

    Args:
        path: the SQLite file.
        create: make the folder and the file where they are missing.

    Raises:
        MissingRegistry: the file is missing and `create` is not set; nothing is made.
        LoraOpsError: the file can't be used.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self.busy_seconds = BUSY_SECONDS
        folder = path.parent
        try:
            _require_own_folder(folder)
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            elif not path.is_file():
                raise _missing(path)
            self.read_only = False
            self._unwritable: LoraOpsError | None = None
            """Why nothing can be written, where it is not the folder's permissions."""
            self._is_followed = True
            """Whether SQLite itself sees what others change."""
            self._stamp: Stamp | None = None
            """What the file was when it was opened."""
            self._was_settled = True
            """Whether it had been written long enough before; else it is opened once more a second later."""
            self.connection = self._open(create)
            self._places = places(path)
            self.openings = 1
            """How often it was opened: each connection counts the changes of others anew."""
        except (OSError, *FAILURES) as error:
            raise self._sentence(error) from error

    def never_wait(self) -> None:
        """Refuse at once what another process keeps locked: an event loop that waits answers nobody."""
        self.busy_seconds = 0.0
        self.rows("PRAGMA busy_timeout = 0")

    def follow_replacement(self) -> None:
        """Open the files again if others took their place: the old ones get no change any more.

        So too if a file changed that SQLite was told never to change: a gateway that may only read the registry
        must see a revocation.

        Raises:
            LoraOpsError: a new file can't be opened.
        """
        found = places(self.path)
        # Where the database was removed, what is open is all there is. Its signed head is gone as well.
        if found[0] is None:
            return
        is_same = self._is_followed or (
            stamp(self.path) == self._stamp and (self._was_settled or not is_settled(self._stamp))
        )
        if found == self._places and is_same:
            return
        self.connection.close()
        self._places = ()  # if opening fails, as while somebody writes, the next call tries again
        try:
            self.connection = self._open(False)
        except FAILURES as error:
            raise self._sentence(error) from error
        self._places = places(self.path)
        self.openings += 1

    def _open(self, create: bool) -> sqlite3.Connection:
        """Open the file to write, or else to read: on a full disk SQLite can't make the index of its WAL."""
        try:
            require_files(self.path)
        except OSError as error:
            raise Damaged(f"{error.strerror}.") from error
        self.read_only, self._unwritable = not os.access(self.path.parent, os.W_OK), None
        if not self.read_only and self.path.exists() and not os.access(self.path, os.W_OK):
            self.read_only = True
            self._unwritable = Unavailable(
                f"This account may not write {self.path}, which `chmod g+w` by its owner lets its group do: "
                "nothing was changed."
            )
        if self.read_only:
            return self._open_to_read()
        try:
            return self._open_to_write(create)
        except sqlite3.OperationalError as error:
            if create or not any(words in str(error) for words in ("is full", "disk I/O error")):
                raise
            db = self._open_to_read()
            self.read_only, self._unwritable = True, self._sentence(error)
            return db

    def _open_to_write(self, create: bool) -> sqlite3.Connection:
        # `rwc` makes a missing file, `rw` does not: it may be deleted since somebody looked.
        mode = "rwc" if create else "rw"
        if create:
            _begin(self.path)
        uri = f"file:{quote(str(self.path))}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=self.busy_seconds)
        deadline = time.monotonic() + self.busy_seconds
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait for its busy timeout while another process turns WAL on.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("SELECT count(*) FROM sqlite_master")  # opens the WAL and its index, too
        return db

    def _open_to_read(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path))}?mode=ro"
        self._is_followed = True
        try:
            # Where a reader makes the WAL and its index, they are its own, and the owner of the database could
            # not write any more: `registry list` by another account would stop every change.
            if self.read_only and not self.path.with_name(f"{self.path.name}-wal").exists():
                raise sqlite3.OperationalError("there is no WAL to read")
            shm = "&readonly_shm=1" if self.read_only else ""
            db = sqlite3.connect(uri + shm, uri=True, isolation_level=None, timeout=self.busy_seconds)
            db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            # WAL wants to write its index, and a file without one can be read as if nobody changed it. Others
            # may change it, so what it is now is kept before it is read.
            self._is_followed, self._stamp = False, stamp(self.path)
            self._was_settled = is_settled(self._stamp)
            db = sqlite3.connect(f"{uri}&immutable=1", uri=True, isolation_level=None)
            db.execute("SELECT count(*) FROM sqlite_master")
        return db

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Every row that the statement gives; a statement that changes something gives none.

        Raises:
            LoraOpsError: the database is damaged, full, busy or read-only.
        """
        try:
            return self.connection.execute(sql, values).fetchall()
        except FAILURES as error:
            raise self._sentence(error) from error

    def row(self, sql: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """The first row, or None."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def check_writable(self) -> None:
        """Refuse at once what could not be written anyway.

        Raises:
            LoraOpsError: the disk or the folder is read-only.
        """
        if self._unwritable:
            raise self._unwritable
        if self.read_only:
            raise Unavailable(
                f"The registry in {self.path.parent} is on a read-only disk or folder: nothing was changed."
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction that holds the only write lock; any error, or a kill, leaves nothing of it.

        Raises:
            LoraOpsError: the disk is read-only or full, or another process has the lock for 30 seconds.
        """
        self.check_writable()
        # A change in a file that a restore took out of its place would be one that nobody sees.
        self.follow_replacement()
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            with suppress(*FAILURES):  # SQLite has rolled back already after some errors
                self.connection.execute("ROLLBACK")
            raise
        # Whoever deletes the WAL, or copies the database without it, takes no change back that was made.
        with suppress(*FAILURES):
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction in which every query sees the same moment."""
        self.rows("BEGIN")
        try:
            yield
        finally:
            self.rows("ROLLBACK")

    def copy_to(self, path: Path) -> None:
        """Write a copy of the database as this connection sees it, inside `reading` of that moment.

        Raises:
            LoraOpsError: the database is damaged, or the copy can't be written.
        """
        try:
            with closing(sqlite3.connect(path)) as copy:
                self.connection.backup(copy)
        except FAILURES as error:
            raise self._sentence(error) from error

    def close(self) -> None:
        """Release the file."""
        self.connection.close()

    def _foreign(self) -> str:
        """Return which files this account may not write, and what to do, to end a sentence, or nothing."""
        parts = (self.path.with_name(self.path.name + end) for end in ENDS)
        foreign = [one.name for one in parts if one.exists() and not os.access(one, os.W_OK)]
        if not foreign:
            return ""
        return f"; this account may not write {', '.join(foreign)}: let the owner run `chmod g+w` on it"

    def _sentence(self, error: Exception) -> LoraOpsError:
        text = str(error)
        folder = self.path.parent
        if "readonly" in text or "Read-only" in text or isinstance(error, PermissionError):
            return Unavailable(
                f"The registry in {folder} can't be written ({text}{self._foreign()}): nothing was changed."
            )
        if "locked" in text:
            since = f" for {self.busy_seconds:.0f} seconds" if self.busy_seconds else ""
            return Unavailable(
                f"The registry in {folder} is busy: another process has kept it locked{since}; try again."
            )
        # Whoever drops a table changes what is kept as whoever changes its rows does.
        if any(
            one in text for one in ("not a database", "malformed", "decode", "no such table", "no such column")
        ):
            return Damaged(f"{self.path} is damaged ({text}): restore it from a backup.")
        if "is full" in text or isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unavailable(
                f"The disk that holds the registry in {folder} is full: free some space and run this again; "
                "nothing was changed."
            )
        if "disk I/O error" in text:  # so says SQLite of its WAL and its index on a full disk, too
            return Unavailable(
                f"The disk that holds the registry in {folder} can't be written or read ({text}): it is full "
                f"(`df {folder}`) or failing (`dmesg`); nothing was changed."
            )
        if "unable to open" in text and self.path.exists() is False:
            return Unavailable(f"There is no registry in {folder}, and one can't be made there ({text}).")
        return Unavailable(f"The registry in {folder} can't be used ({text}).")


def keep_private(path: Path) -> None:
    """Take the rights of other users from a database: whoever can read it can lock it, and stop every change.

    SQLite locks its files by ranges of bytes, and a shared lock on the writers' byte of its index needs no
    right to write. The WAL and its index get the rights of the database. The group keeps what it has.

    Raises:
        OSError: it belongs to somebody else.
    """
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~stat.S_IRWXO)


def _begin(path: Path) -> None:
    """Make the file of a new database; SQLite takes an empty one."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640))


def _require_own_folder(folder: Path) -> None:
    """Refuse a folder that can't be a registry's, or that holds something else and nothing of a registry."""
    if folder.is_symlink() and not folder.exists():
        raise LoraOpsError(f"{folder}, which should be the registry, is a symlink that leads nowhere: mend it.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise LoraOpsError(f"{folder} is a file, and a registry is a folder: correct registry.path.")
    found = {one.name for one in folder.iterdir() if not one.name.startswith(".")} - {"lost+found"}
    if found and not registry_parts(folder):
        raise LoraOpsError(
            f"{folder} is no registry, and holds other things ({', '.join(sorted(found)[:3])}): name a folder "
            "of its own in registry.path."
        )


def registry_parts(folder: Path) -> list[str]:
    """Return what of a registry lies in `folder`.

    Raises:
        OSError: it is no folder that can be read.
    """
    return [one.name for one in folder.iterdir() if one.name.startswith("registry.sqlite") or one.name in PARTS]


def _missing(path: Path) -> LoraOpsError:
    if path.parent.is_dir() and registry_parts(path.parent):
        return Damaged(f"{path} was removed, and the rest of the registry is there: restore it from a backup.")
    return MissingRegistry(path.parent)

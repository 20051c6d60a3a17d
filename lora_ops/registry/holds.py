"""Holds: revocations and stops that one machine states before the log takes them, so that they count at once.

A log at W&B takes none while W&B is down or refuses changes, and a log here none while it is damaged or its
disk is. A hold is a signed file, and no entry of the audit log, so it forks nothing.
It is kept twice, in the registry's folder and beside the memory of its head. Whoever removes or changes one of
the two lets nothing serve, and `verify` says so. A hold stays until the log shows its version closed.
"""

import errno
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from lora_ops.clock import to_the_minute, utc
from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.escaping import one_line
from lora_ops.folders import make_folder
from lora_ops.hashing import canonical
from lora_ops.records.evidence import Evidence
from lora_ops.records.record import Record, Sha256
from lora_ops.registry.files import sync_folder, write_atomically
from lora_ops.registry.signing import Signer
from lora_ops.small_files import parse_json, read_small

FOLDER = "holds"
STOPS = "stops"
"""The folder of kill switches: a stop is a hold that the log takes as a change of the route (stops.py)."""
ANY_CONTENT = "0" * 64
"""Stands for the content digest of a version where no database said which content it has."""
RESERVE = "holds.reserve"
RESERVED_BYTES = 64 * 1024
"""Kept on the disk so that a hold can be written where the disk is full."""
NAME = re.compile(r"([a-z][a-z0-9_-]{0,39}@[1-9][0-9]{0,17})-([0-9a-f]{64})\.json")
"""Version and content digest: a hold whose file was changed still says what it stops."""

Copy = Literal["whole", "changed", "missing", "not kept"]
Place = tuple[tuple[str, int], ...]

logger = logging.getLogger(__name__)


class Statement(Record):
    """What a person decided, as it is signed."""

    kind: Literal["hold", "stop"] = "hold"
    """Signed along, so that nobody can make a revocation of a stop by moving its file."""
    version: str
    content_digest: Sha256
    actor: str
    reason: str
    at: str
    evidence: list[Evidence] = []
    up_to: str | None = None
    """For any content, where the clock is behind the files here: versions that were registered up to then."""


@dataclass(frozen=True)
class Hold:
    """One version that this machine does not serve any more.

    Attributes:
        version: which, such as `finance@3`.
        content_digest: of its content; another content under the same number is not stopped.
        statement: who decided it, when and why; None where no copy can be read.
        is_signed: whether a key that is trusted here signed the statement. Without it the version is stopped
            all the same, and the log gets no revocation by a person who may never have asked for it.
        inside: its copy in the registry's folder.
        outside: its copy beside the memory of the head.
        latest: the latest time that one of its copies states, `up_to` included; None where no copy can be read.
            Whoever can write one of the two copies must not free a version by an earlier time.
        log: where it does not stand yet.
    """

    version: str
    content_digest: str
    statement: Statement | None
    is_signed: bool
    inside: Copy
    outside: Copy
    latest: str | None = None
    log: str = "at W&B"
    did: Literal["revoked", "stopped"] = "revoked"

    @property
    def text(self) -> str:
        """Who stopped the version and when, as a sentence without its full stop."""
        if self.statement is None:
            return f"{self.version} was {self.did} on this machine, by a statement that can't be read any more"
        by, at = one_line(self.statement.actor), one_line(to_the_minute(self.statement.at))
        unsigned = "" if self.is_signed else "; no trusted key signed that"
        return (
            f"{self.version} was {self.did} on this machine by {by} on {at}, and not yet {self.log}{unsigned}"
        )

    @property
    def facts(self) -> dict[str, str | None]:
        """Who stopped the version, when and why, for programs; None where no copy can be read."""
        said = self.statement
        names = ("actor", "at", "reason")
        return {name: getattr(said, name) if said else None for name in names}

    @property
    def problem(self) -> str | None:
        """Return what somebody did to its files, in words, or None."""
        command = "registry revoke" if self.did == "revoked" else "route stop"
        again = f"`lora-ops {command} {self.version} --reason TEXT` writes it again"
        if self.statement is None or "changed" in (self.inside, self.outside):
            return f"the hold of {self.version} was changed: {again}"
        if self.inside == "missing":
            return (
                f"the hold of {self.version} was removed from the registry, or an older copy of the registry "
                f"was restored: the version stays stopped, and {again}"
            )
        return None


class _Found(NamedTuple):
    """One file of a hold as it was read."""

    content: bytes
    statement: Statement | None
    is_signed: bool


class Holds:
    """The holds of one registry on this machine.

    Args:
        inside: the folder in the registry.
        signer: signs with this machine's key, and knows whom to trust.
        log: where a hold does not stand yet: `at W&B`, or `in the audit log`.
        keys: says which keys the audit log names. Whoever can write in the registry's folder can put a key of
            their own beside the others, so its signature counts for nothing.
        kind: of the statements that are kept here.
    """

    def __init__(
        self,
        inside: Path,
        signer: Signer,
        log: str = "at W&B",
        keys: Callable[[], frozenset[str]] = frozenset,
        kind: Literal["hold", "stop"] = "hold",
    ) -> None:
        self.inside = inside
        self._kind = kind
        self.outside: Path | None = None
        """The second folder, outside the registry; None where nothing is remembered outside."""
        self._signer = signer
        self._log = log
        self._keys = keys
        self._listed: dict[Path, Place] = {}
        """What each folder held when it could be listed last."""
        self._place: tuple[Place, ...] | None = None
        self._known: tuple[Hold, ...] = ()

    @property
    def _folders(self) -> tuple[Path, ...]:
        return (self.inside, self.outside) if self.outside else (self.inside,)

    def place(self) -> tuple[Place, ...]:
        """Return what differs after a file was added, replaced or removed; it costs microseconds."""
        return tuple(map(self._list, self._folders))

    def all(self) -> tuple[Hold, ...]:
        """Return every hold, by version; also those of versions that were closed since."""
        place = self.place()
        if place != self._place:
            names = sorted({name for folder in place for name, _ in folder})
            self._known = tuple(map(self._read, names))
            self._place = place
        return self._known

    def files(self, hold: Hold) -> str:
        """Return where a hold is kept, for people."""
        paths = (folder / _name(hold.version, hold.content_digest) for folder in self._folders)
        return " and ".join(str(path) for path in paths if os.path.lexists(path))

    def unreadable(self) -> str | None:
        """Return which folder can't be read, so that nobody knows what it stops, in words, or None."""
        for folder in self._folders:
            try:
                os.scandir(folder).close()
            except FileNotFoundError:
                continue
            except OSError as error:
                return f"the holds in {folder} can't be read ({disk_reason(error)}): make that folder readable"
        return None

    def keep(self, statement: Statement, *, signs: bool = True) -> None:
        """Sign a statement and write it to both places; one of them is enough to stop the version.

        Where this machine can't sign, the statement is kept without a signature: it stops the version, too.

        Args:
            statement: what was decided.
            signs: whether to sign; where no registry is, that would begin one.

        Raises:
            Unavailable: neither place can be written.
        """
        if statement.content_digest == ANY_CONTENT:
            # The version was registered before its files were written, whatever the clock says now.
            written = _last_written(folder.parent for folder in self._folders)
            if written and written > statement.at:
                statement = statement.model_copy(update={"up_to": written})
        said, signature = statement.model_dump(mode="json", exclude_none=True), None
        try:
            signature = self._signer.sign_text(canonical(said)) if signs else None
        except (OSError, LoraOpsError) as error:
            logger.warning("The hold of %s is not signed: %s", statement.version, error)
        content = json.dumps({"hold": said, "signature": signature}, indent=2).encode()
        self._write(_name(statement.version, statement.content_digest), content, self._folders)

    def mend(self, hold: Hold) -> None:
        """Write the copy of a hold that is missing or was changed again, from the whole one."""
        copies = (hold.inside, hold.outside)
        if self.outside is None or "whole" not in copies or copies == ("whole", "whole"):
            return
        name = _name(hold.version, hold.content_digest)
        good, bad = self.inside, self.outside
        if hold.inside != "whole":
            good, bad = bad, good
        with suppress(OSError, LoraOpsError):
            self._write(name, read_small(good / name), (bad,))
            logger.warning("The hold of %s was missing or changed in %s: written again.", hold.version, bad)

    def copy_outside(self) -> None:
        """Keep beside the memory of the head what only the registry's folder has.

        A gateway of another clone has a memory of its own. Removing one file must not free the version there.
        """
        for hold in self.all() if self.outside else ():
            if hold.outside == "missing" and self.outside:
                name = _name(hold.version, hold.content_digest)
                with suppress(OSError, LoraOpsError):
                    self._write(name, read_small(self.inside / name), (self.outside,))

    def drop(self, hold: Hold) -> None:
        """Remove a hold whose version the log shows closed; what can't be removed stops nothing any more."""
        name = _name(hold.version, hold.content_digest)
        for folder in self._folders:
            try:
                (folder / name).unlink(missing_ok=True)
                sync_folder(folder)
            except OSError as error:
                logger.warning("The hold of %s can't be removed (%s).", hold.version, disk_reason(error))

    def copy_to(self, folder: Path) -> None:
        """Write every whole hold into a new folder, for a backup; without one, no folder is made.

        Raises:
            OSError: it can't be read or written.
        """
        for hold in self.all():
            name = _name(hold.version, hold.content_digest)
            source = self.inside if hold.inside == "whole" else self.outside
            if source and "whole" in (hold.inside, hold.outside):
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(read_small(source / name))

    def reserve(self) -> None:
        """Keep some room on the disk for the next hold; where that fails, there is none."""
        for folder in self._folders:
            path = folder.with_name(RESERVE)
            with suppress(OSError):
                if not path.is_file():
                    write_atomically(path, os.urandom(RESERVED_BYTES))  # no file system compresses it

    def _write(self, name: str, content: bytes, folders: tuple[Path, ...]) -> None:
        failed = []
        for folder in folders:
            try:
                try:
                    _put(folder, name, content)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    folder.with_name(RESERVE).unlink()
                    _put(folder, name, content)
            except OSError as error:
                failed.append(disk_reason(error))
                logger.warning("A hold can't be kept in %s (%s).", folder, disk_reason(error))
        if len(failed) == len(folders):
            raise Unavailable(
                f"The hold can't be kept on this machine ({failed[0]}): mend that, or stop the gateway, which "
                "takes the version out until then."
            )

    def _list(self, folder: Path) -> Place:
        """Return name and inode of each hold in a folder.

        One that can't be listed holds what it held before: a gateway without a free file descriptor must not
        serve a version that was stopped. Where nobody has listed it before, see `unreadable`.
        """
        try:
            with os.scandir(folder) as entries:
                found = sorted((one.name, one.inode()) for one in entries if NAME.fullmatch(one.name))
                self._listed[folder] = tuple(found)
        except FileNotFoundError:
            self._listed[folder] = ()
        except OSError:
            pass
        return self._listed.get(folder, ())

    def _read(self, name: str) -> Hold:
        match = NAME.fullmatch(name)
        assert match
        found = [self._found(folder / name, match[1], match[2]) for folder in self._folders]
        there = [one for one in found if one is not None]
        # A signed copy says more than one that somebody could write.
        best = max(there, key=lambda one: (one.is_signed, one.statement is not None), default=None)
        copies = [_copy(one, best) for one in found]
        statements = [one.statement for one in there if one.statement]
        return Hold(
            match[1],
            match[2],
            best.statement if best else None,
            bool(best and best.is_signed),
            copies[0],
            copies[1] if self.outside else "not kept",
            max((max(said.at, said.up_to or "") for said in statements), default=None),
            self._log,
            "revoked" if self._kind == "hold" else "stopped",
        )

    def _found(self, path: Path, version: str, digest: str) -> _Found | None:
        try:
            content = read_small(path)
        except FileNotFoundError:
            return None
        except OSError:
            return _Found(b"", None, False)
        try:
            said = parse_json(content)
            statement = Statement.model_validate(said["hold"])
            stated = (statement.kind, statement.version, statement.content_digest)
            named = stated == (self._kind, version, digest)
            is_signed = named and self._is_signed(said["hold"], said["signature"])
        except (ValueError, TypeError, LookupError, ValidationError):
            return _Found(content, None, False)
        return _Found(content, statement, is_signed) if named else _Found(content, None, False)

    def _is_signed(self, said: Any, signature: Any) -> bool:
        # A gateway's account that may not read the keys must not stop answering for one hold.
        with suppress(OSError, LoraOpsError):
            is_fit = self._signer.fits_text(canonical(said), signature)
            return is_fit and self._signer.counts_here(signature["key"], self._keys())
        return False


def _last_written(folders: Iterable[Path]) -> str | None:
    """Return when something in these folders was written last, or None."""
    times = []
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            for one in entries:
                with suppress(OSError, ValueError, OverflowError):  # gone, or a time that no calendar has
                    found = one.stat(follow_symlinks=False).st_mtime
                    times.append(utc(datetime.fromtimestamp(found, UTC)))
    return max(times, default=None)


def _put(folder: Path, name: str, content: bytes) -> None:
    is_new = not folder.is_dir()
    make_folder(folder.parent)  # a file in its place must not keep a version on air
    make_folder(folder)
    if is_new:  # what a link leads to keeps its mode
        # A gateway of another account must see it, whatever umask its operator has.
        folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))
    write_atomically(folder / name, content)


def _copy(one: _Found | None, best: _Found | None) -> Copy:
    if one is None:
        return "missing"
    # Two processes that revoke at once may each write one of the two copies: both are what was decided.
    same = best is not None and one.statement is not None and one.content == best.content
    return "whole" if one.is_signed or same else "changed"


def _name(version: str, digest: str) -> str:
    return f"{version}-{digest}.json"

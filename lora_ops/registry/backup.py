"""Backups of a registry at any URL that fsspec reads and writes; `restoring` is the way back.

A backup is a folder of content-addressed files, which backups share, and one small folder for each snapshot.
The list of a snapshot's files is written last: without it a snapshot does not count, wherever a process was
killed. The private key is in none of them.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lora_ops.clock import utc
from lora_ops.errors import Damaged, Refused, Unavailable
from lora_ops.hashing import sha256_file
from lora_ops.registry.archived_files import archived_digests
from lora_ops.registry.audit import Anchor, Head
from lora_ops.registry.backup_place import (
    LIST,
    SCHEMA,
    SMALL,
    Condition,
    Place,
    Snapshot,
    kept_path,
    refuse_no_place,
)
from lora_ops.registry.demo import require_no_demo
from lora_ops.registry.files import InArchive
from lora_ops.registry.gc import named_digests
from lora_ops.registry.heads import SHORTEST, compare
from lora_ops.registry.holds import FOLDER as HOLDS
from lora_ops.registry.signing_keys import IDENTITY_FILE
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import lost

TURNS = "turns"
"""A folder with one small file for each snapshot that another one follows: which one."""
ATTEMPTS = 5


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
        Unavailable: `url` can't be written, or weights went to the archive at each attempt.
    """
    require_no_demo(registry, "backed up")
    refuse_no_place(registry.path, url, "a backup")
    place = Place(url)
    if follows:
        _refuse_other_last(registry, place, follows)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _take(registry, place, follows)
        except InArchive:
            # Weights that the snapshot requires went to the archive since: one of this moment requires less.
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _take(registry: Registry, place: Place, follows: Head | None) -> Backup:
    """Make one snapshot.

    Raises:
        InArchive: a file that it names went to the archive since its database was copied.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head, files = _take_database(registry, folder)
        small = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files_in(folder)}
        snapshot = Snapshot(head, utc(registry.clock()), small, tuple(sorted(files)))
        sent = mended = 0
        for digest in snapshot.files:
            condition = _send(registry, place, digest)
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


def _send(registry: Registry, place: Place, digest: str) -> Condition:
    """Send a kept file that is not whole at its place; return what it was there before."""
    name = f"file {digest[:12]}…"
    path = registry.files.checked(digest, name)
    try:
        condition = place.condition(kept_path(digest), digest, path.stat().st_size)
        if condition != "whole":
            place.put(path, kept_path(digest))
    except (OSError, Unavailable):
        registry.files.present(digest, name)  # it may have gone to the archive while it was sent
        raise
    return condition


def _broken(place: Place, snapshot: Snapshot) -> Iterator[str]:
    """Yield the small files of a snapshot that restoring would refuse: missing, damaged or of no registry."""
    for name, digest in snapshot.small.items():
        if not SMALL.fullmatch(name) or place.condition(f"{snapshot.folder}/{name}", digest) != "whole":
            yield name


def _holds_of(snapshot: Snapshot) -> set[str]:
    """Return the names of its holds: no entry of the log tells of them, so one head may have others later."""
    return {name for name in snapshot.small if name.startswith(f"{HOLDS}/")}


def _refuse_other_last(registry: Registry, place: Place, follows: Head) -> None:
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


def _take_turn(place: Place, follows: Head, snapshot: Snapshot) -> None:
    """Let `snapshot` be the only one that follows `follows`; of two at the same time the storage takes one."""
    turn = f"{TURNS}/{follows.seq:09d}-{follows.hash[:SHORTEST]}"
    taken = place.write_new(turn, snapshot.folder.encode())
    if taken not in (None, snapshot.folder):
        raise Refused(
            f"Nothing was backed up: another backup that follows {follows.text} has begun at {place.url}. When "
            "it is there, restore it, and make your change again. If it was killed (no snapshot comes), remove "
            f"{turn} there."
        )


def _take_database(registry: Registry, folder: Path) -> tuple[Head, set[str]]:
    """Copy the database, the signed head, the public keys and the holds as they are at one moment.

    Returns:
        Where the log ends, and the digests of the files that a snapshot of that moment names.
    """
    problem = None
    for _ in range(ATTEMPTS):
        with registry.db.reading():
            head = registry.log.head()
            # Restoring refuses a row or an index that differs from the log, which would be found too late.
            problem = registry.follower.rows_problem()
            if problem:
                break
            # By the copied rows: weights that go to the archive a moment later are required of this snapshot.
            files = _required(registry) | set(filter(registry.files.holds, named_digests(registry)))
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
            return head, files
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
    # Weights that were archived are in the archive; those that are here are named by their version.
    return found - archived_digests(registry)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())

"""What the registry keeps and nothing names: files of refused changes, and copies of closed versions."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import Damaged, LoraOpsError, Unavailable, disk_reason
from lora_ops.hashing import sha256_text
from lora_ops.registry.signing import signed_digests
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED

GRACE = timedelta(days=1)
"""A younger file may belong to a change that is being made: it is kept before its entry is written."""
DIGEST = re.compile(r"[0-9a-f]{64}")


class Orphan(NamedTuple):
    """A kept file that no manifest, signature or entry of the log names."""

    digest: str
    bytes: int


class Garbage(NamedTuple):
    """What may go.

    Attributes:
        orphans: kept files that nothing names, older than the grace time.
        copies: verified copies of versions that may not be loaded.
        copied_bytes: size of those copies.
    """

    orphans: tuple[Orphan, ...]
    copies: tuple[str, ...]
    copied_bytes: int

    @property
    def bytes(self) -> int:
        """How much of the disk it takes."""
        return sum(one.bytes for one in self.orphans) + self.copied_bytes


def find_garbage(registry: Registry, grace: timedelta = GRACE) -> Garbage:
    """Return what nothing needs; nothing is changed.

    Raises:
        LoraOpsError: the database or the disk can't be read.
    """
    # The files come first: what is named after they were listed is younger than the grace time.
    old = list(_older(registry, grace))
    named = named_digests(registry)
    orphans = tuple(Orphan(digest, size) for digest, size in old if digest not in named)
    return Garbage(orphans, *_unneeded_copies(registry))


def collect_garbage(registry: Registry, grace: timedelta = GRACE) -> Garbage:
    """Remove what nothing needs and return it; registering and loading go on meanwhile.

    Raises:
        LoraOpsError: the registry is not what its log says, so nobody knows what it names; or the disk can't be
            read or written.
    """
    registry.db.check_writable()
    problem = registry.follower.problem()
    if problem:
        raise Damaged(f"The registry can't be trusted, so nothing is removed: {problem}.")
    try:
        garbage = find_garbage(registry, grace)
        registry.files.sweep()
        orphans = _remove(registry, garbage.orphans, grace)
        with registry.copies.alone():
            # Listed again: a version that was registered since may have its copy by now.
            copies, size = _unneeded_copies(registry)
            for name in copies:
                registry.copies.take_away(name)
    except OSError as error:
        reason = disk_reason(error)
        raise Unavailable(f"The registry in {registry.path} can't be cleaned up ({reason}).") from error
    return Garbage(orphans, copies, size)


def _remove(registry: Registry, orphans: tuple[Orphan, ...], grace: timedelta) -> tuple[Orphan, ...]:
    """Remove files that nothing names by now, and return them.

    A change can name a file that was an orphan when it was listed. That file is young only where this user may
    touch it, and another user's file in a shared registry is not. So the log is read again while nobody can
    change it. A registration looks for its files while it holds the same lock.
    """
    if not orphans:
        return ()
    with registry.db.writing():
        named = named_digests(registry)
        return tuple(
            one
            for one in orphans
            if one.digest not in named and registry.files.remove(one.digest, grace.total_seconds())
        )


def _unneeded_copies(registry: Registry) -> tuple[tuple[str, ...], int]:
    """Return the verified copies of versions that may not be loaded, and how many bytes they take."""
    # The copies come first: a version that is registered after they were listed has none among them.
    names = registry.copies.names()
    loadable = {one.id for one in registry.summaries() if one.state not in CLOSED}
    copies = tuple(name for name in names if name not in loadable)
    return copies, sum(_size(registry.copies.folder(name)) for name in copies)


def named_digests(registry: Registry) -> set[str]:
    """Return every digest that a manifest, a signature or an entry of the audit log names.

    Entries of a newer release may name files under keys that this one does not know, so each text is searched.
    """
    bodies = [row.body for row in registry.log.rows()]
    # The evidence of a hold is in no entry until the log takes the revocation.
    bodies += [one.statement.to_json() for one in registry.holds.all() if one.statement]
    told = set[str]().union(*map(DIGEST.findall, bodies))
    versions = registry.versions()
    texts = [one.manifest_text for one in versions]
    # Where a manifest was lost or changed, the signature names the files, which whoever restores it needs.
    whole = {one.id for one in versions if sha256_text(one.manifest_text) in told}
    for one in registry.summaries():
        if one.id not in whole and one.signature:
            with suppress(LoraOpsError):  # a lost signature names nothing
                kept = registry.files.checked(one.signature, f"the signature of {one.id}")
                texts += signed_digests(kept, one.id).values()
    signatures = {one.signature for one in registry.summaries() if one.signature}
    return told.union(signatures, *map(DIGEST.findall, texts))


def _older(registry: Registry, grace: timedelta) -> Iterator[tuple[str, int]]:
    latest = time.time() - grace.total_seconds()
    for digest in registry.files.digests():
        try:
            found = registry.files.path(digest).stat()
        except FileNotFoundError:  # another collection was faster
            continue
        if found.st_mtime <= latest:
            yield digest, found.st_size


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())

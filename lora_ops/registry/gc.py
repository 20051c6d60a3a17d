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
    loadable = {one.id for one in registry.summaries() if one.state not in CLOSED}
    copies = tuple(name for name in registry.copies.names() if name not in loadable)
    return Garbage(orphans, copies, sum(_size(registry.copies.folder(name)) for name in copies))


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
        orphans = tuple(
            one for one in garbage.orphans if registry.files.remove(one.digest, grace.total_seconds())
        )
        with registry.copies.alone():
            for name in garbage.copies:
                registry.copies.take_away(name)
    except OSError as error:
        reason = disk_reason(error)
        raise Unavailable(f"The registry in {registry.path} can't be cleaned up ({reason}).") from error
    return garbage._replace(orphans=orphans)


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

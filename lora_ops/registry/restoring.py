"""The way back from a backup: fetched aside, verified, and only then named."""

import re
from contextlib import closing
from pathlib import Path

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, Unavailable, disk_reason
from lora_ops.folders import working_folder
from lora_ops.hashing import sha256_file
from lora_ops.registry.audit import Head
from lora_ops.registry.backup_place import SMALL, Place, Snapshot, kept_path
from lora_ops.registry.database import keep_private
from lora_ops.registry.files import FileStore, sync_folder
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.registry import SigningSettings

UNFINISHED = ".restoring-"
DIGEST = re.compile(r"[0-9a-f]{64}")


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
    place = Place(url)
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


def _chosen(place: Place, head: Head | None) -> Snapshot:
    found = place.snapshots()
    if head:
        found = [one for one in found if one.head.seq == head.seq and one.head.hash.startswith(head.hash)]
    if not found:
        what = f"no snapshot that ends at {head.text}" if head else "no whole snapshot"
        raise NotFound(f"There is {what} at {place.url}: `lora-ops registry backup URL` makes one.")
    return max(found, key=lambda one: one.head.seq)


def _fetch(place: Place, snapshot: Snapshot, folder: Path) -> None:
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
        place.get(kept_path(digest), arrived)
        if sha256_file(arrived) != digest:
            raise Damaged(
                f"{kept_path(digest)} was changed at {place.url}: make another backup of a whole registry."
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

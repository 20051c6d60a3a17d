"""Weights that are in an archive: which, where, and the way there and back.

Only the file of the weights goes. Manifest, reports, signature and log stay, so a version can still be read and
its signature still says which bytes come back. An archived file is compressed without loss, under the SHA-256
of what it was. The order is the same wherever a process is killed: the file is sent, read back and compared;
then one entry of the log says where it is; then the original goes. A run that finds an original that the log
calls archived ends what the killed one began. Where a package's file is missing and the log says so, whoever
asks for it gets `InArchive`.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, disk_reason, with_text
from lora_ops.folders import make_folder
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.archive import ArchivedFile
from lora_ops.registry import packages
from lora_ops.registry.archived_files import ARCHIVED, RESTORED, Archived, archived, archived_copy
from lora_ops.registry.backup_place import Place, without_secrets
from lora_ops.registry.files import InArchive
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.roles import MAY, require_role
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.weight_compression import Codec, compressed, expanded, stored_format

FOLDER = "weights"
"""Of all archived files, at any place."""

ATTEMPTS = 3
"""How often weights are brought back that a run of the archive takes away at the same moment."""

logger = logging.getLogger(__name__)


def weights_of(version: Version) -> tuple[str, int] | None:
    """Return digest and bytes of a version's file of weights; None where its package has none.

    Raises:
        LoraOpsError: the manifest was lost, or can't be read.
    """
    file = version.stored["files"].get(ADAPTER_FILES[0])
    return (str(file["sha256"]), int(file["bytes"])) if file else None


def send_weights(registry: Registry, version: Version, place: Place, codec: Codec) -> ArchivedFile:
    """Keep a version's weights at a place, read them back and compare them; nothing here is changed.

    A file that is there whole, from another version or a run that was killed, is not sent again.

    Raises:
        Damaged: the kept file is missing or changed, or what the place gives back is another one.
        Unavailable: the place or the disk can't be used.
    """
    weights = weights_of(version)
    if weights is None:
        raise Refused(f"The package of {version.id} has no file {ADAPTER_FILES[0]}.")
    digest, size = weights
    source = registry.files.checked(digest, f"the weights of {version.id}")
    try:
        form = stored_format(codec, source)
        name = f"{FOLDER}/{digest[:2]}/{digest}.{form}"
        stored = _stored_whole(place, name, digest, form, size)
        if stored is None:
            with source.open("rb") as file:
                place.send(name, compressed(file, form), lambda sent: _compare(sent, digest, form, size))
            # Some places copy a file to give it its name.
            stored = _stored_whole(place, name, digest, form, size)
    except OSError as error:
        raise Unavailable(f"The weights of {version.id} can't be read ({disk_reason(error)}).") from error
    if stored is None:
        raise Damaged(f"{place.url} does not give back what was kept there as {name}: nothing was archived.")
    return ArchivedFile(sha256=digest, bytes=size, store=place.url, path=name, codec=form, stored_bytes=stored)


def record_archived(
    registry: Registry,
    reference: str,
    file: ArchivedFile,
    *,
    actor: str,
    reason: str,
    needed: Callable[[Version], str | None],
) -> None:
    """Write the entry that says where a version's weights are, unless somebody needs them by now.

    Args:
        registry: where.
        reference: the exact version.
        file: what `send_weights` returned.
        actor: who does it; an operator or approver.
        reason: why.
        needed: returns why a version must stay, or None; asked while nobody else can change the registry.

    Raises:
        Refused: the actor has no role for it, or the version is needed by now.
    """
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(reference)
        require_role(registry, version, actor, MAY["archived"], f"archive the weights of {version.id}")
        why = needed(version)
        if why:
            raise Refused(f"{version.id} stays: it {why}.")
        change.record(
            ARCHIVED, version.tenant, version.number, reason=reason, archive=file.model_dump(mode="json")
        )


def remove_original(
    registry: Registry, digest: str, needed: Callable[[Version], str | None], grace_seconds: float
) -> bool:
    """Remove an archived file here, if the log calls it archived for each version that has it.

    A promotion and this wait for each other, so no version goes to a stage that needs the file meanwhile.

    Args:
        registry: where.
        digest: of the file.
        needed: as in `record_archived`.
        grace_seconds: a file that was kept or brought back since stays.

    Returns:
        Whether it went.

    Raises:
        Unavailable: the disk is read-only.
    """
    try:
        with registry.db.writing():
            known = archived(registry)
            named = list(_naming(registry, digest))
            if any(one.id not in known or needed(one) for one in named):
                return False
            if not registry.files.remove(digest, grace_seconds):
                return False
    except OSError as error:
        raise Unavailable(f"{registry.path} can't be changed ({disk_reason(error)}).") from error
    for one in named:
        forget_copy(registry, one.id)
    return True


def forget_copy(registry: Registry, version: str) -> None:
    """Take the verified copy of a version away whose weights are in the archive alone.

    Raises:
        Unavailable: the disk is read-only, or another process lays copies out for a minute.
    """
    try:
        with registry.copies.alone():
            registry.copies.take_away(version)
    except OSError as error:
        raise Unavailable(f"{registry.path} can't be changed ({disk_reason(error)}).") from error


def check_archived(one: Archived, url: str | None = None) -> None:
    """Read an archived file and compare it with its digest.

    Args:
        one: which.
        url: where the archive is now; default: where it was then.

    Raises:
        Damaged: it is missing or was changed; the text names the copy.
        Unavailable: its place can't be reached.
    """
    for _ in _stored(one, url):
        pass


def bring_back(registry: Registry, reference: str, *, actor: str, reason: str, url: str | None = None) -> bool:
    """Bring a version's weights back from the archive, verified; the archived copy stays where it is.

    It serves by the same rules as before, so no role is asked for. Digest, tensors and signature are compared.
    Where the file was lost after it had come back, the copy that an older entry names is brought back.

    Args:
        registry: where.
        reference: the exact version.
        actor: who asks for it.
        reason: why.
        url: where the archive is now; default: where it was when they were archived.

    Returns:
        Whether the file was missing here.

    Raises:
        Refused: the log does not call them archived, and the file is here or no entry names a copy.
        Damaged: the archived copy is missing or was changed; nothing was changed here.
        Unavailable: the archive or the disk can't be used.
        LoraOpsError: the weights are here, and the log takes no entry.
    """
    version = registry.get_exact(reference)
    one = archived(registry).get(version.id) or _copy_of_lost(registry, version)
    if one is None:
        raise Refused(f"The weights of {version.id} are not in the archive: there is nothing to bring back.")
    digest, was_missing = one.file.sha256, False
    for _ in range(ATTEMPTS):
        # Touched before it is read: a run that would remove the original now finds a young file.
        registry.files.touch(digest)
        if not _is_whole(registry, digest):
            was_missing = True
            _fetch(registry, one, url)
        try:
            packages.check_kept(registry, version)
        except InArchive:  # it was removed while it was checked
            continue
        with registry.change(actor) as change:
            # Removing takes the same lock: what is here now stays, once no entry calls it archived.
            if not registry.files.holds(digest):
                continue
            if was_missing or version.id in archived(registry):  # another process may have been first
                file = one.file.model_dump(mode="json")
                change.record(RESTORED, version.tenant, version.number, reason=reason, archive=file)
        return was_missing
    raise Unavailable(f"The weights of {version.id} are taken away while they come back: try again.")


def bring_back_if_archived(registry: Registry, reference: str, *, actor: str, reason: str) -> None:
    """Bring a version's weights back where they are in the archive alone: a step or a request needs them.

    A log that takes no entry now stops nothing: the file is what is needed. The next run of the archive finds
    the file, and writes the entry.

    Raises:
        LoraOpsError: as `bring_back`.
    """
    weights = weights_of(registry.get_exact(reference))
    if weights is None or registry.files.holds(weights[0]) or archived_copy(registry, weights[0]) is None:
        return
    try:
        bring_back(registry, reference, actor=actor, reason=reason)
    except LoraOpsError as error:
        if not registry.files.holds(weights[0]):
            raise
        logger.warning("The weights of %s are back, and the log does not say so: %s", reference, error)


def _is_whole(registry: Registry, digest: str) -> bool:
    with suppress(LoraOpsError):
        registry.files.checked(digest, "the weights")
        return True
    return False


def _copy_of_lost(registry: Registry, version: Version) -> Archived | None:
    """Return the archived copy of weights that are lost or damaged here and that no entry calls archived."""
    weights = weights_of(version)
    if weights is None or _is_whole(registry, weights[0]):
        return None
    found = archived_copy(registry, weights[0])
    return found._replace(version=version.id) if found else None


def _fetch(registry: Registry, one: Archived, url: str | None) -> None:
    try:
        make_folder(registry.files.incoming)
        with tempfile.TemporaryDirectory(dir=registry.files.incoming) as folder:
            arrived = Path(folder) / "weights"
            with arrived.open("wb") as file:
                for part in _stored(one, url):
                    file.write(part)
            registry.files.add(arrived, one.file.sha256)
    except OSError as error:
        raise Unavailable(
            f"The weights of {one.version} can't be brought back ({disk_reason(error)})."
        ) from error


def _stored(one: Archived, url: str | None) -> Iterator[bytes]:
    """Yield an archived file as it was, and refuse it at its end where that is another one."""
    store, file = url or one.file.store, one.file
    try:
        with Place(store).reading(file.path) as source:
            yield from _checked(source, file.sha256, file.codec, file.bytes)
    except Damaged as error:
        raise with_text(
            error,
            f"The archived copy of the weights of {one.version} is damaged at {without_secrets(store)} "
            f"({file.path}): {str(error).rstrip('.')}. Put that file back from a copy of the archive, or "
            "register the same package again; nothing was changed here.",
        ) from error


def _checked(source: BinaryIO, digest: str, form: str, size: int) -> Iterator[bytes]:
    """Yield a file that expands to `size` bytes; a few of another one might fill the disk before its end."""
    found, missing = hashlib.sha256(), size
    for part in expanded(source, form):
        missing -= len(part)
        if missing < 0:
            raise Damaged(f"it expands to more than its {size:,} bytes")
        found.update(part)
        yield part
    if found.hexdigest() != digest:
        raise Damaged(f"its SHA-256 is {found.hexdigest()[:12]}…, not {digest[:12]}…")


def _compare(source: BinaryIO, digest: str, form: str, size: int) -> None:
    for _ in _checked(source, digest, form, size):
        pass


def _stored_whole(place: Place, name: str, digest: str, form: str, size: int) -> int | None:
    """Return the bytes of a file at a place that expands to this digest, or None where none does."""
    with suppress(Damaged), place.reading(name) as source:
        _compare(source, digest, form, size)
        return source.seek(0, 2)
    return None


def _naming(registry: Registry, digest: str) -> Iterator[Version]:
    """Yield every version whose package has this file of weights."""
    for version in registry.versions():
        weights = weights_of(version)
        if weights and weights[0] == digest:
            yield version

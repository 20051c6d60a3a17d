"""The files of a version: verified, exported, and laid out for an engine to load."""

import logging
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import get_args

from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, disk_reason
from lora_ops.folders import working_folder
from lora_ops.records.manifest import ADAPTER_FILES
from lora_ops.records.registry import State
from lora_ops.registry.eligibility import hold_reason, reasons_against
from lora_ops.registry.files import check_package
from lora_ops.registry.replay import row_mismatches
from lora_ops.registry.signing import SIGNATURE_FILE
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import misstated_weights
from lora_ops.registry.versions import CLOSED, Version

logger = logging.getLogger(__name__)


def export(registry: Registry, reference: str, target: Path, *, for_review: bool = False) -> Version:
    """Write a version's files, manifest and signature into the new folder `target`, all verified.

    Args:
        registry: where.
        reference: which version.
        target: a new folder.
        for_review: also write what may not serve, to be looked at: a candidate, or one whose data expired.

    Raises:
        LoraOpsError: unknown, rejected, revoked or archived version, one that may not serve, a kept file is
            missing or changed, the signature does not fit, or `target` exists.
    """
    version = _loadable(registry, reference)
    reason = next(reasons_against(registry, version.summary, registry.clock()), None)
    if reason and not for_review:
        raise LoraOpsError(f"{reason}. To look at it all the same: `--for-review`; nothing was written.")
    if target.exists():
        raise LoraOpsError(f"{target} exists already: name a new folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not `working_folder`: it is a folder of somebody's choice, and nothing there may be swept.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as name:
            folder = Path(name) / "package"
            _fill(registry, version, folder)
            check_folder(registry, version, folder)
            folder.rename(target)
    except OSError as error:
        raise Unavailable(f"{version.id} can't be written to {target}: {disk_reason(error)}.") from error
    return version


def verified_path(registry: Registry, reference: str, *, followed: bool = False) -> Path:
    """Return the folder that a version may be loaded from; digests and signature are verified on every call.

    A folder that was damaged is laid out again from the kept files.

    Args:
        registry: where.
        reference: which version.
        followed: the caller follows the log and has verified all of it up to now, as the gateway's router does;
            then its signed head is enough here.

    Raises:
        Damaged: a kept file, the signature or a row is not what was registered.
        LoraOpsError: unknown, rejected, revoked or archived version; the disk is read-only or full.
    """
    version = _loadable(registry, reference, followed=followed)
    folder = registry.copies.folder(version.id)
    if not folder.is_dir():
        return _lay_out(registry, version)
    try:
        check_folder(registry, version, folder)
    except LoraOpsError as error:
        logger.warning("The verified copy of %s is laid out again: %s", version.id, error)
        return _lay_out(registry, version)
    return folder


def _lay_out(registry: Registry, version: Version) -> Path:
    """Put a new verified copy in its place, unless another process did so meanwhile."""
    copies = registry.copies
    folder = copies.folder(version.id)
    try:
        with copies.alone():
            if folder.is_dir():
                with suppress(LoraOpsError):
                    check_folder(registry, version, folder)
                    return folder
            with working_folder(copies.root, ".laid-out-") as aside:
                made = aside / "package"
                _fill(registry, version, made)
                # What is wrong now is wrong in the registry itself, so the old folder stays as it is.
                check_folder(registry, version, made)
                copies.put(version.id, made)
    except OSError as error:
        raise Unavailable(f"{version.id} can't be laid out in {copies.root}: {disk_reason(error)}.") from error
    return folder


def check_folder(registry: Registry, version: Version, folder: Path) -> None:
    """Verify an exported folder against the version's digests and signature, and its rows against the log.

    Raises:
        LoraOpsError: a file was added, removed or changed, or can't be read, the signature does not fit, or a
            row or the weights are not what the version's entries of the audit log say.
    """
    try:
        check_package(folder, {name: file.sha256 for name, file in version.manifest.files.items()})
        registry.signer.check(folder, _signature(registry, version), version.id)
        _check_weights(registry, version, folder / ADAPTER_FILES[0])
    except OSError as error:
        raise Unavailable(f"{folder} can't be read ({disk_reason(error)}).") from error
    with registry.db.reading():
        found = registry.load(version.tenant, version.number)
        history = registry.log.entries(version.tenant, version.number)
    for problem in row_mismatches(found, history):
        raise Damaged(f"{version.id} may not be loaded: {problem}; run `lora-ops registry verify`.")


def check_kept(registry: Registry, version: Version) -> None:
    """Verify a version's kept files, its signature and its weights in the log without exporting it.

    Raises:
        LoraOpsError: a kept file is missing or changed, the signature does not fit, or the log states other
            weights.
    """
    for name, file in version.manifest.files.items():
        registry.files.checked(file.sha256, name)
    check_signature(registry, version)
    _check_weights(registry, version)


def check_signature(registry: Registry, version: Version) -> None:
    """Verify a version's signature over its kept files and its manifest.

    Raises:
        LoraOpsError: it has none, it does not fit, or a kept file is missing.
    """
    kept = _signature(registry, version)
    digests = {name: file.sha256 for name, file in version.manifest.files.items()}
    texts = {"manifest.json": version.manifest_text}
    with registry.files.staged(version.id, digests, texts) as folder:
        registry.signer.check(folder, kept, version.id)


def _check_weights(registry: Registry, version: Version, adapter: Path | None = None) -> None:
    wrong = misstated_weights(registry, version, adapter)
    if wrong:
        raise Damaged(f"{wrong[0].upper()}{wrong[1:]}: train and register another version.")


def _loadable(registry: Registry, reference: str, *, followed: bool = False) -> Version:
    version = registry.get(reference)
    follower = registry.follower
    problem = follower.head_problem() if followed else follower.problem()
    if problem:
        raise Damaged(f"{version.id} may not be loaded: {problem}; run `lora-ops registry verify`.")
    if version.state in CLOSED:
        raise Refused(f"{version.id} was {version.state}: it may not be loaded.")
    held = hold_reason(registry, version.summary)
    if held:
        raise Refused(f"{held}.")
    if version.state not in get_args(State):
        raise Refused(
            f"{version.id} is '{version.state}', a state that this release does not know, so it may not be "
            "loaded: update lora-ops."
        )
    return version


def _fill(registry: Registry, version: Version, folder: Path) -> None:
    paths = {n: registry.files.checked(f.sha256, n) for n, f in version.manifest.files.items()}
    paths[SIGNATURE_FILE] = _signature(registry, version)
    for name, path in paths.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    (folder / "manifest.json").write_text(version.manifest_text, encoding="utf-8")


def _signature(registry: Registry, version: Version) -> Path:
    digest = version.summary.signature
    if digest is None:
        raise Damaged(f"{version.id} carries no signature: package and register it again.")
    return registry.files.checked(digest, f"the signature of {version.id}")

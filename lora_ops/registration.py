"""Packages into the registry: the one step that follows the pipeline and isn't a stage of it.

`dvc repro` and `dvc exp run` change files of the workspace only. A trial of a sweep must never become the
candidate, so a person or CI registers what is worth it.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lora_ops.adapter_files import require_lora
from lora_ops.clock import now
from lora_ops.errors import LoraOpsError, disk_reason
from lora_ops.evaluation.recount import require_recounted
from lora_ops.folders import working_folder
from lora_ops.hashing import sha256_file
from lora_ops.packaging import packaged, read_dvc_lock
from lora_ops.page import page_evaluation
from lora_ops.paths import ADAPTER_FILES, EVALUATION, EVALUATION_PAGE, MANIFEST
from lora_ops.records.data import DataRecord, previous_path
from lora_ops.records.manifest import FileRecord, Manifest
from lora_ops.registry.consistency import require_complete, require_consistent
from lora_ops.registry.files import check_package
from lora_ops.registry.own_texts import require_own_texts
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version


class Outcome(NamedTuple):
    """What became of one tenant's package: a version, or the reason why it was refused."""

    tenant: str
    version: Version | None
    is_new: bool = False
    problem: str | None = None


def tenants_with_package(tenants: Iterable[str], root: Path) -> list[str]:
    """Return those of `tenants` that have a package.

    Raises:
        LoraOpsError: none of them has one.
    """
    found = [tenant for tenant in tenants if (root / "packages" / tenant / MANIFEST).is_file()]
    if not found:
        raise LoraOpsError("Nothing is packaged yet: run `make repro`.")
    return found


def require_one_fit(tenants: Iterable[str], root: Path) -> None:
    """Refuse packages of which none can be registered, before a registry is made for them.

    Raises:
        LoraOpsError: no package is whole; the text says what is wrong with each.
    """
    problems = []
    for tenant in tenants:
        try:
            folder, manifest = root / "packages" / tenant, packaged(tenant, root)
            check_package(folder, {name: one.sha256 for name, one in manifest.files.items()})
            require_consistent(folder, manifest)
            require_complete(folder, manifest, now())
            require_recounted(folder, manifest)
            require_lora(folder / ADAPTER_FILES[0])
            require_own_texts(folder, manifest)
            return
        except LoraOpsError as error:
            problems.append(f"{tenant}: {str(error).rstrip('.')}")
    raise LoraOpsError(f"Nothing was registered, and no registry was made: {'; '.join(problems)}.")


def register_packages(
    tenants: Iterable[str],
    root: Path,
    registry: Registry,
    *,
    actor: str | None = None,
    changed_by: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Register the package of each tenant; one that is refused doesn't stop the others.

    The same content is the same version: registering twice adds nothing. The package stays as it is, since it
    is an output of DVC: only the registry's copy of the manifest has a version number.
    """
    for tenant in tenants:
        try:
            manifest = packaged(tenant, root).model_copy(update={"version": None, "parent": None})
            with _with_page(manifest, root) as (folder, whole):
                version, is_new = registry.register(folder, whole, actor=actor, changed_by=changed_by)
        except LoraOpsError as error:
            yield Outcome(tenant, None, problem=str(error))
        except OSError as error:
            yield Outcome(tenant, None, problem=f"packages/{tenant} can't be read whole ({_reason(error)}).")
        else:
            _keep_for_comparison(manifest.data, root)
            yield Outcome(tenant, version, is_new)


def _keep_for_comparison(data: DataRecord, root: Path) -> None:
    # 01_prepare compares the next data with it, and must not read the registry.
    path = previous_path(data.tenant, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(data.to_json(), encoding="utf-8")
    temporary.replace(path)


@contextmanager
def _with_page(manifest: Manifest, root: Path) -> Iterator[tuple[Path, Manifest]]:
    """Give the package with the page of its evaluation, so that a version keeps what its reviewers read.

    The page joins here and not in the stage `package`: an executed notebook has other bytes at each run, and no
    stage may depend on one. A page that doesn't name the package's evaluation is left out; so is one that was
    edited since its stage made it, and one that a clone with pulled packages lacks.
    """
    package, page = root / "packages" / manifest.tenant, _page(manifest.tenant, root)
    if not page.is_file() or _why_left_out(page, manifest, root):
        yield package, manifest
        return
    with working_folder(package.parent, f".{manifest.tenant}-") as aside:
        folder = aside / "package"
        shutil.copytree(package, folder)
        shutil.copyfile(page, folder / EVALUATION_PAGE)
        added = FileRecord(bytes=page.stat().st_size, sha256=sha256_file(folder / EVALUATION_PAGE))
        yield folder, manifest.model_copy(update={"files": {**manifest.files, EVALUATION_PAGE: added}})


def about_page(tenant: str, root: Path) -> list[str]:
    """Return a note if the page of a tenant's report was left out of its version."""
    page = _page(tenant, root)
    why = _why_left_out(page, packaged(tenant, root), root) if page.is_file() else None
    return [
        f"{page.relative_to(root)} is not {why}, so the version keeps none (`dvc repro package@{tenant}` "
        "before the next one)"
    ] * bool(why)


def _why_left_out(page: Path, manifest: Manifest, root: Path) -> str | None:
    """Return which page a file is not, or None where it is the page of the package's evaluation.

    People read the figures on it, and nothing counts these again. An edited one differs from what dvc.lock
    names.
    """
    evaluated = manifest.files.get(EVALUATION)
    if evaluated is None or page_evaluation(page) != evaluated.sha256:
        return f"the page of the evaluation in packages/{manifest.tenant}"
    name = re.escape(page.relative_to(root).as_posix())
    made = re.search(
        rf"^ *- path: {name}\n(?: +\w+: .*\n)*? +md5: ([0-9a-f]{{32}})$",
        read_dvc_lock(root),
        re.MULTILINE,
    )
    md5 = hashlib.md5(page.read_bytes(), usedforsecurity=False).hexdigest()
    return "the page that its stage made (dvc.lock)" if made and made[1] != md5 else None


def _page(tenant: str, root: Path) -> Path:
    return root / "reports" / tenant / EVALUATION_PAGE


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # of copying a folder: (file, its copy, why) of each that failed
        source, _, why = error.args[0][0]
        return f"{Path(source).name}: {why}"
    return disk_reason(error)


def registered_id(manifest: Manifest, registry: Registry | None) -> str | None:
    """Return the id of the version that holds exactly this package, or None."""
    held = registry.holding(manifest) if registry else None
    return held.id if held else None

"""Packages into the registry: the one step that follows the pipeline and isn't a stage of it.

`dvc repro` and `dvc exp run` change files of the workspace only. A trial of a sweep must never become the
candidate, so a person or CI registers what is worth it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.packaging import packaged
from lora_ops.paths import MANIFEST
from lora_ops.records.manifest import Manifest
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


def register_packages(
    tenants: Iterable[str], root: Path, registry: Registry, *, actor: str | None = None
) -> Iterator[Outcome]:
    """Register the package of each tenant; one that is refused doesn't stop the others.

    The same content is the same version: registering twice adds nothing. The package stays as it is, since it
    is an output of DVC: only the registry's copy of the manifest has a version number.
    """
    for tenant in tenants:
        try:
            manifest = packaged(tenant, root).model_copy(update={"version": None, "parent": None})
            version, is_new = registry.register(root / "packages" / tenant, manifest, actor=actor)
        except LoraOpsError as error:
            yield Outcome(tenant, None, problem=str(error))
        else:
            yield Outcome(tenant, version, is_new)


def registered_id(manifest: Manifest, registry: Registry | None) -> str | None:
    """Return the id of the version that holds exactly this package, or None."""
    held = registry.holding(manifest) if registry else None
    return held.id if held else None

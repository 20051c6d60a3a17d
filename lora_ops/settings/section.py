"""The base of every section of params.yaml, and what several sections share."""

import posixpath
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

TENANT_PATTERN = r"^[a-z][a-z0-9_-]{0,39}$"

# Each of these names something else already: a model of the gateway, an alias or a state of the registry, an
# entry of owners.yaml, a folder or a file beside the tenants' own, a collection at W&B.
# fmt: off
RESERVED_TENANTS = frozenset({
    "base", "default", "all", "any", "none", "null", "latest", "other",
    "candidate", "validated", "shadow", "canary", "production",
    "superseded", "archived", "rejected", "revoked",
    "incidents", "incident", "data_docs", "registry", "traffic", "tenants", "previous",  # reports/, data/
    "data", "policy", "drift", "general", "sets",  # suites/
    "audit", "adapter", "lora-adapter", "base-model",  # W&B
})
# fmt: on

# The project stores what belongs to `finance` under `finance-data`, `finance-policy` and so on (a collection at
# W&B for each kind of evidence), so a tenant's own name may not end in one of these. A new store adds its own.
# fmt: off
STORE_SUFFIXES = (
    "data", "adapter", "evaluation", "regression", "policy", "human_evaluation", "release_notes", "shadow",
    "canary", "incident", "review", "kpi", "drift", "audit", "source", "package", "page", "gates",
    "rollout", "monitor", "live_numbers",
)
# fmt: on


def refuse_reserved_name(name: str) -> str:
    """Return a tenant's name unless the project uses that name for something else.

    Names of stores are compared without telling `-` from `_`, as some stores do.

    Raises:
        ValueError: the name is reserved, or reads like the name of a store or of a version.
    """
    key = _store_key(name)
    if key in {_store_key(reserved) for reserved in RESERVED_TENANTS}:
        raise ValueError(f"'{name}' is reserved, since lora-ops uses that name itself: choose another name")
    for suffix in STORE_SUFFIXES:
        if key.endswith(f"-{_store_key(suffix)}"):
            owner = name[: -len(suffix) - 1]
            raise ValueError(
                f"'{name}' would collide with what lora-ops stores of a tenant '{owner}': "
                f"choose a name that does not end in '-{suffix}'"
            )
    if re.search(r"[-_]\d+$", name):
        raise ValueError(
            f"'{name}' reads like a version of another tenant: choose a name that does not end in '-' or '_' "
            "and a number"
        )
    return name


def colliding_tenant(name: str, others: Iterable[str]) -> str | None:
    """Return the first of `others` that a store could not tell from `name`, such as `a_b` and `a-b`.

    A name equal to `name` is the same tenant and does not collide.
    """
    return next((other for other in others if other != name and _store_key(other) == _store_key(name)), None)


def _store_key(name: str) -> str:
    return re.sub(r"[-_]+", "-", name).strip("-")


# Folders that hold something else: a registry or a gateway's files among it would be lost, or committed.
_REPOSITORY_FOLDERS = frozenset(
    (
        "benchmarks",
        "data",
        "deploy",
        "lora_ops",
        "models",
        "notebooks",
        "packages",
        "profiles",
        "reports",
        "runbooks",
    )
    + ("suites", "tests", "wandb")
)


def refuse_shared_folder(path: str) -> str:
    """Return the path of a folder that the project fills, unless something else has that folder already.

    Raises:
        ValueError: it names no folder, the repository itself, a part of git or DVC, or one of its folders.
    """
    if not path.strip() or not path.isprintable():
        raise ValueError("this names no folder: write one of its own, such as .registry")
    if path.startswith("~"):
        raise ValueError("'~' is not replaced here: write the whole path of the folder")
    parts = PurePosixPath(posixpath.normpath(path)).parts
    if not parts or parts in (("/",), ("..",)):
        raise ValueError("this folder holds other things: write one of its own, such as .registry")
    if {".git", ".dvc"}.intersection(parts) or (len(parts) == 1 and parts[0] in _REPOSITORY_FOLDERS):
        raise ValueError("that folder is used already: write one of its own, such as .registry")
    return path


FolderPath = Annotated[str, AfterValidator(refuse_shared_folder)]

# A name in owners.yaml or in a registry that was made before names were reserved: its pattern alone counts.
StoredTenantName = Annotated[str, StringConstraints(pattern=TENANT_PATTERN)]
TenantName = Annotated[StoredTenantName, AfterValidator(refuse_reserved_name)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of params.yaml; a key that it does not know is an error, so a typing slip cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

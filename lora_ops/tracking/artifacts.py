"""What goes into a stage and comes out of it, as artifacts of W&B that their content names.

| what | artifact | type | files |
|---|---|---|---|
| `base_model` | `base-model` | `model` | the record only: W&B gets no weights of it |
| `source` | `finance-source` | `source` | the record only: W&B gets no source rows |
| `data` | `finance-data` | `dataset` | the prepared data |
| `adapter` | `finance-adapter` | `lora-adapter` | the trained weights and their configuration |
| `evaluation` | `finance-evaluation` | `evaluation` | metrics and every answer |
| `package` | `finance-package` | `lora-package` | the package |
| `page` | `finance-page` | `page` | the page of the evaluation, for a browser |

`lora_ops.tracking.gates` adds `finance-gates` (type `page`), `finance-release-notes` and `finance-kpi`, each
about a version. `lora_ops.tracking.monitoring` adds `finance-monitor` and `all-monitor` (type `page`).

The alias `content-<12 hex>` is the digest of the files. A stage finds its input by it, so the edge leads to the
version that was read, whichever run logged it and whatever was logged since.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.paths import (
    ANSWERS,
    BASE_MODEL,
    DATA,
    EVALUATION,
    EVALUATION_PAGE,
    MANIFEST,
    SAMPLES,
    TRAINING,
    require_file,
)

PACKAGE = "lora-package"


class TrackedArtifact(NamedTuple):
    """One input or output of a stage, as W&B should know it."""

    name: str
    type: str
    alias: str
    """`content-<12 hex>`, which names exactly this content."""
    facts: dict[str, Any]
    """What the config of a run says of it."""
    metadata: dict[str, Any]
    files: dict[str, str]
    """Name in the artifact to path."""
    texts: dict[str, str]
    """Name in the artifact to content, where there is no file that holds just that."""

    def draft(self) -> Any:
        """Return a `wandb.Artifact` with this content; nothing is sent.

        Raises:
            LoraOpsError: a file was removed or changed since this artifact was described.
        """
        import wandb

        paths = {name: Path(path) for name, path in self.files.items()}
        if paths and _alias(self.type, paths) != self.alias:
            where = Path(next(iter(self.files.values()))).parent
            raise LoraOpsError(f"{self.name}:{self.alias} is no longer what is in {where}")
        artifact = wandb.Artifact(self.name, type=self.type, metadata=self.metadata)
        for name, path in self.files.items():
            artifact.add_file(str(path), name)
        for name, text in self.texts.items():
            with artifact.new_file(name, encoding="utf-8") as file:
                file.write(text)
        return artifact


def content_alias(digests: Mapping[str, str]) -> str:
    """Return the alias that names one content, given each file's name and SHA-256."""
    return f"content-{sha256_text(canonical(dict(digests)))[:12]}"


def package_alias(digests: Mapping[str, str]) -> str:
    """Return the alias of a package: that of its files but for those that join it late and hold clocks.

    So the package that the pipeline logged and the version that the registry holds have one alias, though the
    registry numbers the manifest and adds the page of the evaluation.
    """
    late = (MANIFEST, EVALUATION_PAGE)
    return content_alias({name: digest for name, digest in digests.items() if name not in late})


def describe(what: str, tenant: str, root: Path) -> TrackedArtifact:
    """Return an input or output of a tenant's stages, as it is in `root` now.

    Args:
        what: a row of this module's table.

    Raises:
        LoraOpsError: the stage that makes it has not run yet.
    """
    return DESCRIBED[what](tenant, root)


def _base_model(tenant: str, root: Path) -> TrackedArtifact:
    record = _read(root / "models/base" / BASE_MODEL, "base_model")
    facts = {name: record[name] for name in ("id", "revision", "sha256")}
    return _record_only("base-model", "model", BASE_MODEL, record, facts)


def _source(tenant: str, root: Path) -> TrackedArtifact:
    record = _read(root / "data/prepared" / tenant / DATA, "prepare")["source"]
    return _record_only(f"{tenant}-source", "source", "source.json", record, record)


def _data(tenant: str, root: Path) -> TrackedArtifact:
    folder = root / "data/prepared" / tenant
    record = _read(folder / DATA, "prepare")
    source = record["source"]
    facts = {
        "source": f"{source['name']} {source['version']}",
        "date": source.get("date"),
        **{f"{name}_sha256": split["sha256"] for name, split in record["splits"].items()},
    }
    return _of_files(f"{tenant}-data", "dataset", folder, _names(folder), facts, record)


def _adapter(tenant: str, root: Path) -> TrackedArtifact:
    folder = root / "models/adapters" / tenant
    training = _read(root / "reports" / tenant / TRAINING, "train")
    weights = folder / "adapter_model.safetensors"
    require_file(weights, "train")
    return _of_files(
        f"{tenant}-adapter", "lora-adapter", folder, _names(folder), {"sha256": sha256_file(weights)}, training
    )


def _evaluation(tenant: str, root: Path) -> TrackedArtifact:
    folder = root / "reports" / tenant
    record = _read(folder / EVALUATION, "evaluate")
    names = [name for name in (EVALUATION, ANSWERS, SAMPLES) if (folder / name).is_file()]
    facts = {name: record[name] for name in ("test_sha256", "adapter_sha256")}
    return _of_files(f"{tenant}-evaluation", "evaluation", folder, names, facts, record)


def _package(tenant: str, root: Path) -> TrackedArtifact:
    folder = root / "packages" / tenant
    manifest = _read(folder / MANIFEST, "package")
    return _of_files(f"{tenant}-package", PACKAGE, folder, _names(folder), {}, manifest)


def _page(tenant: str, root: Path) -> TrackedArtifact:
    folder = root / "reports" / tenant
    require_file(folder / EVALUATION_PAGE, "evaluate")
    return _of_files(f"{tenant}-page", "page", folder, [EVALUATION_PAGE], {}, {})


DESCRIBED: dict[str, Callable[[str, Path], TrackedArtifact]] = {
    "base_model": _base_model,
    "source": _source,
    "data": _data,
    "adapter": _adapter,
    "evaluation": _evaluation,
    "package": _package,
    "page": _page,
}


def _record_only(
    name: str, kind: str, file: str, record: dict[str, Any], facts: dict[str, Any]
) -> TrackedArtifact:
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    alias = content_alias({file: sha256_text(text)})
    return TrackedArtifact(name, kind, alias, {**facts, "content": alias}, record, {}, {file: text})


def _of_files(
    name: str, kind: str, folder: Path, names: list[str], facts: dict[str, Any], metadata: dict[str, Any]
) -> TrackedArtifact:
    files = {each: (folder / each).resolve() for each in names}
    alias = _alias(kind, files)
    paths = {each: str(path) for each, path in files.items()}
    return TrackedArtifact(name, kind, alias, {**facts, "content": alias}, metadata, paths, {})


def _alias(kind: str, files: Mapping[str, Path]) -> str:
    digests = {name: sha256_file(path) if path.is_file() else "" for name, path in files.items()}
    return package_alias(digests) if kind == PACKAGE else content_alias(digests)


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _read(path: Path, stage: str) -> dict[str, Any]:
    require_file(path, stage)
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record

"""The run of a rollout's report: the pages of its shadow and its canary as an artifact."""

from collections.abc import Sequence
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.manifest import Manifest
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.artifacts import TrackedArtifact, content_alias, package_alias
from lora_ops.tracking.client import is_client_error, tracking_mode
from lora_ops.tracking.runs import track


def log_rollout_pages(
    adapter: str,
    manifest: Manifest,
    attempt: int,
    pages: Sequence[Path],
    settings: TrackingSettings,
    root: Path,
) -> str | None:
    """Log the pages of a rollout as `TENANT-rollout` with the alias `version-N`.

    Args:
        adapter: `tenant@number`.
        manifest: of that version; the config names its package at W&B.
        attempt: of its rollout.
        pages: HTML files.
        settings: where runs go.
        root: the repository.

    Returns:
        A sentence if W&B could not be told; the pages are written all the same.
    """
    if tracking_mode() == "disabled":
        return None
    tenant, _, number = adapter.partition("@")
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    made = TrackedArtifact(
        name=f"{tenant}-rollout",
        type="page",
        alias=content_alias({name: sha256_text(text) for name, text in texts.items()}),
        facts={},
        metadata={"adapter": adapter, "attempt": attempt},
        files={},
        texts=texts,
    )
    package = package_alias({file: one.sha256 for file, one in manifest.files.items()})
    config = {"adapter": adapter, "attempt": attempt, "package": f"{tenant}-package:{package}"}
    try:
        with track("rollout", tenant, config, settings, root) as run:
            run.log_artifact(made.draft(), aliases=[made.alias, f"version-{number}"])
    except Exception as error:
        if not is_client_error(error) and not isinstance(error, LoraOpsError):
            raise
        return f"W&B was not told of the rollout of {adapter}: {error}"
    return None

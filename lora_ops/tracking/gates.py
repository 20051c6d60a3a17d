"""The run of a gate, release notes or a rollout: tables for reviewers, and pages or notes as an artifact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.manifest import Manifest
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.artifacts import TrackedArtifact, content_alias, package_alias
from lora_ops.tracking.client import is_client_error, tracking_mode
from lora_ops.tracking.runs import log_table, track


def log_gates(
    adapter: str,
    manifest: Manifest,
    tables: Mapping[str, Any],
    page: str,
    settings: TrackingSettings,
    root: Path,
) -> str | None:
    """Log the gates of a version: its tables, and its page as `TENANT-gates` with the alias `version-N`.

    Args:
        adapter: `tenant@number`.
        manifest: of that version; the config names its package at W&B.
        tables: name -> DataFrame; an empty one is left out, since W&B takes no table without columns.
        page: the page as HTML.
        settings: where runs go.
        root: the repository.

    Returns:
        A sentence if W&B could not be told; what was filed stands all the same.
    """
    return _log("gate", adapter, manifest, tables, ("gates", "page", {f"{adapter}.html": page}), settings, root)


def log_release_notes(
    adapter: str,
    manifest: Manifest,
    tables: Mapping[str, Any],
    text: str,
    settings: TrackingSettings,
    root: Path,
) -> str | None:
    """Log the release notes of a version as `TENANT-release-notes`; arguments and result as for `log_gates`."""
    artifact = ("release-notes", "release-notes", {f"{adapter}.md": text})
    return _log("release", adapter, manifest, tables, artifact, settings, root)


def log_kpis(
    adapter: str,
    manifest: Manifest,
    tables: Mapping[str, Any],
    text: str,
    settings: TrackingSettings,
    root: Path,
) -> str | None:
    """Log the uplift of a version as `TENANT-kpi`; arguments and result as for `log_gates`."""
    artifact = ("kpi", "kpi", {f"{adapter}.md": text})
    return _log("kpi", adapter, manifest, tables, artifact, settings, root)


def log_rollout_pages(
    adapter: str,
    manifest: Manifest,
    pages: Sequence[Path],
    settings: TrackingSettings,
    root: Path,
) -> str | None:
    """Log the pages of a rollout as `TENANT-rollout`; other arguments and result as for `log_gates`."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
    return _log("rollout", adapter, manifest, {}, ("rollout", "page", texts), settings, root)


def _log(
    job: str,
    adapter: str,
    manifest: Manifest,
    tables: Mapping[str, Any],
    artifact: tuple[str, str, Mapping[str, str]],
    settings: TrackingSettings,
    root: Path,
) -> str | None:
    tenant, _, number = adapter.partition("@")
    suffix, kind, texts = artifact
    made = TrackedArtifact(
        name=f"{tenant}-{suffix}",
        type=kind,
        alias=content_alias({name: sha256_text(text) for name, text in texts.items()}),
        facts={},
        metadata={"adapter": adapter},
        files={},
        texts=dict(texts),
    )
    digests = {file: one.sha256 for file, one in manifest.files.items()}
    config = {"adapter": adapter, "package": f"{tenant}-package:{package_alias(digests)}"}
    return log_artifact(job, adapter, config, tables, made, settings, root, aliases=[f"version-{number}"])


def log_artifact(
    job: str,
    about: str,
    config: Mapping[str, Any],
    tables: Mapping[str, Any],
    made: TrackedArtifact,
    settings: TrackingSettings,
    root: Path,
    *,
    aliases: Sequence[str] = (),
    numbers: Mapping[str, float] | None = None,
) -> str | None:
    """Log one artifact with tables in a run of its own.

    Args:
        job: the run's type.
        about: the version or tenant that it is about.
        config: of the run.
        tables: name -> DataFrame; an empty one is left out, since W&B takes no table without columns.
        made: the artifact.
        settings: where runs go.
        root: the repository.
        aliases: that name the artifact besides its content.
        numbers: that W&B draws over runs.

    Returns:
        A sentence if W&B could not be told.
    """
    if tracking_mode() == "disabled":
        return None
    try:
        with track(job, about.partition("@")[0], dict(config), settings, root) as run:
            for title, frame in tables.items():
                if len(frame):
                    log_table(run, title, frame)
            if numbers:
                run.log(dict(numbers))
            run.log_artifact(made.draft(), aliases=[made.alias, *aliases])
    except Exception as error:
        if not is_client_error(error) and not isinstance(error, LoraOpsError):
            raise
        return f"W&B was not told of the {job} of {about}: {error}"
    return None

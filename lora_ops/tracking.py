"""W&B runs of the pipeline: online with an API key, offline without one, never waiting for a network."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_ops.settings import TrackingSettings


def tracking_mode() -> str:
    """`$WANDB_MODE` if it is set, else "online" when there is an API key and "offline" when there is none."""
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")


@contextmanager
def track(
    job_type: str, tenant: str, config: dict[str, Any], settings: TrackingSettings, root: Path
) -> Iterator[Any]:
    """A W&B run for one stage of one tenant; an exception inside marks it as failed and goes on.

    Offline runs lie in `root/wandb/offline-run-*`; `make wandb-sync` sends them later.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # a run's own setting does not silence artifacts
    import wandb

    with wandb.init(
        project=settings.project,
        entity=settings.entity,
        dir=root,
        mode=tracking_mode(),  # type: ignore[arg-type]
        job_type=job_type,
        group=tenant,
        name=f"{tenant}-{job_type}",
        config=config,
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
    ) as run:
        yield run


def log_folder(run: Any, name: str, kind: str, folder: Path, metadata: dict[str, Any]) -> None:
    """Log every file of `folder` as an artifact of type `kind`."""
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=metadata)
    artifact.add_dir(str(folder))
    run.log_artifact(artifact)


def log_table(run: Any, name: str, frame: Any) -> None:
    """Log a DataFrame as a W&B table, which reviewers can filter and sort."""
    import wandb

    run.log({name: wandb.Table(dataframe=frame)})

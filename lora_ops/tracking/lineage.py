"""The inputs of a run: kept beside it in a file, and declared at W&B, now or later, once."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.tracking.artifacts import TrackedArtifact

LINEAGE = "lineage.json"  # in the folder of a run: what went into it
SENT = "lineage.sent"  # beside it, once W&B has all of it


class Lineage(NamedTuple):
    """What went into one run."""

    entity: str | None
    project: str
    run: str
    inputs: list[TrackedArtifact]

    def write(self, folder: Path) -> None:
        """Keep it in the folder of the run."""
        kept = {**self._asdict(), "inputs": [artifact._asdict() for artifact in self.inputs]}
        (folder / LINEAGE).write_text(json.dumps(kept, indent=1), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> "Lineage":
        """Read what `write` kept."""
        kept = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        return Lineage(**{**kept, "inputs": [TrackedArtifact(**each) for each in kept["inputs"]]})

    @staticmethod
    def mark_sent(folder: Path) -> None:
        """Remember that W&B has all of it."""
        (folder / SENT).touch()


def unsent(folders: list[Path]) -> Iterator[Path]:
    """Yield the folders whose lineage W&B does not have yet."""
    for folder in folders:
        if (folder / LINEAGE).is_file() and not (folder / SENT).exists():
            yield folder


def use_inputs(run: Any, lineage: Lineage) -> None:
    """Let a run that is open use its inputs; what W&B lacks is sent."""
    import wandb

    api = wandb.Api(timeout=30)
    for artifact in lineage.inputs:
        path = f"{run.entity}/{run.project}/{artifact.name}:{artifact.alias}"
        if api.artifact_exists(path):
            run.use_artifact(path)
        else:
            run.use_artifact(artifact.draft(), aliases=[artifact.alias])


def add_inputs(lineage: Lineage) -> None:
    """Let a run that W&B holds already use its inputs; those that it uses already stay as they are.

    A run is resumed only where W&B lacks one of its inputs, so that its state and its clock stay as they were.
    """
    import wandb

    api = wandb.Api(timeout=30)
    entity = lineage.entity or api.default_entity
    run = api.run(f"{entity}/{lineage.project}/{lineage.run}")
    used = {artifact.id for artifact in run.used_artifacts()}
    lacking = []
    for artifact in lineage.inputs:
        path = f"{entity}/{lineage.project}/{artifact.name}:{artifact.alias}"
        if not api.artifact_exists(path):
            lacking.append(artifact)
            continue
        found = api.artifact(path)
        if found.id not in used:
            run.use_artifact(found)
    if lacking:
        _send_lacking(entity, lineage, lacking, exit_code=0 if run.state == "finished" else 1)


def _send_lacking(entity: str | None, lineage: Lineage, lacking: list[TrackedArtifact], exit_code: int) -> None:
    import wandb

    drafts = [(artifact.draft(), artifact.alias) for artifact in lacking]  # before anything is touched at W&B
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = wandb.init(
            project=lineage.project,
            entity=entity,
            id=lineage.run,
            resume="must",
            reinit="create_new",
            dir=folder,
            mode="online",
            settings=settings,
        )
        try:
            for draft, alias in drafts:
                run.use_artifact(draft, aliases=[alias])
        finally:
            run.finish(exit_code=exit_code)

"""W&B runs of the pipeline: online with an API key and a server that answers, offline else.

A run says what it is: its config holds the commit, the base model, the data and the stage's settings. It uses
its inputs and logs its outputs, so W&B draws how a package came about. The client can't declare an input
offline: `lineage.json` in the run's folder keeps the inputs, and `lora-ops wandb-sync` declares them later.
"""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.git import git_state
from lora_ops.hashing import canonical, sha256_text
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.artifacts import TrackedArtifact, describe
from lora_ops.tracking.client import (
    PATIENCE,
    has_api_key,
    is_client_error,
    server_answers,
    server_url,
    tracking_mode,
)
from lora_ops.tracking.lineage import Lineage, use_inputs

RECORDED_AT = "recorded-at"  # in the folder of a run: the repository that its artifacts' paths start with


@contextmanager
def track(
    job_type: str,
    tenant: str,
    config: dict[str, Any],
    settings: TrackingSettings,
    root: Path,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    resume: Path | None = None,
    aliases: Sequence[str] = (),
) -> Iterator[Any]:
    """Open a W&B run for one stage of one tenant; an exception inside marks it as failed and goes on.

    Offline runs are in `root/wandb/offline-run-*`, the files of their artifacts in `root/wandb/artifacts`;
    `send_offline_runs` sends both later.

    Args:
        config: the settings of the stage; commit and inputs are added.
        inputs: what the stage reads, as rows of the table in `lora_ops.tracking.artifacts`.
        outputs: what the stage makes; they are logged when the block ends without an exception.
        resume: a file that keeps the run's id until the block ends without an exception. A stage that was
            killed and starts again with the same config and inputs goes on with the same run.
        aliases: also name the outputs.

    Raises:
        LoraOpsError: `$WANDB_MODE` is online and there is no API key, or an input does not exist yet.
    """
    mode = _mode_of_run()
    os.environ.setdefault("WANDB_SILENT", "true")  # a run's own setting does not silence artifacts
    # Else these files wait in the home directory, and wandb/ alone would not be enough.
    os.environ.setdefault("WANDB_DATA_DIR", str(root / "wandb"))
    import wandb

    used = {what: describe(what, tenant, root) for what in inputs}
    facts = {what: artifact.facts for what, artifact in used.items()}
    commit = git_state(root)
    with wandb.init(
        project=settings.project,
        entity=settings.entity,
        dir=root,
        mode=mode,  # type: ignore[arg-type]
        id=_run_id(resume, sha256_text(canonical([job_type, tenant, config, facts]))),
        resume="allow",
        job_type=job_type,
        group=tenant,
        name=f"{tenant}-{job_type}",
        config={**config, **facts, "commit": commit.commit, "commit_dirty": commit.dirty},
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
    ) as run:
        folder = Path(run.settings.sync_dir)
        if run.offline:
            (folder / RECORDED_AT).write_text(str(root.resolve()), encoding="utf-8")
        # A resumed run logs again from its last checkpoint on, so W&B's own count would part from the steps.
        run.define_metric("*", step_metric="step")
        _keep_lineage(run, folder, list(used.values()))
        yield run
        for what in outputs:
            artifact = describe(what, tenant, root)
            run.log_artifact(artifact.draft(), aliases=[artifact.alias, *aliases])
    if resume:
        resume.unlink(missing_ok=True)


def _mode_of_run() -> str:
    mode = tracking_mode()
    if mode != "online":
        return mode
    if not has_api_key():
        raise LoraOpsError(
            "WANDB_MODE is online and there is no API key: set WANDB_API_KEY or run `wandb login`."
        )
    if os.environ.get("WANDB_MODE") or server_answers(server_url()):
        return mode
    print(
        f"W&B at {server_url()} does not answer within {PATIENCE} s: this run is logged offline into wandb/. "
        "Send it later with `lora-ops wandb-sync`."
    )
    return "offline"


def _run_id(kept: Path | None, recipe: str) -> str:
    """Return the id that `kept` holds for this recipe, else a new one, which `kept` then holds."""
    fresh = secrets.token_hex(4)
    if kept is None:
        return fresh
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["recipe"] == recipe:
            return str(found["run"])
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"run": fresh, "recipe": recipe}), encoding="utf-8")
    temporary.replace(kept)
    return fresh


def _keep_lineage(run: Any, folder: Path, inputs: list[TrackedArtifact]) -> None:
    """Declare the inputs of a run, or keep them for `lora-ops wandb-sync` where W&B can't be asked."""
    if run.disabled or not inputs:
        return
    lineage = Lineage(run.settings.entity, run.settings.project, run.id, inputs)
    lineage.write(folder)
    if run.offline:
        return
    try:
        use_inputs(run, lineage)
    except Exception as error:
        if not is_client_error(error):
            raise
        text = " ".join(str(error).split())[:200]
        print(f"W&B did not take the inputs of {run.name}: {text}. `lora-ops wandb-sync` declares them later.")
        return
    lineage.mark_sent(folder)


def log_table(run: Any, name: str, frame: Any) -> None:
    """Log a DataFrame as a W&B table, which reviewers can filter and sort."""
    import wandb

    run.log({name: wandb.Table(dataframe=frame)})

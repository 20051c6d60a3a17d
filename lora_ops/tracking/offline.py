"""Send to W&B what was logged offline: each run once, then the inputs of each run that W&B holds."""

import os
import subprocess
import sys
from pathlib import Path

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.tracking.client import has_api_key, is_client_error
from lora_ops.tracking.lineage import Lineage, add_inputs, unsent
from lora_ops.tracking.runs import RECORDED_AT

HEADER_BYTES = 7  # of a run's log; a run that was killed at once wrote nothing else


def send_offline_runs(root: Path) -> None:
    """Send to W&B what was logged offline into `root/wandb`; what was sent before is left out.

    A run whose log can't be read holds up no other one: the client itself sends nothing when one of its logs is
    damaged, and reports success.

    Raises:
        LoraOpsError: there is no API key, or a run was recorded in another folder.
        Unavailable: some of it could not be sent; all else was, and the next call goes on there.
    """
    if not has_api_key():
        raise LoraOpsError(
            "There is no API key: set WANDB_API_KEY or run `wandb login`; the runs stay in wandb/ until then."
        )
    waiting = [log for log in _logs(root) if not _is_sent(log)]
    for log in waiting:
        _check_place(log.parent, root)
    empty = [log for log in waiting if log.stat().st_size <= HEADER_BYTES]
    for log in empty:
        print(f"{log.parent.name} was killed before it logged anything: delete {log.parent}.")
    waiting = [log for log in waiting if log not in empty]
    problems = [*_send_runs(waiting, root), *_send_lineage(root)]
    if problems:
        text = "; ".join(problems)
        raise Unavailable(f"{text}. All else was sent; run `lora-ops wandb-sync` again for the rest.")


def _logs(root: Path) -> list[Path]:
    logs = (root / "wandb").glob("offline-run-*/run-*.wandb")
    # A folder's name has the second in which its run began; the last write tells two runs of one second apart.
    return sorted(logs, key=lambda log: (log.parent.name.rpartition("-")[0], log.stat().st_mtime))


def _is_sent(log: Path) -> bool:
    return log.with_name(f"{log.name}.synced").exists()


def _check_place(folder: Path, root: Path) -> None:
    marker = folder / RECORDED_AT
    if not marker.is_file():
        return
    recorded = Path(marker.read_text(encoding="utf-8"))
    # The client would pass over files that it doesn't find, and take the run for sent.
    if not recorded.exists() or not recorded.samefile(root):
        raise LoraOpsError(
            f"{folder.name} was recorded in {recorded}, and its artifacts name their files there: "
            f"put wandb/ there again or link {recorded} to {root}."
        )


def _send_runs(logs: list[Path], root: Path) -> list[str]:
    """Send the runs, and return a sentence for each one that was not sent.

    One process for each, in the order in which they began: the client sends several at once, and then two runs
    that logged the same content make two versions of it, `latest` is any of them, and one damaged log keeps it
    from sending the others.
    """
    problems = []
    for log in logs:
        _wandb_sync(log, root)
        if not _is_sent(log):
            problems.append(
                f"{log.parent.name} could not be sent (see above): if its log is damaged, delete {log.parent}"
            )
    return problems


def _wandb_sync(log: Path, root: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    command = [sys.executable, "-m", "wandb", "sync", str(log)]
    # Its exit code is 0 even when it sent nothing; the marker that it leaves beside each log tells.
    subprocess.run(command, cwd=root, env={**kept, "WANDB_DIR": str(root)})


def _send_lineage(root: Path) -> list[str]:
    """Declare the inputs of the runs that W&B holds, and return a sentence for each run where that failed."""
    os.environ["WANDB_MODE"] = "online"  # whoever asks for a sync means to be online
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str(root / "wandb"))
    problems = []
    folders = sorted((root / "wandb").glob("*run-*"))
    for folder in unsent(folders):
        offline = folder.name.startswith("offline-run-")
        if offline and not all(_is_sent(log) for log in folder.glob("run-*.wandb")):
            continue
        try:
            add_inputs(Lineage.read(folder))
        except Exception as error:
            if not is_client_error(error) and not isinstance(error, LoraOpsError):
                raise
            text = " ".join(str(error).split())[:200].rstrip(".")
            problems.append(f"the inputs of {folder.name} could not be declared: {text}")
        else:
            Lineage.mark_sent(folder)
    return problems

"""W&B runs of the pipeline: online with an API key and a server that answers, offline else."""

import netrc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lora_ops.errors import LoraOpsError
from lora_ops.settings.tracking import TrackingSettings

RECORDED_AT = "recorded-at"  # in the folder of a run: the repository that its artifacts' paths start with
PATIENCE = 3  # seconds that a stage waits to learn whether W&B answers


def has_api_key() -> bool:
    """Whether the client can log in: by the environment, or by what `wandb login` wrote into the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    paths = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in paths:
        try:
            login = netrc.netrc(path).authenticators(urlsplit(server_url()).netloc)
        except (OSError, netrc.NetrcParseError):
            continue
        if login and login[2]:
            return True
    return False


def server_url() -> str:
    """Where W&B is: `$WANDB_BASE_URL`, else what `wandb login --host` wrote, else W&B's own servers."""
    import wandb

    return str(wandb.setup().settings.base_url)


def server_answers(url: str) -> bool:
    """Whether a server answers at `url` within `PATIENCE` seconds; an answer of 500 and more is none.

    The client itself would try for two minutes and then raise. Nothing secret is sent, so certificates are left
    to the client; proxies of the environment are used as the client uses them.
    """
    import httpx

    answers: list[int] = []

    def ask() -> None:
        with suppress(httpx.HTTPError):
            answers.append(httpx.get(url, timeout=PATIENCE, verify=False).status_code)

    # In a thread: looking up a name without a network may take longer than any of httpx's own limits.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return any(status < 500 for status in answers)


def tracking_mode() -> str:
    """`$WANDB_MODE` if it is set, else "online" when there is an API key and "offline" when there is none."""
    return os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")


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


@contextmanager
def track(
    job_type: str, tenant: str, config: dict[str, Any], settings: TrackingSettings, root: Path
) -> Iterator[Any]:
    """A W&B run for one stage of one tenant; an exception inside marks it as failed and goes on.

    Offline runs lie in `root/wandb/offline-run-*`, the files of their artifacts in `root/wandb/artifacts`;
    `send_offline_runs` sends both later.

    Raises:
        LoraOpsError: `$WANDB_MODE` is online and there is no API key.
    """
    mode = _mode_of_run()
    os.environ.setdefault("WANDB_SILENT", "true")  # a run's own setting does not silence artifacts
    # Else these files wait in the home directory, and wandb/ alone would not be enough.
    os.environ.setdefault("WANDB_DATA_DIR", str(root / "wandb"))
    import wandb

    with wandb.init(
        project=settings.project,
        entity=settings.entity,
        dir=root,
        mode=mode,  # type: ignore[arg-type]
        job_type=job_type,
        group=tenant,
        name=f"{tenant}-{job_type}",
        config=config,
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
    ) as run:
        if run.offline:
            (Path(run.settings.sync_dir) / RECORDED_AT).write_text(str(root.resolve()), encoding="utf-8")
        yield run


def send_offline_runs(root: Path) -> None:
    """Send to W&B what was logged offline into `root/wandb`; what was sent before is left out.

    Raises:
        LoraOpsError: there is no API key, a run was recorded in another folder, or the client failed.
    """
    if not has_api_key():
        raise LoraOpsError(
            "There is no API key: set WANDB_API_KEY or run `wandb login`; the runs stay in wandb/ until then."
        )
    for marker in sorted((root / "wandb").glob(f"offline-run-*/{RECORDED_AT}")):
        recorded = Path(marker.read_text(encoding="utf-8"))
        # The client would pass over files that it doesn't find, and take the run for sent.
        if not recorded.exists() or not recorded.samefile(root):
            raise LoraOpsError(
                f"{marker.parent.name} was recorded in {recorded}, and its artifacts name their files there: "
                f"put wandb/ there again or link {recorded} to {root}."
            )
    kept = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    command = [sys.executable, "-m", "wandb", "sync", "--yes"]
    if subprocess.run(command, cwd=root, env={**kept, "WANDB_DIR": str(root)}).returncode != 0:
        raise LoraOpsError("wandb sync failed, see above; run it again to send the rest.")


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

"""Run Prometheus, Alertmanager, the gateway and Grafana together, in the foreground, until one of them ends."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.folders import make_folder
from lora_ops.monitoring.deployed import differing
from lora_ops.processes import end_with_parent
from lora_ops.settings.params import Settings

FOLDER = "observed"  # in `.serving`
LOOK_SECONDS = 0.2
END_SECONDS = 10.0
"""How long a process has to end, besides the gateway's own `serving.drain_timeout_seconds`."""
GRAFANA_HOMES = ("/usr/share/grafana", "/usr/local/share/grafana", "/opt/grafana")
GRAFANA_URL = "http://127.0.0.1:3000"


@dataclass(frozen=True)
class Part:
    """One process: its name, where it answers, its command, and what its environment has besides ours."""

    name: str
    url: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


def parts(root: Path, settings: Settings) -> list[Part]:
    """Return what is started for a clone, in that order; Grafana where one is on the PATH.

    Raises:
        Unavailable: Prometheus or Alertmanager is not installed.
        LoraOpsError: the files of deploy/ are not what params.yaml says, or name another machine.
    """
    deploy, objectives, serving = root / "deploy", settings.objectives, settings.serving
    changed = differing(deploy, settings)
    if changed:
        raise LoraOpsError(f"{changed[0]} is not what params.yaml says: run `make rules` first.")
    kept = root / serving.path / FOLDER
    listen = "--web.listen-address="
    prometheus = [
        _program("prometheus"),
        f"--config.file={deploy / 'prometheus/prometheus.yml'}",
        f"--storage.tsdb.path={kept / 'prometheus'}",
        f"{listen}{_here('prometheus', objectives.prometheus)}",
        "--log.level=warn",
    ]
    alertmanager = [
        _program("prometheus-alertmanager", "alertmanager"),
        f"--config.file={deploy / 'alertmanager/alertmanager.yml'}",
        f"--storage.path={kept / 'alertmanager'}",
        f"{listen}{_here('alertmanager', objectives.alertmanager)}",
        "--cluster.listen-address=",  # else it opens a port to all machines
        "--log.level=warn",
    ]
    gateway = [sys.executable, "-m", "lora_ops", "serve"]
    return [
        Part("Prometheus", objectives.prometheus, prometheus),
        Part("Alertmanager", objectives.alertmanager, alertmanager),
        Part("the gateway", f"http://{serving.host}:{serving.port}", gateway, {"LORA_OPS_ROOT": str(root)}),
        *_grafana(deploy / "grafana", kept / "grafana"),
    ]


def observe(asked: Sequence[Part], kept: Path, patience: float) -> None:
    """Start each part, wait for SIGTERM, SIGINT or SIGHUP, and end them together.

    Args:
        kept: the folder that the parts keep their data in.
        patience: seconds that each of them has to end.

    Raises:
        Unavailable: a part ended by itself, or can't be started; the others were ended.
    """
    make_folder(kept)
    with _signals() as stop, _started(asked, patience) as processes:
        while not stop.wait(LOOK_SECONDS):
            for part, process in processes:
                code = process.poll()
                if code is not None and not stop.is_set():
                    raise Unavailable(
                        f"{part.name} ended with {code}: its last lines say why, and the others were ended."
                    )


@contextmanager
def _started(asked: Sequence[Part], patience: float) -> Iterator[list[tuple[Part, "subprocess.Popen[bytes]"]]]:
    """Run a process of each part while the block runs; none outlives this process, however it dies."""
    processes: list[tuple[Part, subprocess.Popen[bytes]]] = []
    try:
        for part in asked:
            try:
                process = subprocess.Popen(
                    part.command,
                    env={**os.environ, **part.environment},
                    stdout=sys.stderr.fileno(),  # stdout is for what this command says itself
                    preexec_fn=end_with_parent,
                )
            except OSError as error:
                raise Unavailable(f"{part.command[0]} can't be started ({error.strerror}).") from error
            processes.append((part, process))
        yield processes
    finally:
        for _, process in reversed(processes):
            process.terminate()
        for _, process in reversed(processes):
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Give what is set once somebody asks this process to end."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise Unavailable(
            f"There is no {names[-1]} on the PATH: `apt-get install prometheus prometheus-alertmanager`."
        )
    return found


def _here(name: str, url: str) -> str:
    """Return host and port of an address of this machine."""
    parsed = urlsplit(url)
    if parsed.scheme != "http" or parsed.hostname not in ("127.0.0.1", "localhost", "::1") or not parsed.port:
        raise LoraOpsError(
            f"objectives.{name} is {url}, and this command starts one on this machine: write an address such "
            "as http://127.0.0.1:9090, or run only `lora-ops serve` here."
        )
    return parsed.netloc


def _grafana(deploy: Path, kept: Path) -> list[Part]:
    program = shutil.which("grafana") or shutil.which("grafana-server")
    if program is None:
        return []
    home = next((one for one in GRAFANA_HOMES if Path(one).is_dir()), None)
    command = [program, *(["server"] if Path(program).name == "grafana" else [])]
    environment = {
        "GF_PATHS_PROVISIONING": str(deploy / "provisioning"),
        "GF_PATHS_DATA": str(kept),
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "LORA_OPS_DASHBOARDS": str(deploy / "dashboards"),
    }
    return [Part("Grafana", GRAFANA_URL, [*command, *([f"--homepath={home}"] if home else [])], environment)]

"""`lora-ops monitor observe`: real parts that begin together and end together."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from lora_ops.monitoring.deployed import write_deployed
from lora_ops.monitoring.observing import parts
from lora_ops.settings.params import load_settings
from tests.conftest import ROOT, run, small_clone, write_params
from tests.monitoring.prometheus_kit import PROMETHEUS, free_port, needs_alertmanager, needs_prometheus
from tests.serving.conftest import eventually, make_clone


@pytest.fixture(scope="module")
def clone(tiny_base: Path, owners: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a gateway of the tiny model, whose parts have ports of their own."""
    root = make_clone(tiny_base, owners, tmp_path_factory.mktemp("observe"))
    write_params(
        root,
        {
            "serving.port": free_port(),
            "serving.warm": [],
            "objectives.scrape": {"interval": "1s"},
            "objectives.prometheus": f"http://127.0.0.1:{free_port()}",
            "objectives.alertmanager": f"http://127.0.0.1:{free_port()}",
        },
    )
    write_deployed(root / "deploy", load_settings(root))
    return root


Start = Callable[[], "tuple[subprocess.Popen[bytes], list[psutil.Process]]"]


@pytest.fixture
def start(clone: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the command, waits for its Prometheus, and ends everything at last."""
    begun: list[psutil.Process] = []

    def started() -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        output = (tmp_path / "output.txt").open("wb")
        environment = {**os.environ, "LORA_OPS_ROOT": str(clone), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "lora_ops", "monitor", "observe"]
        command = subprocess.Popen(words, cwd=clone, env=environment, stdout=output, stderr=subprocess.STDOUT)
        output.close()
        begun.append(psutil.Process(command.pid))
        url = load_settings(clone).objectives.prometheus
        eventually(lambda: command.poll() is not None or _answers(f"{url}/-/ready"), 120)
        children = begun[0].children()
        begun.extend(children)
        return command, children

    yield started
    for process in begun:
        if process.is_running():
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@needs_prometheus
@needs_alertmanager
def test_a_signal_ends_all_parts(start: Start, number: int) -> None:
    command, children = start()
    assert len(children) == 3
    command.send_signal(number)
    assert command.wait(60) == 0
    assert _gone(children)


@needs_prometheus
@needs_alertmanager
def test_killed_it_leaves_no_part_behind(start: Start) -> None:
    command, children = start()
    command.kill()
    command.wait(10)
    eventually(lambda: _gone(children), 60)


@needs_prometheus
@needs_alertmanager
def test_a_part_that_ends_ends_the_others(start: Start, clone: Path, tmp_path: Path) -> None:
    command, children = start()
    url = load_settings(clone).objectives.prometheus
    up = {"query": 'up{job="lora-ops"} == 1'}
    query = f"{url}/api/v1/query"

    def gateway_is_up() -> bool:
        assert command.poll() is None, (tmp_path / "output.txt").read_text()
        return bool(httpx.get(query, params=up, trust_env=False, verify=False).json()["data"]["result"])

    eventually(gateway_is_up, 240)
    next(one for one in children if "alertmanager" in one.name()).kill()
    assert command.wait(60) == 5
    assert _gone(children)
    assert "Alertmanager ended with -9: its last lines say why" in (tmp_path / "output.txt").read_text()


def test_files_that_differ_are_refused(tmp_path: Path) -> None:
    done = run("lora-ops", "monitor", "observe", cwd=small_clone(tmp_path / "clone"))
    assert done.returncode == 2 and "is not what params.yaml says: run `make rules` first" in done.stderr


def test_without_prometheus_it_says_what_to_install(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_ops.errors import Unavailable

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="no prometheus on the PATH: `apt-get install prometheus"):
        parts(clone, load_settings(clone))


@needs_prometheus
@needs_alertmanager
def test_a_grafana_on_the_path_is_started_with_the_dashboards(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Grafana is installed here, so that a program of its name stands for its place on the PATH."""
    (tmp_path / "grafana").write_text("#!/bin/sh\n")
    (tmp_path / "grafana").chmod(0o755)
    assert PROMETHEUS and shutil.which("grafana") is None
    assert len(parts(clone, load_settings(clone))) == 3
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    grafana = parts(clone, load_settings(clone))[3]
    assert list(grafana.command[:2]) == [str(tmp_path / "grafana"), "server"]
    assert (Path(grafana.environment["LORA_OPS_DASHBOARDS"]) / "latency.json").is_file()
    assert (Path(grafana.environment["GF_PATHS_PROVISIONING"]) / "datasources/prometheus.yml").is_file()


@needs_prometheus
@needs_alertmanager
def test_an_address_elsewhere_is_not_started_here(tmp_path: Path) -> None:
    from lora_ops.errors import LoraOpsError

    root = small_clone(tmp_path / "clone")
    write_params(root, {"objectives.prometheus": "https://prometheus.example"})
    settings = load_settings(root)
    write_deployed(root / "deploy", settings)
    with pytest.raises(LoraOpsError, match="objectives.prometheus is https://prometheus.example, and"):
        parts(root, settings)

"""A real Prometheus on loopback for tests: empty, filled beforehand, or one that scrapes."""

import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import eventually

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None, reason="no prometheus: apt-get install prometheus"
)
needs_alertmanager = pytest.mark.skipif(
    ALERTMANAGER is None, reason="no alertmanager: apt-get install prometheus-alertmanager"
)


def free_port() -> int:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return int(port.getsockname()[1])


@contextmanager
def running(*command: str | Path, ready: str, log: Path) -> Iterator[None]:
    """A process that answers at the address `ready` while the block runs."""
    with log.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=subprocess.STDOUT)
        try:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return httpx.get(ready, trust_env=False, verify=False).status_code == 200
                except httpx.TransportError:
                    return False

            eventually(answers, 60)
            yield
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def prometheus(folder: Path, config: Path | None = None) -> Iterator[str]:
    """A Prometheus whose data are in `folder`, and its address."""
    assert PROMETHEUS
    folder.mkdir(exist_ok=True)
    if config is None:
        config = folder / "nothing.yml"
        config.write_text("global: {}\n")
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=10y",
        "--log.level=warn",
    ]
    with running(*command, ready=f"{url}/-/ready", log=folder / "prometheus.log"):
        yield url


def fill(folder: Path, samples: Iterable[tuple[str, float, float]]) -> None:
    """Write samples (series, value, seconds since 1970) as a Prometheus keeps them, before it starts."""
    assert PROMTOOL
    folder.mkdir(exist_ok=True)
    text = folder / "samples.txt"
    lines = [
        f"{series} {value} {time:.3f}\n" for series, value, time in sorted(samples, key=lambda one: one[2])
    ]
    text.write_text("".join(lines) + "# EOF\n")
    command = [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder / "data")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

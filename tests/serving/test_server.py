"""`lora-ops serve` as a process: it starts, tells where it is open, finishes what runs, and ends."""

import asyncio
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.serving.events import read_events
from lora_ops.serving.server import bind, return_freed, serve
from tests.conftest import ROOT, run
from tests.serving.conftest import Clone, eventually


class Process:
    def __init__(self, root: Path, *, read: bool = True, port: int = 0) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LORA_OPS_ROOT": str(root)}
        lora_ops = str(Path(sys.executable).parent / "lora-ops")
        self.process = subprocess.Popen(
            [lora_ops, "serve", "--port", str(port)],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.url = ""
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"on (http://[\d.:]+)", line):
                self.url = found[1]
                break
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()))
        if read:
            self.reader.start()


@contextmanager
def serving(clone: Clone, *, read: bool = True) -> Iterator[Process]:
    process = Process(clone.root, read=read)
    yield process
    process.process.kill()
    process.process.wait()


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as a terminal gives it: tests that run under nohup would hand it on ignored, and it stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hang_up")
def test_server_says_that_it_is_open_and_finishes_what_runs(clone: Clone, number: signal.Signals) -> None:
    body = {"model": "base", "prompt": "AIRBNB", "max_tokens": 800, "stream": True}
    with serving(clone) as server:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=60, verify=False
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(number)
            time.sleep(0.2)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{server.url}/health", verify=False)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
        server.reader.join()
    log = [json.loads(line) for line in server.lines]
    assert any("NO API KEYS" in line["message"] for line in log)
    assert any(line.get("path") == "/v1/completions" and line["status"] == 200 for line in log)
    assert not any("traceback" in line for line in log)
    assert list(read_events(clone.root / ".serving/events")["status"]) == [200]


def test_server_takes_connections_and_signals_before_it_tells(clone: Clone) -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    settings = clone.settings()
    port = bind(settings.serving)
    connected: list[socket.socket] = []

    def started(_: uvicorn.Server) -> None:
        connected.append(socket.create_connection(port.getsockname(), timeout=5))
        signal.raise_signal(signal.SIGTERM)

    engine = TorchEngine(clone.base, threads=1)
    try:
        asyncio.run(asyncio.wait_for(serve(clone.root, settings, engine, port, started=started), 60))
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        port.close()
    assert len(connected) == 1
    connected[0].close()


def test_it_says_that_it_is_not_ready_before_it_closes_its_port(clone: Clone) -> None:
    params = clone.root / "params.yaml"
    params.write_text(params.read_text().replace("serving:\n", "serving:\n  not_ready_seconds: 2\n", 1))
    with serving(clone) as server:
        assert httpx.get(f"{server.url}/ready", verify=False).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert httpx.get(f"{server.url}/ready", verify=False).status_code == 503
        body = {"model": "base", "prompt": "AIRBNB", "max_tokens": 2}
        assert httpx.post(f"{server.url}/v1/completions", json=body, verify=False).status_code == 200
        assert server.process.wait(30) == 0


def test_a_log_that_nobody_reads_stops_no_request(clone: Clone) -> None:
    with (
        serving(clone, read=False) as server,
        httpx.Client(base_url=server.url, timeout=30, verify=False) as client,
    ):
        for _ in range(50):
            assert client.get(f"/{'x' * 30_000}").status_code == 404
        assert "lora_ops_log_lines_lost_total 0.0" in client.get("/metrics").text
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def test_the_readmes_client_is_answered(clone: Clone) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.S)[0]
    with serving(clone) as server:
        client = [sys.executable, "-c", code.replace("http://localhost:8000", server.url)]
        done = subprocess.run(client, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finance@2:" in done.stdout


def test_what_was_answered_before_a_kill_is_in_the_event_log(clone: Clone) -> None:
    body = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 2}
    with serving(clone) as server:
        for _ in range(5):
            assert httpx.post(f"{server.url}/v1/completions", json=body, verify=False).status_code == 200
        eventually(lambda: "lora_ops_events_total 5.0" in httpx.get(f"{server.url}/metrics", verify=False).text)
        server.process.kill()
        server.process.wait()
    assert len(read_events(clone.root / ".serving/events")) == 5


def test_an_address_that_others_reach_needs_keys(clone: Clone) -> None:
    done = run("lora-ops", "serve", "--host", "0.0.0.0", cwd=clone.root)
    assert done.returncode == 2 and "keys create --admin" in done.stderr


def test_a_port_that_is_taken_is_one_sentence(clone: Clone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("lora-ops", "serve", "--port", port, cwd=clone.root)
    assert done.returncode == 5
    assert done.stderr.startswith(f"lora-ops: Port {port} of 127.0.0.1 can't be taken")
    assert len(done.stderr.splitlines()) == 1


def test_small_answers_are_sent_at_once(clone: Clone) -> None:
    with bind(clone.settings().serving) as port:
        port.listen()
        with socket.create_connection(port.getsockname()), port.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets TCP_NODELAY


def test_without_a_base_model_it_says_what_to_run(clone: Clone) -> None:
    (clone.base / "base_model.json").unlink()
    done = run("lora-ops", "serve", "--port", "0", cwd=clone.root)
    assert done.returncode == 2 and "run the stage `base_model` first" in done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_return_freed_gives_memory_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    blocks = [bytes(4000) for _ in range(25_000)]
    del blocks[:-1]  # glibc can't cut its heap below the last one
    kept = resident()
    return_freed()
    assert resident() - before < 0.5 * (kept - before)
    assert len(blocks) == 1

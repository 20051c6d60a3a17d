"""The request that gateways answer with a version before users are sent to it."""

import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_ops.rollout.gateways import GatewayProbe, addresses, announced
from lora_ops.settings.rollout import ProbeSettings

OURS = "a" * 64
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[[Answer], str]]:
    """Announce a server in place of a gateway; its answers are the test's."""
    servers: list[http.server.ThreadingHTTPServer] = []
    stops: list[Iterator[None]] = []

    def start(answer: Answer) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        open_ = announced(tmp_path, *server.server_address[:2])  # type: ignore[arg-type]
        open_.__enter__()
        stops.append(open_)  # type: ignore[arg-type]
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for one in stops:
        one.__exit__(None, None, None)  # type: ignore[attr-defined]
    for server in servers:
        server.shutdown()
        server.server_close()


def sends(status: int, digest: str, content: bytes = b"{}") -> Answer:
    def answer(http: http.server.BaseHTTPRequestHandler) -> None:
        http.send_response(status)
        http.send_header("x-lora-ops-digest", digest)
        http.send_header("content-length", str(len(content)))
        http.end_headers()
        http.wfile.write(content)

    return answer


def probed(folder: Path, **settings: object) -> str | None:
    return GatewayProbe(folder, ProbeSettings.model_validate(settings)).unanswered("finance@2", OURS)


def test_probe_holds_without_a_gateway(tmp_path: Path) -> None:
    said = probed(tmp_path)
    assert said and said.startswith("no gateway runs with") and "rollout.probe.gateways" in said
    assert probed(tmp_path, required=False) is None


def test_probe_is_green_where_each_gateway_answers(tmp_path: Path, gateway: Callable[[Answer], str]) -> None:
    gateway(sends(200, OURS))
    assert probed(tmp_path) is None
    other = gateway(sends(500, OURS, b"the adapter can't be loaded"))
    assert probed(tmp_path) == f"{other} does not answer with finance@2 (500: the adapter can't be loaded)"


@pytest.mark.parametrize(
    ("status", "digest", "says"),
    [
        (401, OURS, "wants a key: put one of the tenant into the environment variable ROLLOUT_API_KEY"),
        (404, OURS, r"does not answer with finance@2 \(404: {}\)"),
        (200, "b" * 64, "has other content as finance@2"),
    ],
)
def test_probe_says_what_is_wrong(
    tmp_path: Path, gateway: Callable[[Answer], str], status: int, digest: str, says: str
) -> None:
    gateway(sends(status, digest))
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(probed(tmp_path))


def test_probe_waits_for_no_slow_canary(tmp_path: Path, gateway: Callable[[Answer], str]) -> None:
    """A gateway that loads for minutes, or sends a byte now and then, holds; and no other rollout waits."""
    ended = threading.Event()

    def trickles(http: http.server.BaseHTTPRequestHandler) -> None:
        http.send_response(200)
        http.end_headers()
        while not ended.wait(0.05):
            http.wfile.write(b" ")

    url = gateway(trickles)
    assert probed(tmp_path, seconds=0.4) == f"{url} did not answer with finance@2 within 0.4 seconds"
    ended.set()


def test_probe_asks_gateways_of_other_hosts(tmp_path: Path) -> None:
    said = probed(tmp_path, gateways=["http://127.0.0.1:9"])
    assert said and said.startswith("http://127.0.0.1:9 can't be asked for finance@2")


def test_gateway_that_was_killed_is_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lora_ops.rollout.gateways import announced\n"
        "with announced(Path(sys.argv[1]), '0.0.0.0', 8123):\n    print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"up\n"
    assert addresses(tmp_path) == ["http://127.0.0.1:8123"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert addresses(tmp_path) == [] and list((tmp_path / "gateways").iterdir()) == []


def test_gateway_that_can_not_announce_itself_runs(caplog: pytest.LogCaptureFixture) -> None:
    with announced(Path("/dev/null/.serving"), "127.0.0.1", 8000):
        assert "No rollout finds this gateway" in caplog.text


def test_pipe_among_the_addresses_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "gateways").mkdir()
    os.mkfifo(tmp_path / "gateways/pipe.address")
    assert addresses(tmp_path) == []

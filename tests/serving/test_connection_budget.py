"""What the gateway does with more connections than it can have."""

import asyncio
import contextlib
import http.client
import json
import resource
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.serving.connection_budget import ConnectionBudget, peer_name
from lora_ops.serving.server import most_connections
from tests.serving.conftest import Clone, Served, eventually, served
from tests.serving.test_server import serving

HALF_HEAD = b"GET /health HTTP/1.1\r\nhost: local"
HALF_BODY = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b'content-length: 1000\r\n\r\n{"model'
)
FEW = 20  # connections; a gateway of this size is full soon


def connect(gateway: Served, address: str = "127.0.0.1") -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20, source_address=(address, 0))


@contextmanager
def flood(
    gateway: Served, count: int, sent: bytes, address: str = "127.0.0.2"
) -> Iterator[list[socket.socket]]:
    """That many connections of another machine."""
    opened = []
    try:
        for _ in range(count):
            opened.append(connect(gateway, address))
            with contextlib.suppress(ConnectionError):  # the gateway closed it
                opened[-1].sendall(sent)
        yield opened
    finally:
        for connection in opened:
            connection.close()


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def chat(gateway: Served) -> str | None:
    client = gateway.client()
    answer = client.chat.completions.create(
        model="finance", messages=[{"role": "user", "content": "AIRBNB"}], max_tokens=2
    )
    return answer.choices[0].finish_reason


def status(kept: http.client.HTTPConnection) -> int:
    kept.request("GET", "/health", headers={"host": "localhost"})
    response = kept.getresponse()
    response.read()
    return response.status


def test_half_heads_of_one_peer_stop_nobody_else(gateway: Served) -> None:
    most_connections()  # this process has both ends
    kept = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=20)
    assert status(kept) == 200
    before = kept.sock
    with flood(gateway, 1010, HALF_HEAD) as opened:
        assert gateway.http().get("/health").status_code == 200
        assert chat(gateway) == "length"
        assert status(kept) == 200 and kept.sock is before
        assert is_closed(opened[0]) and not is_closed(opened[-1])
        assert gateway.metric("lora_ops_connections_closed_total") >= 10
    kept.close()


def test_half_heads_of_many_peers_stop_nobody_else(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(), engine, FEW) as gateway, contextlib.ExitStack() as stack:
        for number in range(2, 2 + 2 * FEW):
            stack.enter_context(flood(gateway, 1, HALF_HEAD, f"127.0.0.{number}"))
        assert gateway.http().get("/health").status_code == 200
        assert chat(gateway) == "length"


def test_a_slow_head_is_answered_during_a_flood(clone: Clone, engine: Engine) -> None:
    with (
        served(clone.root, clone.settings(), engine, FEW) as gateway,
        connect(gateway) as slow,
    ):
        head = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for number, byte in enumerate(head):
            slow.sendall(bytes([byte]))
            if number % 20 == 0:
                with flood(gateway, 2 * FEW, HALF_HEAD):
                    pass
        assert b"200 OK" in slow.recv(100)


def test_half_bodies_stop_nobody_else(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(), engine, FEW) as gateway, flood(gateway, FEW - 1, HALF_BODY):
        assert gateway.http().get("/health").status_code == 200
        assert chat(gateway) == "length"


def test_answers_that_nobody_reads_stop_nobody_else(clone: Clone, engine: Engine) -> None:
    many = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 400
    with served(clone.root, clone.settings(), engine, FEW) as gateway, flood(gateway, 2 * FEW, many):
        assert gateway.http().get("/health").status_code == 200
        assert chat(gateway) == "length"


def stream(gateway: Served, tokens: int, n: int = 1) -> str:
    """What a streaming client of a third machine reads."""
    body = {"model": "base", "prompt": "x", "max_tokens": tokens, "n": n, "stream": True}
    address = gateway.url.removeprefix("http://")
    client = http.client.HTTPConnection(address, timeout=60, source_address=("127.0.0.3", 0))
    client.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    return client.getresponse().read().decode()


def test_health_is_answered_and_no_answer_is_cut_when_full(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(max_running=1, queue_timeout_seconds=60)
    with (
        served(clone.root, settings, engine, FEW) as gateway,
        ThreadPoolExecutor(FEW) as pool,
    ):
        tasks = gateway.server.server_state.tasks
        streams = [pool.submit(stream, gateway, 1900, 4)]
        eventually(lambda: len(tasks) == 1)
        streams += [pool.submit(stream, gateway, 20) for _ in range(FEW - 2)]  # these wait for the first one
        eventually(lambda: len(tasks) == FEW - 1)
        with flood(gateway, 2 * FEW, HALF_HEAD):
            refused = gateway.http().get("/v1/models")
            assert gateway.http().get("/health").status_code == 200
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1 and refused.headers["connection"] == "close"
        assert all("data: [DONE]" in one.result() for one in streams)
        assert gateway.http().get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("64:ff9b::a00:1", "64:ff9b::a00:2", False),
        ("64:ff9b::a00:1", "10.0.0.1", True),
    ],
)
def test_peer_name_is_an_address_or_a_network(one: str, other: str, same: bool) -> None:
    assert (peer_name(one) == peer_name(other)) is same


class Quiet(asyncio.Transport):
    """One whose client has read everything."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


class Client:
    def __init__(self, address: str) -> None:
        self.peer, self.transport = peer_name(address), Quiet()


def test_budget_counts_the_networks_of_one_site_together() -> None:
    """A client with a /48 opened one connection from each of its /64s, and pushed out a client with two."""
    budget = ConnectionBudget(FEW)
    honest = [Client("2001:db8:1::1"), Client("2001:db8:1::1"), Client("10.0.0.1"), Client("10.0.0.1")]
    many = [Client(f"2001:db8:2:{number:x}::1") for number in range(3 * FEW)]
    for one in (*honest, *many):
        budget.open(one)
    for one in honest:
        budget.move(one, "working")
    assert len(budget._groups["working"]) == len(honest) and len(budget) == FEW
    for one in (*honest, *many):
        budget.forget(one)
    assert len(budget) == 0 and not budget._groups["idle"]._sites


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("limits", "expected"), [((100, 1024), "568 1024"), ((100, 4096), "1000 4096"), ((300, 300), "ulimit -n")]
)
def test_most_connections_fits_the_limit_of_open_files(limits: tuple[int, int], expected: str) -> None:
    done = python(f"""
        import resource
        from lora_ops.errors import LoraOpsError
        from lora_ops.serving.server import most_connections
        resource.setrlimit(resource.RLIMIT_NOFILE, {limits})
        try:
            print(most_connections(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        except LoraOpsError as error:
            print(error)
    """)
    assert expected in done.stdout, done.stderr


def test_serve_raises_the_limit_of_open_files(clone: Clone) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this process may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with serving(clone) as server:
            limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "1024" not in next(line for line in limits.splitlines() if "open files" in line)


def test_failed_accepts_are_one_line() -> None:
    done = python("""
        import asyncio, logging, resource, socket
        from lora_ops.serving.server import summarize_failed_accepts

        async def main():
            asyncio.get_running_loop().set_exception_handler(summarize_failed_accepts())
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            clients = [socket.socket() for _ in range(50)]
            used = clients[-1].fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, used + 10))
            for client in clients:
                client.connect(server.sockets[0].getsockname())
            await asyncio.sleep(1.5)

        logging.basicConfig(level=logging.INFO)
        asyncio.run(main())
    """)
    assert done.stderr.count("could not be accepted") == 1, done.stderr
    assert "Traceback" not in done.stderr

"""What the gateway does with bodies and connections that are not as they should be."""

import json
import logging
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.serving.body_pace import MOST_WAITING
from lora_ops.serving.logs import JsonLines
from lora_ops.serving.server import bind
from lora_ops.settings.serving import ServingSettings, TenantServing
from tests.serving.conftest import Clone, Served, eventually, served

GOOD = {"model": "base", "prompt": "AIRBNB", "max_tokens": 2}


def connect(gateway: Served) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(length: int | str, path: str = "/v1/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "base"}',
        b'{"model": "base", "prompt": "x", "max_tokens": NaN}',
        b'{"model": "base", "prompt": "x", "temperature": 1e999}',
        b'{"model": "base", "prompt": "\\ud800"}',
        b'{"model": "base", "prompt": "x", "seed": 99999999999999999999999}',
        b'{"model": "base", "prompt": [[]]}',
        b'{"model": "base", "prompt": [-1]}',
        b'{"model": {"a": 1}, "prompt": "x"}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_body_is_a_400_in_openais_shape(gateway: Served, body: bytes) -> None:
    answer = gateway.http().post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert gateway.http().post("/v1/completions", json=GOOD).status_code == 200


def test_half_a_character_in_a_chat_is_a_400(gateway: Served) -> None:
    """JavaScript cuts emojis in two; the tokenizer's TypeError was a 500."""
    answers = []
    for content in (r'"a\ud83d"', r'[{"type": "text", "text": "a\ud83d"}]'):
        body = f'{{"model": "base", "messages": [{{"role": "user", "content": {content}}}]}}'
        headers = {"content-type": "application/json"}
        answers.append(gateway.http().post("/v1/chat/completions", content=body.encode(), headers=headers))
    assert [answer.status_code for answer in answers] == [400, 400]
    assert "half a character" in answers[0].json()["error"]["message"]


@pytest.mark.parametrize("flood", [b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 5000, None])
def test_pipelined_requests_and_headers_have_a_limit(gateway: Served, flood: bytes | None) -> None:
    """Without a key, each took memory: 28 MB for 252 kB sent."""
    headers = b"".join(b"a%d: b\r\n" % number for number in range(500))
    with connect(gateway) as client:
        answers = b""
        with suppress(ConnectionError):
            client.sendall(flood or b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + headers + b"\r\n")
            while received := client.recv(65536):
                answers += received
    assert answers.count(b"200 OK") < 50
    assert flood or b"400 Bad Request" in answers


def test_access_line_shows_the_beginning_of_a_long_path(
    gateway: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lora_ops.access"):
        gateway.http().get("/" + "x" * 20_000)
        eventually(lambda: any(one.name == "lora_ops.access" for one in caplog.records))
    (record,) = [one for one in caplog.records if one.name == "lora_ops.access"]
    assert len(record.getMessage()) < 300 and len(record.fields["path"]) < 300  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/completions", 405)]
)
def test_what_does_not_exist_is_told_in_openais_shape(
    gateway: Served, method: str, path: str, status: int
) -> None:
    answer = gateway.http().request(method, path)
    assert answer.status_code == status and path in answer.json()["error"]["message"]


def test_a_body_that_says_it_is_too_large_is_refused_unread(gateway: Served) -> None:
    with connect(gateway) as connection:
        connection.sendall(head(10**9) + b"{")
        assert b"413" in connection.recv(200)


def test_a_body_that_turns_out_too_large_is_refused(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(body_limit=2048), engine) as gateway:
        chunks = (b"x" * 1024 for _ in range(64))
        answer = gateway.http().post("/v1/completions", content=chunks)
        assert answer.status_code == 413
        assert gateway.http().post("/v1/completions", json=GOOD).status_code == 200


@pytest.mark.parametrize("host", ["localhost/health?", "localhost/health#", "localhost/health?x="])
def test_a_host_header_gets_around_no_key_and_no_limit(clone: Clone, engine: Engine, host: str) -> None:
    """A path that was read from the URL, and so from this header, was /health: no key, no limit of a body."""
    settings = clone.settings(require_keys=True)
    request = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n"
    with served(clone.root, settings, engine) as gateway, connect(gateway) as connection:
        connection.sendall(request.encode() + b"400\r\n" + b"x" * 1024 + b"\r\n")  # more is to come
        answer = connection.makefile("rb").read()
        assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
        assert b"connection: close" in answer


def test_a_body_that_does_not_arrive_is_given_up(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(body_timeout_seconds=0.2)
    with served(clone.root, settings, engine) as gateway, connect(gateway) as connection:
        connection.sendall(head(100) + b'{"model"')
        assert b"408" in connection.recv(200)


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_of_a_tenant_come_in_turn(clone: Clone, engine: Engine, chunked: bool) -> None:
    settings = clone.settings(body_timeout_seconds=0.4)
    body = json.dumps(GOOD).encode().ljust(2**20)  # blanks: it is as long as may be, and a good request

    def send(gateway: Served) -> int:
        content = iter([body[: 2**19], body[2**19 :]]) if chunked else body
        headers = {"content-type": "application/json"}
        return gateway.http().post("/v1/completions", content=content, headers=headers).status_code

    with served(clone.root, settings, engine) as gateway, ThreadPoolExecutor(8) as threads:
        found = Counter(threads.map(lambda _: send(gateway), range(8)))
        assert set(found) == {200, 429}
        assert gateway.http().post("/v1/completions", json=GOOD).status_code == 200
        eventually(lambda: send(gateway) == 200)


def test_a_large_body_of_many_values_keeps_the_next_one_waiting(clone: Clone, engine: Engine) -> None:
    text, lists = ({"a": "x" * 2**17}, {"a": [[]] * 2**17})
    with served(clone.root, clone.settings(body_timeout_seconds=0.4), engine) as gateway:
        for first, second in ((text, 200), (lists, 429)):
            for metadata, status in ((first, 200), (text, second)):
                found = gateway.http().post("/v1/completions", json={**GOOD, "metadata": metadata})
                assert found.status_code == status


def test_body_of_a_client_that_left_keeps_no_place(clone: Clone, engine: Engine) -> None:
    """Each waited for its turn, up to 16 s: what it had sent stood before the end of its connection."""
    body = json.dumps(GOOD).encode().ljust(2**20)
    with served(clone.root, clone.settings(body_timeout_seconds=60), engine) as gateway:
        with ExitStack() as stack:
            for _ in range(MOST_WAITING):
                connection = stack.enter_context(connect(gateway))
                connection.sendall(head(len(body)) + body[: 2**17])
        began = time.monotonic()
        headers = {"content-type": "application/json"}

        def answered() -> bool:
            return gateway.http().post("/v1/completions", content=body, headers=headers).status_code == 200

        eventually(answered)
        assert time.monotonic() - began < 6


def test_a_client_does_not_choose_its_address(clone: Clone, engine: Engine) -> None:
    """Bodies with another X-Forwarded-For each came in nobody's turn."""
    body = json.dumps(GOOD).encode().ljust(2**20)

    def send(gateway: Served, number: int) -> int:
        headers = {"content-type": "application/json", "x-forwarded-for": f"10.0.0.{number}"}
        return gateway.http().post("/v1/completions", content=body, headers=headers).status_code

    settings = clone.settings(body_timeout_seconds=0.4)
    with served(clone.root, settings, engine) as gateway, ThreadPoolExecutor(8) as threads:
        assert 429 in set(threads.map(lambda number: send(gateway, number), range(8)))


def test_slow_clients_keep_nobody_else_waiting(gateway: Served) -> None:
    slow = [connect(gateway) for _ in range(100)]
    for number, connection in enumerate(slow):
        connection.sendall(head(1000)[: 40 + number] if number % 2 else head(1000) + b"{")
    started = time.monotonic()
    assert gateway.http().post("/v1/completions", json=GOOD).status_code == 200
    assert time.monotonic() - started < 5
    for connection in slow:
        connection.close()


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes no more than some kilobytes for a client that does not read."""

    def small(settings: ServingSettings) -> socket.socket:
        port = bind(settings)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return port

    monkeypatch.setattr("tests.serving.conftest.bind", small)


def stalled(gateway: Served, model: str) -> socket.socket:
    """A client that asked for an answer of some megabytes and has read its first bytes."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    asked = {"model": model, "prompt": "x", "max_tokens": 1900, "stream": True, "logprobs": 20}
    body = json.dumps(asked).encode()
    connection.sendall(head(len(body)) + body)
    assert b"200 OK" in connection.recv(100)
    return connection


@pytest.mark.usefixtures("small_buffers")
def test_a_reader_that_stops_reading_keeps_no_slot(clone: Clone, engine: Engine) -> None:
    with (
        served(clone.root, clone.settings(max_running=1), engine) as gateway,
        stalled(gateway, "base"),
    ):
        assert gateway.http().post("/v1/completions", json=GOOD).status_code == 200


@pytest.mark.usefixtures("small_buffers")
def test_a_reader_that_stops_reading_is_given_up_at_the_deadline(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(
        request_timeout_seconds=0.5,
        body_timeout_seconds=0.5,
        tenants={"finance": TenantServing(concurrency=1)},
    )
    with served(clone.root, settings, engine) as gateway, stalled(gateway, "finance"):
        body = {**GOOD, "model": "finance"}
        assert gateway.http().post("/v1/completions", json=body).status_code == 429
        deadline = time.monotonic() + 10
        while gateway.http().post("/v1/completions", json=body).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("endless", [b"x-header: " + b"a" * 60 + b"\r\n", b"a" * 64])
def test_a_head_without_end_is_refused(gateway: Served, endless: bytes) -> None:
    with connect(gateway) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-first: ")
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                connection.sendall(endless)
    assert gateway.http().get("/health").status_code == 200


def test_a_head_that_does_not_arrive_is_given_up(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ops.serving.connection.HEAD_SECONDS", 0.2)
    for sent in (b"", b"GET /health HTTP/1.1\r\n"):
        with connect(gateway) as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b""


@pytest.mark.parametrize("rest", [b"\r\n", b"GET /health HTT"])
def test_a_kept_connection_without_a_request_is_given_up(
    gateway: Served, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr("lora_ops.serving.connection.HEAD_SECONDS", 0.5)
    with connect(gateway) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(1000)
        connection.sendall(rest)
        while connection.recv(1000):
            pass


def test_a_half_head_behind_a_request_cuts_no_answer(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ops.serving.connection.HEAD_SECONDS", 0.1)
    body = json.dumps({"model": "base", "prompt": "x", "max_tokens": 1900, "stream": True}).encode()
    with connect(gateway) as connection:
        connection.sendall(head(len(body)) + body + b"GET /health HTTP/1.1\r\nx-a: b")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"data: [DONE]" in answer


@pytest.mark.usefixtures("small_buffers")
def test_a_reader_that_stops_reading_keeps_no_connection(
    clone: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ops.serving.connection.UNREAD_SECONDS", 0.2)
    with served(clone.root, clone.settings(), engine) as gateway, stalled(gateway, "base"):
        eventually(lambda: not gateway.server.server_state.connections)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_client_that_asks_for_http2_is_answered(gateway: Served, chunked: bool, at_once: bool) -> None:
    """As Java's HttpClient does: its body was lost, and the answer a 400."""
    body = json.dumps(GOOD).encode()
    asks = b"\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAA\r\n"
    request = head(len(body)).replace(b"\r\n", asks, 1) + body
    if chunked:
        length = f"content-length: {len(body)}".encode()
        request = request.replace(length, b"transfer-encoding: chunked")
        request = request.replace(body, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    with connect(gateway) as connection:
        for part in [2 * request] if at_once else [request[:100], request[100:-70], request[-70:], request]:
            connection.sendall(part)
            time.sleep(0.05)
        answers = b""
        while answers.count(b"usage") < 2:
            answers += connection.recv(10_000)
        assert answers.count(b"HTTP/1.1 200 OK") == 2


def test_a_websocket_gets_around_no_limit(gateway: Served) -> None:
    with connect(gateway) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b"200 OK" in connection.recv(100)


def test_without_a_key_no_body_is_read(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(require_keys=True)
    with served(clone.root, settings, engine) as gateway, connect(gateway) as connection:
        connection.sendall(head(10_000) + b"{")
        answer = connection.recv(500)
        assert b"401" in answer and b"connection: close" in answer


@pytest.mark.parametrize(
    ("sent", "kept"), [("order-7.a_B", True), ("a" * 65, False), ("two words", False), ("x;y", False)]
)
def test_a_request_id_of_the_client_is_kept_where_it_is_short_and_plain(
    gateway: Served, sent: str, kept: bool
) -> None:
    answer = gateway.http().get("/health", headers={"x-request-id": sent})
    assert (answer.headers["x-request-id"] == sent) is kept


def test_every_request_is_one_json_line_with_its_id_and_who_answered(
    gateway: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lora_ops.access"):
        gateway.http().post(
            "/v1/completions", json={**GOOD, "model": "finance"}, headers={"x-request-id": "r1"}
        )
        gateway.http().get("/nothing")
        # The line is written when the answer has gone.
        eventually(lambda: any("/nothing" in record.getMessage() for record in caplog.records))
    records = [record for record in caplog.records if record.name == "lora_ops.access"]
    lines = [json.loads(JsonLines().format(record)) for record in records]
    assert (
        lines[0] | {"status": 200, "tenant": "finance", "adapter": "finance@2", "route": "candidate"}
        == lines[0]
    )
    assert (lines[1]["path"], lines[1]["status"]) == ("/nothing", 404)

"""Clients of a gateway, ordinary and hostile. Each is a process, so that it takes no GIL from the gateway.

python benchmarks/clients.py ordinary|long|large|many|unload|sockets|scrape|console PORT   # until killed
"""

import http.client
import itertools
import json
import socket
import sys
import time

WORD = " part"  # one token
PROMPTS = {"ordinary": WORD * 25, "long": WORD * 6000, "large": "x y " * 250_000, "many": "x y " * 4000}
MANY = 64  # prompts of one request, as many as one may have
PAGES = {"scrape": "/metrics", "console": "/console/data"}
TOKENS = 16
SOCKETS = 1000
JSON = {"content-type": "application/json"}


def connect(port: int) -> http.client.HTTPConnection:
    """Return a connection whose second packet does not wait for the acknowledgement of its first."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def completion(model: str, kind: str, number: int) -> bytes:
    """Return the body of a request for a streamed answer; the KV cache knows no prompt of another number."""
    prompt: str | list[str] = f"{number}{PROMPTS[kind]}"
    if kind == "many":
        prompt = [f"{one}-{prompt}" for one in range(MANY)]
    return json.dumps({"model": model, "prompt": prompt, "max_tokens": TOKENS, "stream": True}).encode()


def ask(port: int, body: bytes) -> tuple[int, float, float]:
    """Return status, seconds to the first token and seconds per token of one streamed answer."""
    connection = connect(port)
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", body, JSON)
    answer = connection.getresponse()
    times = [time.perf_counter() for line in answer if line.startswith(b"data: {")]
    connection.close()
    if answer.status != 200:
        return answer.status, 0.0, 0.0
    return 200, times[0] - started, (times[-1] - times[0]) / max(1, len(times) - 1)


def send(port: int, kind: str) -> None:
    """Send prompts of this kind without end."""
    for number in itertools.count():
        ask(port, completion("loud", kind, number))


def unload(port: int) -> None:
    """Unload the loud tenant's adapter each time that it is loaded."""
    while True:
        connection = connect(port)
        connection.request("POST", "/v1/unload_lora_adapter", json.dumps({"lora_name": "loud@1"}), JSON)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status == 404:  # its next request loads it: to ask without end would measure the asking
            time.sleep(0.02)


def read(port: int, path: str) -> None:
    """Read this page without end."""
    while True:
        connection = connect(port)
        connection.request("GET", path)
        connection.getresponse().read()
        connection.close()


def half_open(port: int) -> None:
    """Keep as many connections as can be that sent half a head."""
    opened: list[socket.socket] = []
    while True:
        if len(opened) >= SOCKETS:
            opened.pop(0).close()
            time.sleep(0.01)
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")
            opened.append(one)
        except OSError:
            time.sleep(0.01)


if __name__ == "__main__":
    name, where = sys.argv[1], int(sys.argv[2])
    if name in PROMPTS:
        send(where, name)
    elif name in PAGES:
        read(where, PAGES[name])
    elif name == "unload":
        unload(where)
    else:
        half_open(where)

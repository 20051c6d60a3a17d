"""Tokens that a gateway has still to read and to write."""

import threading

import httpx

from lora_ops.serving.backlog import Backlog
from tests.serving.conftest import Served, eventually

READ, WRITTEN = "lora_ops_backlog_prompt_tokens", "lora_ops_backlog_generated_tokens"


def test_backlog_falls_as_tokens_come() -> None:
    backlog = Backlog()
    first, second = backlog.add(100, 20), backlog.add(50, 8)
    assert (backlog.prompt_tokens, backlog.generated_tokens) == (150, 28)
    first.wrote(1)
    assert (backlog.prompt_tokens, backlog.generated_tokens) == (50, 27)
    first.wrote(30)  # more than anybody expected
    assert backlog.generated_tokens == 8
    first.done()
    second.done()
    second.done()
    assert (backlog.prompt_tokens, backlog.generated_tokens) == (0, 0)


def test_backlog_of_a_gateway_is_scraped(gateway: Served) -> None:
    """Nobody knows how long such answers become: each counts as 256 tokens, then as the rest of them."""
    body = {"model": "finance@1", "prompt": "AIRBNB", "max_tokens": 1500, "ignore_eos": True}
    seen: list[tuple[float, float]] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=gateway.url, timeout=120, verify=False) as http:
            assert http.post("/v1/completions", json=body).status_code == 200
        done.set()

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for one in askers:
        one.start()
    while not done.is_set():
        seen.append((gateway.metric(READ), gateway.metric(WRITTEN)))
    for one in askers:
        one.join()
    assert max(written for _, written in seen) > 0
    assert all(written <= 512 for _, written in seen)
    eventually(lambda: gateway.metric(READ) == gateway.metric(WRITTEN) == 0)


def test_backlog_forgets_a_client_that_leaves(gateway: Served) -> None:
    body = {"model": "base", "prompt": "AIRBNB", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=body, timeout=60, verify=False) as response:
        next(response.iter_lines())
    eventually(lambda: gateway.metric(READ) == gateway.metric(WRITTEN) == 0)

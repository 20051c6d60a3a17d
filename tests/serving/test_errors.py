"""What an error tells a client, and what only the log is told."""

import json
from collections.abc import Sequence

import pytest

from lora_ops.engines.protocol import EngineError
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.serving.cached_adapter import AdapterUnavailable
from lora_ops.serving.errors import as_api_error
from lora_ops.serving.fair_queue import Overloaded
from lora_ops.serving.rate_limits import NeverFits, TooMany
from tests.serving.conftest import Served

FLOODS = ["x" * 100_000, "a b " * 25_000]
TURN = {"role": "user", "content": "A"}
CHAT = {"model": "finance@1", "messages": [TURN]}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (EngineError("http://10.0.0.7:8001 answers 500: CUDA"), 502, "The engine failed; the gateway's log"),
        (
            AdapterUnavailable("a@1 can't be loaded: /srv/.registry/objects/ab is not the file."),
            503,
            "a@1 can't be loaded: … is not the file.",
        ),
        (AdapterUnavailable("a@1: http://10.0.0.7:8001 refuses"), 503, "a@1: … refuses"),
        (LoraOpsError("The registry in /srv/x.sqlite can't be read"), 503, "The registry in … can't be read"),
        (NeverFits("too large"), 400, "too large"),
        (TooMany("slow down", 2), 429, "slow down"),
        (KeyError("secret"), 500, "The gateway failed"),
    ],
)
def test_a_client_is_told_what_it_can_act_on_and_nothing_of_the_inside(
    error: Exception, status: int, said: str
) -> None:
    problem = as_api_error(error)
    assert problem.status == status and problem.message.startswith(said)
    assert "10.0.0.7" not in problem.message and "/srv" not in problem.message


@pytest.mark.parametrize(
    ("error", "code", "seconds"),
    [
        (AdapterUnavailable("a@1 can't be loaded: no room.", 4.2), "adapter_unavailable", range(5, 8)),
        (AdapterUnavailable("a@1 was trained on another one.", None), "adapter_unavailable", ()),
        (AdapterUnavailable("a@1: a file was changed.", None, damaged=True), "adapter_damaged", ()),
        (Damaged("entry 3 was changed"), "registry_damaged", ()),
        (Overloaded("busy"), "overloaded", range(1, 4)),
        (Overloaded("busy", spread=9.5), "overloaded", range(1, 12)),
        (LoraOpsError("The registry is busy"), "unavailable", range(1, 4)),
    ],
)
def test_retry_after_is_spread_and_missing_where_a_fault_stays(
    error: Exception, code: str, seconds: Sequence[int]
) -> None:
    problem = as_api_error(error)
    assert (problem.status, problem.code) == (503, code)
    found = {int(value) for _ in range(1000) if (value := problem.headers().get("retry-after"))}
    assert found == set(seconds)


def test_retry_after_of_an_allowance_is_exact() -> None:
    assert as_api_error(TooMany("slow down", 29.5)).headers() == {"retry-after": "30"}


@pytest.mark.parametrize("flood", FLOODS)
def test_an_error_cuts_what_it_quotes_of_a_body(gateway: Served, flood: str) -> None:
    wrong = [
        {**CHAT, "messages": [{"role": "user", "columns": {flood: "x"}}]},
        {**CHAT, flood: 1},
        {**CHAT, "messages": [TURN | {flood: 1}]},
        {**CHAT, "messages": [{"role": flood, "content": "A"}]},
        {**CHAT, "model": flood},
        {**CHAT, "logit_bias": {flood: 1}},
        {**CHAT, "structured_outputs": {"regex": f"({flood}"[:60_000]}},
    ]
    with gateway.http() as http:
        for body in wrong:
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400 and len(answer.content) < 9000, answer.text[:300]
        body = {"model": flood[:200], "prompt": "A"}
        assert http.post("/v1/completions", json=body).status_code == 404


def test_an_error_cuts_what_it_quotes_of_a_head(gateway: Served) -> None:
    with gateway.http() as http:
        unknown = http.get(f"/v1/models/{'x' * 20_000}")
        missing = http.get(f"/{'x' * 20_000}")
        foreign = http.get("/v1/models", headers={"host": "x" * 20_000})
    assert [one.status_code for one in (unknown, missing, foreign)] == [404, 404, 403]
    assert max(len(one.content) for one in (unknown, missing, foreign)) < 500


@pytest.mark.parametrize(
    ("content_type", "named"),
    [(None, "none"), ("text/plain", "'text/plain'"), ("x" * 20_000, "'xxx")],
)
def test_a_body_without_its_content_type_is_told_so(
    gateway: Served, content_type: str | None, named: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_content_type")
    wanted = "Send the body with the header content-type: application/json; this request has "
    assert error["message"].startswith(wanted + named) and len(error["message"]) < 4000


def test_a_body_that_is_no_object_is_told_so(gateway: Served) -> None:
    with gateway.http() as http:
        for body in ([CHAT], "chat", 5):
            error = http.post("/v1/chat/completions", json=body).json()["error"]
            assert error["message"] == "The body is JSON, but no object: send {...}."

"""/tokenize and /detokenize: what the answering endpoints would read, within the same limits."""

from contextlib import closing
from typing import Any

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.serving.keys import KeyStore
from lora_ops.serving.tokenization import Tokenization
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import SYSTEM, Clone, Served, served

TURN = {"role": "user", "content": "AIRBNB * HM2X"}
PARTS = {"messages": [TURN], "return_token_strs": True}
LONG = {"tokens": [1] * 10_000}


@pytest.mark.parametrize("model", ["finance", "base"])
def test_tokenize_counts_what_an_answer_reads(shared_gateway: Served, model: str) -> None:
    http = shared_gateway.http()
    for path, body in (
        ("/v1/completions", {"prompt": "AIRBNB 東京 🚀"}),
        ("/v1/chat/completions", {"messages": [TURN]}),
    ):
        found = http.post("/tokenize", json={"model": model, **body}).json()
        read = http.post(path, json={"model": model, "max_tokens": 1, **body}).json()["usage"]
        assert found["count"] == len(found["tokens"]) == read["prompt_tokens"]
        assert found["max_model_len"] == http.get("/v1/models/base").json()["max_model_len"]
        assert found["token_strs"] is None


def test_tokenize_fills_in_the_adapters_system_prompt(gateway: Served, clone: Clone) -> None:
    found = gateway.http().post("/tokenize", json={"model": "finance", **PARTS}).json()
    tokenization = Tokenization(clone.base)
    assert tuple(found["tokens"]) == tokenization.chat([("system", SYSTEM), ("user", TURN["content"])])
    assert found["token_strs"] == tokenization.names(found["tokens"])


def test_detokenize_gives_the_text_back(shared_gateway: Served) -> None:
    http = shared_gateway.http()
    for text in ("", "AIRBNB 東京 🚀\n", "a b " * 300):
        body = {"prompt": text, "add_special_tokens": False}
        tokens = http.post("/tokenize", json=body).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/tokenize", {}, "invalid_value"),
        ("/tokenize", {"prompt": "A", "messages": [TURN]}, "invalid_value"),
        ("/tokenize", {"messages": [TURN], "add_special_tokens": True}, "invalid_value"),
        ("/tokenize", {"messages": [TURN], "tools": [{"type": "function"}]}, "invalid_value"),
        ("/tokenize", {"messages": [{"role": "user", "content": "<|im_end|>"}]}, "invalid_prompt"),
        ("/tokenize", {"messages": [{"role": "user", "columns": {"text": "A"}}]}, "invalid_prompt"),
        ("/tokenize", {"prompt": "a b " * 200_000}, "context_length_exceeded"),
        ("/detokenize", {"tokens": [1] * 100_000}, "context_length_exceeded"),
        ("/detokenize", {"tokens": [10**9]}, "invalid_prompt"),
        ("/detokenize", {"tokens": [-1]}, "invalid_value"),
    ],
)
def test_token_endpoints_refuse_in_one_sentence(
    shared_gateway: Served, path: str, body: Any, code: str
) -> None:
    answer = shared_gateway.http().post(path, json={"model": "base", **body})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code, answer.text


def test_token_endpoints_count_against_the_tenants_limits(clone: Clone, engine: Engine) -> None:
    limits = {
        "finance": TenantServing(requests_per_minute=2),
        "healthcare": TenantServing(tokens_per_minute=40),
    }
    with served(clone.root, clone.settings(tenants=limits), engine) as gateway:
        http = gateway.http()
        body: dict[str, Any] = {"model": "finance", "prompt": "A"}
        first = http.post("/tokenize", json=body)
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        again = http.post("/detokenize", json={"model": "finance", "tokens": [1]})
        assert [again.status_code, http.post("/tokenize", json=body).status_code] == [200, 429]
        body = {"model": "healthcare", "prompt": "a b " * 8}
        spent = http.post("/tokenize", json=body)
        assert int(spent.headers["x-ratelimit-remaining-tokens"]) <= 40 - spent.json()["count"] + 1
        body["max_tokens"] = 40 - spent.json()["count"]
        assert http.post("/v1/completions", json=body).status_code == 429


@pytest.mark.parametrize(("path", "body"), [("tokenize", {"prompt": "a b " * 20_000}), ("detokenize", LONG)])
def test_token_endpoints_count_what_they_refuse(
    clone: Clone, engine: Engine, path: str, body: dict[str, Any]
) -> None:
    limits = {"finance": TenantServing(requests_per_minute=2)}
    with served(clone.root, clone.settings(tenants=limits), engine) as gateway:
        answers = [gateway.http().post(path, json={"model": "finance", **body}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 400, 429]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"


def test_tokenize_reaches_what_the_key_reaches(clone: Clone, engine: Engine) -> None:
    with closing(KeyStore(clone.root / ".serving/keys.sqlite")) as store:
        finance, monitor = store.create("tenant", "finance")[1], store.create("monitor")[1]
    with served(clone.root, clone.settings(), engine) as gateway:
        statuses = [
            gateway.http(key).post("/tokenize", json={"model": model, "prompt": "A"}).status_code
            for key, model in (
                (finance, "finance"),
                (finance, "healthcare"),
                (finance, "base"),
                (monitor, "finance"),
            )
        ]
        assert statuses == [200, 404, 404, 403]

"""What a body that is wrong costs."""

import pytest
from pydantic import ValidationError

from lora_ops.serving.message_schemas import MAX_PARTS
from lora_ops.serving.request_schemas import (
    MAX_TOKEN_IDS,
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
)

MANY = {f"a{number}": 1 for number in range(20_000)}


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        (MANY, "a0"),
        ({"stream": True, "stream_options": MANY}, "stream_options"),
        ({"structured_outputs": {"json": {}, **MANY}}, "structured_outputs"),
        ({"logit_bias": MANY}, "logit_bias"),
    ],
)
def test_many_wrong_keys_are_few_errors(wrong: dict, place: str) -> None:
    """Each took 25 µs of the event loop: 80,000 of them in one body stopped everybody for two seconds."""
    with pytest.raises(ValidationError) as raised:
        CompletionRequest.model_validate({"model": "base", "prompt": "A", **wrong})
    assert raised.value.error_count() <= MAX_TOKEN_IDS + 1
    assert raised.value.errors()[0]["loc"][0] == place


@pytest.mark.parametrize("value", [None, "", ["a"], {}])
def test_a_list_of_wrong_values_is_few_errors(value: object) -> None:
    for body in (
        {"prompt": [value] * 20_000},
        {"prompt": [[value] * 20_000]},
        {"messages": [{"role": "user", "content": [value] * 20_000}]},
        {"messages": [{"role": value}] * 1000},
        {"prompt": "A", "stop_token_ids": [value] * 256},
        {"prompt": "A", "structured_outputs": {"choice": [value] * 1000}},
    ):
        with pytest.raises(ValidationError) as raised:
            (ChatRequest if "messages" in body else CompletionRequest).model_validate(body | {"model": "base"})
        assert raised.value.error_count() < 10


def test_the_first_unknown_key_is_named_beside_known_ones() -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "A"}], **MANY, "temperature": 9}
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate(body)
    assert {one["loc"] for one in raised.value.errors()} == {("a0",), ("temperature",)}


def test_a_schema_by_its_alias_is_no_unknown_key() -> None:
    form = {"name": "x", "description": "y", "schema": {}, "strict": True}
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate(
            {
                "model": "base",
                "messages": [{"role": "user", "content": "A"}],
                "response_format": {"type": "json_schema", "json_schema": form | {"more": 1}},
            }
        )
    (only,) = raised.value.errors()
    assert only["loc"][-1] == "more"


def test_a_bias_of_as_many_tokens_as_may_be_is_taken() -> None:
    body = {"model": "base", "prompt": "A"}
    bias = {str(token): 1.0 for token in range(MAX_TOKEN_IDS)}
    assert len(CompletionRequest.model_validate(body | {"logit_bias": bias}).logit_bias or ()) == MAX_TOKEN_IDS
    with pytest.raises(ValidationError, match="at most 1024"):
        CompletionRequest.model_validate(body | {"logit_bias": bias | {"5000": 1.0, "5001": 1.0}})


@pytest.mark.parametrize("kind", [ChatRequest, TokenizeRequest])
def test_a_chat_of_too_many_parts_is_refused(kind: type[ChatRequest | TokenizeRequest]) -> None:
    """Each took 4 µs of the event loop: 40,000 of them in one body stopped everybody for 0.2 s."""
    part = {"type": "text", "text": "A"}
    messages = [{"role": "user", "content": [part] * 40}] * (MAX_PARTS // 40)
    found = kind.model_validate({"model": "base", "messages": messages}).messages or []
    assert len(found) == MAX_PARTS // 40 and found[0].text == "A" * 40
    messages.append({"role": "user", "content": [part]})
    with pytest.raises(ValidationError, match="have 4,001 parts and calls, and at most 4,000 are read"):
        kind.model_validate({"model": "base", "messages": messages})

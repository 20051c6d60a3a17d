"""What users of the official `openai` client see."""

import openai
import pytest

from tests.serving.conftest import Served

QUESTION = [{"role": "user", "content": "AIRBNB * HM2X"}]


@pytest.mark.parametrize("model", ["finance", "finance@1", "healthcare", "base", "tiny-random"])
def test_a_chat_is_answered_by_a_tenant_a_version_and_the_base(gateway: Served, model: str) -> None:
    answer = gateway.client().chat.completions.create(model=model, messages=QUESTION, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert (
        answer.usage
        and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    )


@pytest.mark.parametrize("model", ["finance", "finance@1", "base"])
def test_a_streamed_chat_says_the_same_as_a_whole_one(gateway: Served, model: str) -> None:
    client = gateway.client()
    whole = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12)
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    text = "".join(choice.delta.content or "" for event in events for choice in event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].usage == whole.usage
    assert {event.id for event in events} == {events[0].id}

"""What an answer says of the tokens that it took."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.engines.protocol import Engine
from lora_ops.serving.keys import KeyStore
from lora_ops.settings.serving import OpenAIEngineSettings
from tests.engines.vllm_servers import StrictDoor
from tests.serving.conftest import Clone, Served, served

TURNS = [{"role": "user", "content": "AIRBNB"}]
UNKNOWN = {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [{"b": -0.5, "c": None}]}


@contextmanager
def behind(clone: Clone, door: StrictDoor) -> Iterator[Served]:
    """A gateway before the door."""
    door.start()
    try:
        engine = OpenAIEngine(OpenAIEngineSettings(url=door.url))
        with served(clone.root, clone.settings(), engine) as running:
            yield running
    finally:
        door.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_shows_no_logprob_that_nobody_named(clone: Clone, tiny_base: Path, stream: bool) -> None:
    """The server behind names no probability of the token itself."""
    door = StrictDoor(tiny_base)
    door.logprobs = UNKNOWN
    body = {"model": "base", "messages": TURNS, "max_tokens": 2, "logprobs": True, "stream": stream}
    with behind(clone, door) as gateway:
        answer = gateway.http().post("/v1/chat/completions", json=body)
        assert answer.status_code == 200 and "error" not in answer.text
        assert '"logprobs":null' in answer.text and '"logprob":' not in answer.text


def test_a_completion_shows_an_unknown_logprob_as_null(clone: Clone, tiny_base: Path) -> None:
    door = StrictDoor(tiny_base)
    door.logprobs = UNKNOWN
    body = {"model": "base", "prompt": "A", "max_tokens": 2, "logprobs": 1}
    with behind(clone, door) as gateway:
        answer = gateway.http().post("/v1/completions", json=body).json()
        found = answer["choices"][0]["logprobs"]
        assert found["token_logprobs"] == [None, None] and found["top_logprobs"] == [{"b": -0.5}] * 2


def test_usage_names_the_tokens_that_the_engine_had_kept(clone: Clone, tiny_base: Path) -> None:
    """The server behind says that it had kept all tokens of a prompt but one."""
    with behind(clone, StrictDoor(tiny_base)) as running:
        client = running.client()
        whole = client.chat.completions.create(model="base", messages=TURNS, max_tokens=4, n=2)
        assert whole.usage and whole.usage.prompt_tokens_details
        assert whole.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1
        stream = client.completions.create(
            model="base", prompt=["A B C", "A"], stream=True, stream_options={"include_usage": True}
        )
        usage = list(stream)[-1].usage
        assert usage and usage.prompt_tokens_details
        assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 2


def test_usage_names_no_kept_tokens_where_nobody_knows(clone: Clone, tiny_base: Path) -> None:
    door = StrictDoor(tiny_base)
    door.counts_cached = False
    with behind(clone, door) as running:
        usage = running.client().completions.create(model="base", prompt="AIRBNB", max_tokens=2).usage
        assert usage and usage.prompt_tokens_details is None


def test_usage_is_counted_where_the_server_behind_counts_nothing(clone: Clone, tiny_base: Path) -> None:
    """Else a tenant's limit of tokens would limit nothing."""
    door = StrictDoor(tiny_base)
    door.counts_tokens = False
    body = {"model": "base", "prompt": [5, 9, 70], "max_tokens": 6}
    with behind(clone, door) as running:
        usage = running.http().post("/v1/completions", json=body).json()["usage"]
        assert usage["prompt_tokens"] == 3 and 0 < usage["completion_tokens"] <= 6


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ('{"choices": [], "usage": null}', 200),
        ('{"choices": []', 502),
        ("[]", 502),
        ("null", 502),
        ("{}", 502),
        ('{"choices": [{}]}', 502),
        ('{"choices": [null]}', 502),
        ('{"error": "out of memory"}', 502),
    ],
)
def test_an_odd_event_of_the_server_behind_is_its_fault(
    clone: Clone, tiny_base: Path, said: str, status: int
) -> None:
    door = StrictDoor(tiny_base)
    door.says_first = said
    with behind(clone, door) as running:
        answer = running.http().post("/v1/completions", json={"model": "base", "prompt": "A", "max_tokens": 2})
        assert answer.status_code == status, answer.text


def test_usage_names_what_the_embedded_engine_kept(clone: Clone, engine: Engine) -> None:
    """Of the same tenant's prompts with the same salt, never of another tenant's."""
    with closing(KeyStore(clone.root / ".serving/keys.sqlite")) as store:
        finance, other = (store.create("tenant", name, base=True)[1] for name in ("finance", "healthcare"))

    def kept(gateway: Served, key: str, salt: str = "a") -> int:
        body = {"model": "base", "prompt": "AIRBNB * HM2X Porto", "max_tokens": 2, "cache_salt": salt}
        usage = gateway.http(key).post("/v1/completions", json=body).json()["usage"]
        assert usage["prompt_tokens"] > 4
        return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])

    with served(clone.root, clone.settings(), engine) as gateway:
        whole = kept(gateway, finance)
        assert whole > 4
        assert kept(gateway, finance) == 1
        assert kept(gateway, finance, "b") == whole
        assert kept(gateway, other) == whole
        assert kept(gateway, other) == 1

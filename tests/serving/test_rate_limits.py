"""What a tenant may ask for in a minute, and at the same time."""

from contextlib import suppress

import openai
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.serving.rate_limits import Allowance, NeverFits, TooMany
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, eventually, served


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_allowance_of_requests_fills_up_again() -> None:
    clock = Clock()
    allowance = Allowance(TenantServing(requests_per_minute=2), clock)
    for _ in range(2):
        with allowance.reading("finance", 1), allowance.spending("finance", 1):
            pass
    with pytest.raises(TooMany, match="2 requests a minute") as error, allowance.reading("finance", 1):
        pass
    assert error.value.retry_after == pytest.approx(30)
    clock.now += 30
    with allowance.reading("finance", 1):
        pass


def test_allowance_gets_back_tokens_that_were_not_written() -> None:
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    with allowance.spending("finance", 90) as spent:
        spent(20)
    with allowance.spending("finance", 80):
        pass
    with pytest.raises(TooMany, match="used up its 100 tokens"), allowance.spending("finance", 80):
        pass


def test_allowance_refuses_what_never_fits() -> None:
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    with pytest.raises(NeverFits, match="ask for fewer with max_tokens"), allowance.spending("finance", 101):
        pass


def test_allowance_counts_nothing_of_an_unread_refusal() -> None:
    clock = Clock()
    allowance = Allowance(TenantServing(requests_per_minute=1, tokens_per_minute=100), clock)
    with allowance.reading("finance", 10):
        pass
    with allowance.spending("finance", 10) as spent:
        spent(10)
    for _ in range(5):
        with pytest.raises(TooMany, match="1 requests a minute"), allowance.reading("finance", 80):
            pass
    clock.now += 60
    with allowance.reading("finance", 100):
        pass


def test_allowance_pays_for_a_prompt_refused_once_read() -> None:
    """One client's prompts that never fit were tokenized without end, for nothing."""
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    for _ in range(2):
        with suppress(KeyError), allowance.reading("finance", 50):
            raise KeyError
    with pytest.raises(TooMany, match="used up its 100 tokens"), allowance.reading("finance", 50):
        pass


def test_allowance_lets_an_estimate_refuse_nothing_for_ever() -> None:
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    with allowance.reading("finance", 100_000):
        pass


def test_allowance_pays_for_what_spending_refuses() -> None:
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    for _ in range(2):
        with allowance.reading("finance", 50):
            pass
        with pytest.raises(NeverFits), allowance.spending("finance", 150, 50):
            pass
    with pytest.raises(TooMany), allowance.reading("finance", 50):
        pass


def test_allowance_pays_for_more_than_was_expected() -> None:
    """A request may move to a version whose system prompt is longer."""
    allowance = Allowance(TenantServing(tokens_per_minute=100), Clock())
    with allowance.spending("finance", 10) as spent:
        spent(40)
    with pytest.raises(TooMany), allowance.spending("finance", 61):
        pass
    with allowance.spending("finance", 60):
        pass


def test_a_request_keeps_its_place_from_its_prompt_to_its_end() -> None:
    """Another one took it in between, and a prompt that was read was refused."""
    allowance = Allowance(TenantServing(concurrency=1), Clock())
    with allowance.reading("finance", 1) as place:
        pass
    with pytest.raises(TooMany, match="1 requests open"), allowance.reading("finance", 1):
        pass
    with allowance.spending("finance", 1):
        place.end()
        place.end()
    with suppress(KeyError), allowance.reading("finance", 1):
        raise KeyError
    with allowance.reading("finance", 1):
        assert allowance.open == 1


def test_headers_say_what_is_left_and_when_it_is_full_again() -> None:
    clock = Clock()
    allowance = Allowance(TenantServing(requests_per_minute=2, tokens_per_minute=6000), clock)
    with allowance.reading("finance", 1), allowance.spending("finance", 300) as spent:
        spent(50)
    assert allowance.headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5950",
        "x-ratelimit-reset-tokens": "500ms",
    }
    with allowance.spending("finance", 5950):
        assert allowance.headers()["x-ratelimit-reset-tokens"] == "1m0s"
    clock.now += 60
    assert allowance.headers()["x-ratelimit-remaining-requests"] == "2"


def test_responses_and_refusals_say_what_is_left(clone: Clone, engine: Engine) -> None:
    limits = TenantServing(requests_per_minute=2)
    with served(clone.root, clone.settings(tenants={"finance": limits}), engine) as running:
        create = running.client().completions.with_raw_response.create
        said = create(model="finance", prompt="AIRBNB", max_tokens=4)
        assert said.headers["x-ratelimit-limit-requests"] == "2"
        assert said.headers["x-ratelimit-remaining-requests"] == "1"
        assert "x-ratelimit-limit-tokens" not in said.headers
        stream = create(model="finance", prompt="AIRBNB", max_tokens=4, stream=True)
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        list(stream.parse())
        with pytest.raises(openai.RateLimitError) as refused:
            create(model="finance", prompt="AIRBNB", max_tokens=4)
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        other = create(model="healthcare", prompt="AIRBNB", max_tokens=4)
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]


def test_no_place_is_lost_however_a_request_ends(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(tenants={"finance": TenantServing(concurrency=1)})
    with served(clone.root, settings, engine) as running:
        http = running.http()
        good = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 4}
        for body, status in (
            (good, 200),
            (good | {"echo": True}, 200),
            (good | {"max_tokens": 100_000}, 400),
            (good | {"prompt": [100_000]}, 400),
            (good | {"structured_outputs": {"regex": "(a"}}, 400),
            (good | {"stream": True}, 200),
        ):
            assert http.post("/v1/completions", json=body).status_code == status
        with http.stream("POST", "/v1/completions", json=good | {"stream": True, "max_tokens": 1500}) as left:
            next(left.iter_lines())
        eventually(lambda: http.post("/v1/completions", json=good).status_code == 200)

"""What a tenant may ask for in a minute, and at the same time."""

from contextlib import suppress

import pytest

from lora_ops.serving.rate_limits import Allowance, NeverFits, TooMany
from lora_ops.settings.serving import TenantServing


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


@pytest.mark.parametrize("first", ["reading", "spending"])
@pytest.mark.parametrize("second", ["reading", "spending"])
def test_allowance_counts_open_requests_until_they_end(first: str, second: str) -> None:
    allowance = Allowance(TenantServing(concurrency=1), Clock())
    with (
        getattr(allowance, first)("finance", 1),
        pytest.raises(TooMany, match="which is its limit"),
        getattr(allowance, second)("finance", 1),
    ):
        pass
    with getattr(allowance, second)("finance", 1):
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

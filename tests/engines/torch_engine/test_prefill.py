"""Who reads how many prompt tokens in a step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.engines.torch_engine.prefill import Reading, share_prefill


@pytest.mark.parametrize(
    ("readings", "counts"),
    [
        pytest.param([], [], id="nobody"),
        pytest.param([("a", 6000)], [64], id="alone"),
        pytest.param([("a", 10)], [10], id="short"),
        pytest.param([("a", 6000), ("b", 20)], [44, 20], id="a short prompt is read at once"),
        pytest.param([("a", 6000), ("a", 6000), ("a", 6000), ("b", 40)], [32, 0, 0, 32], id="by tenant"),
        pytest.param([("a", 6000), ("a", 9), ("a", 7)], [48, 9, 7], id="shortest first"),
        pytest.param([("a", 6000), ("a", 50), ("a", 50)], [32, 32, 0], id="the oldest moves"),
        pytest.param([(None, 6000), ("b", 6000), ("c", 4)], [30, 30, 4], id="what is left is shared"),
        pytest.param([("a", 3000, 4.0)], [16], id="far into a prompt"),
        pytest.param([("a", 3000, 4.0), ("b", 20)], [11, 20], id="a short prompt beside it"),
        pytest.param([("a", 3000, 100.0), ("b", 20)], [1, 20], id="one token at least"),
    ],
)
def test_share_prefill_of_64_tokens(readings: list[tuple[str, int]], counts: list[int]) -> None:
    assert share_prefill([Reading(*one) for one in readings], 64) == counts


@given(
    readings=st.lists(
        st.builds(Reading, st.sampled_from("abcdef"), st.integers(1, 200), st.floats(1, 9)), max_size=12
    ),
    budget=st.integers(1, 100),
)
def test_share_prefill_wastes_nothing(readings: list[Reading], budget: int) -> None:
    """The step is used while anybody reads, and each tenant moves, its oldest prompt above all."""
    counts = share_prefill(readings, budget)
    assert all(0 <= count <= one.left for count, one in zip(counts, readings, strict=True))
    tenants = {one.tenant for one in readings}
    oldest = [[one.tenant for one in readings].index(tenant) for tenant in tenants]
    assert all(counts[place] for place in oldest)
    cost = sum(count * one.cost for count, one in zip(counts, readings, strict=True))
    assert cost <= budget + sum(readings[place].cost for place in oldest)
    most = max((one.cost for one in readings), default=0)
    need = sum(one.left * one.cost for one in readings)
    assert cost >= min(need, budget) - most * len(readings) - 1e-6

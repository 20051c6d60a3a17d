"""Who reads how many prompt tokens in a step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.engines.torch_engine.prefill import share_prefill


@pytest.mark.parametrize(
    ("waiting", "counts"),
    [
        pytest.param([], [], id="nobody"),
        pytest.param([("a", 6000)], [64], id="alone"),
        pytest.param([("a", 10)], [10], id="short"),
        pytest.param([("a", 6000), ("b", 20)], [44, 20], id="a short prompt is read at once"),
        pytest.param([("a", 6000), ("a", 6000), ("a", 6000), ("b", 40)], [32, 0, 0, 32], id="by tenant"),
        pytest.param([("a", 6000), ("a", 9), ("a", 7)], [48, 9, 7], id="shortest first"),
        pytest.param([("a", 6000), ("a", 50), ("a", 50)], [32, 32, 0], id="the oldest moves"),
        pytest.param([(None, 6000), ("b", 6000), ("c", 4)], [30, 30, 4], id="what is left is shared"),
    ],
)
def test_share_prefill_of_64_tokens(waiting: list[tuple[str, int]], counts: list[int]) -> None:
    assert share_prefill(waiting, 64) == counts


@given(
    waiting=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 200)), max_size=12),
    budget=st.integers(1, 100),
)
def test_share_prefill_wastes_nothing(waiting: list[tuple[str, int]], budget: int) -> None:
    """All of the step is used while anybody reads, and each tenant moves, its oldest prompt above all."""
    counts = share_prefill(waiting, budget)
    assert all(0 <= count <= left for count, (_, left) in zip(counts, waiting, strict=True))
    tenants = {tenant for tenant, _ in waiting}
    assert min(budget, sum(left for _, left in waiting)) <= sum(counts) <= max(budget, len(tenants))
    oldest = [[tenant for tenant, _ in waiting].index(tenant) for tenant in tenants]
    assert all(counts[place] for place in oldest)

"""Parts of the KV cache never overlap, and what is given back is used again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.engines.torch_engine.extents import Extent, Extents


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["keep", "release", "shrink"])), max_size=60))
def test_reserved_parts_never_overlap_and_are_all_accounted_for(calls: list[tuple[int, str]]) -> None:
    extents, held = Extents(100), list[Extent]()
    for length, then in calls:
        got = extents.reserve(length)
        if got is not None:
            held.append(got)
        if then == "release" and held:
            extents.release(held.pop(0))
        if then == "shrink" and held and held[0].length > 1:
            held[0] = extents.shrink(held[0], held[0].length - 1)
        taken = sorted(held)
        assert all(left.end <= right.start for left, right in zip(taken, taken[1:], strict=False))
        assert all(extent.end <= 100 for extent in held)
        assert extents.used == sum(extent.length for extent in held)


def test_a_gap_is_filled_before_the_end_is_used() -> None:
    extents = Extents(30)
    first, _ = extents.reserve(10), extents.reserve(10)
    assert first is not None
    extents.release(first)
    assert extents.reserve(8) == Extent(0, 8)


def test_what_does_not_fit_is_not_reserved() -> None:
    assert Extents(10).reserve(11) is None


def test_releasing_what_is_not_reserved_is_an_error() -> None:
    with pytest.raises(ValueError):
        Extents(10).release(Extent(0, 3))

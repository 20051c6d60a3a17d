"""No block is lost or owned twice, and what is kept never stands in the way of a sequence."""

import pytest

from lora_ops.engines.torch_engine.decoder import BLOCK
from lora_ops.engines.torch_engine.kv_cache import KEPT, KVCache, Owner, Prefix

OWNER = Owner(("finance", None), None)


def test_kv_cache_takes_the_lowest_blocks_first() -> None:
    """Memory that no sequence ever needed is never written."""
    cache = KVCache(9)
    first, second = cache.take(2), cache.take(3)
    cache.release(first)
    assert set(cache.take(2)) == set(first)
    assert max(second) < 5


def test_kv_cache_refuses_more_blocks_than_there_are() -> None:
    cache = KVCache(3)
    cache.take(1)
    assert cache.fits([], 2) and not cache.fits([], 3)
    with pytest.raises(ValueError, match="3 blocks are wanted, and 2 are available"):
        cache.take(3)


def test_kv_cache_refuses_a_second_release() -> None:
    cache = KVCache(3)
    taken = cache.take(1)
    cache.release(taken)
    with pytest.raises(ValueError, match="no sequence holds block 0"):
        cache.release(taken)


def test_kv_cache_evicts_the_end_of_the_oldest_prefix() -> None:
    cache, tokens = KVCache(5), list(range(2 * BLOCK))
    for offset in (0, 1000):
        taken = cache.take(2)
        cache.keep(Prefix([offset + token for token in tokens], OWNER, list(taken)))
        cache.release(taken)
    assert cache.held == 0
    cache.take(2)
    assert [cache.longest(read, OWNER, [])[1] for read in (tokens, [1000, 1001])] == [BLOCK, 2]


def test_kv_cache_keeps_what_a_sequence_shares() -> None:
    cache, tokens = KVCache(3), list(range(2 * BLOCK))
    taken = cache.take(2)
    cache.keep(Prefix(tokens, OWNER, list(taken)))
    cache.release(taken)
    shared, common = cache.longest(tokens, OWNER, [])
    assert (shared, common) == (taken, 2 * BLOCK)
    assert cache.fits(shared, 1) and not cache.fits(shared, 2)
    cache.share(shared)
    assert set(cache.take(1)).isdisjoint(shared)
    assert cache.available == 0


def test_kv_cache_keeps_so_many_prefixes() -> None:
    cache = KVCache(KEPT + 5)
    for number in range(KEPT + 5):
        taken = cache.take(1)
        cache.keep(Prefix([number], OWNER, list(taken)))
        cache.release(taken)
    assert [cache.longest([number], OWNER, [])[1] for number in (4, 5)] == [0, 1]

"""Who runs, waits and gives way where the KV cache is full: every answer ends, and is the same in the end."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lora_ops.engines.protocol import Chunk, Sampling
from lora_ops.engines.torch_engine import schedule as schedules
from lora_ops.engines.torch_engine.batch import Batch
from lora_ops.engines.torch_engine.decoder import BLOCK, blocks_for
from tests.engines.torch_engine.batches import (
    KINDS,
    PROMPTS,
    TOKENIZER,
    Request,
    expected,
    requests_of,
    run,
    sequence_of,
)
from tests.engines.torch_engine.conftest import Case
from tests.engines.torch_engine.models import LONGEST, VOCABULARY

NAMES = {token: b"%d" % token for token in range(VOCABULARY)}


def check_blocks(batch: Batch) -> None:
    """Compare the cache's own accounts with a model of them, made from the tables alone."""
    kv = batch.schedule.kv
    holders, keepers = Counter[int](), Counter[int]()
    for sequence in batch.running:
        assert len(sequence.blocks) >= blocks_for(sequence.computed)
        assert len(set(sequence.blocks)) == len(sequence.blocks)
        holders.update(sequence.blocks)
    for prefix in kv._kept:
        keepers.update(prefix.blocks)
    every = range(kv.blocks)
    assert [kv._holders[block] for block in every] == [holders[block] for block in every]
    assert [kv._keepers[block] for block in every] == [keepers[block] for block in every]
    assert sorted(kv._free) == [block for block in every if not (holders[block] or keepers[block])]
    assert kv.held == len(holders)
    for sequence in batch.running:  # it writes to nobody else's blocks
        for block in sequence.blocks[sequence.computed // BLOCK :]:
            assert holders[block] == 1 and not keepers[block]
    assert not any(sequence.blocks or sequence.computed for sequence in batch.waiting)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(requests_of(LONGEST), min_size=4, max_size=12),
    blocks=st.integers(5, 7),
    chunk=st.integers(1, 40),
    forgotten=st.sampled_from(KINDS),
    careful=st.booleans(),
)
def test_schedule_loses_no_block_and_no_answer(
    case_of: Callable[..., Case],
    requests: list[Request],
    blocks: int,
    chunk: int,
    forgotten: str | None,
    careful: bool,
) -> None:
    """Sequences join, grow, share, leave and give way; one adapter is unloaded whenever nobody uses it.

    Where the schedule is not careful, sequences join without a free block for those that run: many give way.
    """
    case = case_of("llama", blocks * BLOCK)
    adapter = case.adapters[forgotten]

    def look(batch: Batch) -> None:
        check_blocks(batch)
        event(f"preempted: {min(batch.schedule.preempted, 5)}")
        if adapter and not any(one.adapter is adapter for one in (*batch.running, *batch.waiting)):
            batch.forget(adapter)
            check_blocks(batch)

    with pytest.MonkeyPatch.context() as patch:
        if not careful:
            patch.setattr(schedules, "_grows", lambda sequence: False)
        got = run(case, requests, chunk=chunk, look=look)
    assert got == [expected(case, request) for request in requests]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_schedule_answers_as_peft_where_sequences_give_way(
    architecture: str, case_of: Callable[..., Case]
) -> None:
    case, preempted = case_of(architecture, 7 * BLOCK), 0

    def look(batch: Batch) -> None:
        nonlocal preempted
        preempted = batch.schedule.preempted

    requests = [
        Request(0, kind, prompt, LONGEST, tenant=tenant)
        for prompt in PROMPTS[2:5]
        for kind, tenant in zip(KINDS, "ababa", strict=True)
    ]
    assert run(case, requests, look=look) == [expected(case, request) for request in requests]
    assert preempted


def waiting_batch(case: Case, *requests: Request, max_batch: int = 8) -> Batch:
    """A batch to which these were added, and whose answers have no end token."""
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch, prefill_chunk=64)
    for request in requests:
        batch.add(sequence_of(case, request))
    return batch


def test_schedule_reserves_nothing_for_what_may_come(case_of: Callable[..., Case]) -> None:
    """Four answers that may take 126 tokens each hold what they have, in a cache of 256."""
    batch = waiting_batch(case_of("llama"), *[Request(0, None, PROMPTS[3], 96)] * 4)
    batch.step()
    assert len(batch.running) == 4
    assert batch.kv_tokens == 4 * 2 * BLOCK
    batch.clear()


def test_schedule_shares_whole_blocks(case_of: Callable[..., Case]) -> None:
    batch = waiting_batch(case_of("llama"), Request(0, None, PROMPTS[4], 9))
    batch.step()
    batch.add(sequence_of(case_of("llama"), Request(0, None, PROMPTS[5], 9)))
    batch.step()
    first, second = batch.running
    assert first.blocks[0] == second.blocks[0] and first.blocks[1] != second.blocks[1]
    assert batch.kv_tokens == 3 * BLOCK
    batch.clear()


def test_schedule_holds_back_only_the_same_tenant(case_of: Callable[..., Case]) -> None:
    requests = [
        Request(0, None, PROMPTS[3], 16, tenant="finance"),
        Request(0, "all", PROMPTS[3], 16, tenant="finance"),
        Request(0, "all", PROMPTS[2], 16, tenant="finance"),
        Request(0, None, PROMPTS[2], 9, tenant="media"),
    ]
    batch = waiting_batch(case_of("llama", 5 * BLOCK), *requests)
    first, second, third, other = batch.waiting
    batch.step()
    assert batch.running == [first, other]
    assert batch.waiting == [second, third]
    batch.clear()


def test_schedule_lets_nobody_be_passed_for_ever(
    case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "PASSED", 3)
    case = case_of("llama", 5 * BLOCK)
    requests = [Request(0, None, PROMPTS[2], 9, tenant=f"t{number}") for number in range(8)]
    long = Request(0, None, tuple(range(2, 66)), 16, tenant="long")
    batch = waiting_batch(case, requests[0], long, *requests[1:])
    order: list[str | None] = []
    while not batch.idle:
        batch.step()
        order += [one.tenant for one in batch.running if one.tenant not in order]
    assert order.index("long") == 4
    assert len(order) == 9


def test_schedule_preempts_the_youngest_of_the_largest_tenant(case_of: Callable[..., Case]) -> None:
    requests = [
        Request(0, None, PROMPTS[1] * 7, 60, tenant="media"),
        Request(0, "all", PROMPTS[1] * 7, 60, tenant="finance"),
        Request(0, "mlp", PROMPTS[1] * 7, 60, tenant="finance"),
        Request(0, "mlp", PROMPTS[1] * 7, 2, tenant="science"),
    ]
    batch = waiting_batch(case_of("llama", 8 * BLOCK), *requests)
    _, _, youngest, _ = sequences = list(batch.waiting)
    while not batch.schedule.preempted:
        batch.step()
        check_blocks(batch)
    assert batch.waiting == [youngest]
    assert sequences[0] in batch.running
    before, cached = len(youngest.tokens), []
    while not batch.idle:
        chunks = (made for one, made in batch.step() if one is youngest)
        cached += [made.cached_tokens for made in chunks if isinstance(made, Chunk)]
    assert len(youngest.tokens) == youngest.limit > before
    assert cached[-1] == 0  # its own tokens, which it found again, were no earlier prompt's
    batch.clear()


def test_schedule_never_preempts_the_oldest(case_of: Callable[..., Case]) -> None:
    """Its tenant holds most by far, and the others' answers keep coming."""
    case = case_of("llama", 6 * BLOCK)
    batch = waiting_batch(case, Request(0, None, PROMPTS[3], 60, tenant="finance"))
    oldest = batch.waiting[0]
    while len(oldest.tokens) < oldest.limit:
        batch.add(sequence_of(case, Request(0, None, PROMPTS[2], 30, tenant="media")))
        batch.step()
        assert oldest in batch.running or len(oldest.tokens) == oldest.limit
    assert batch.schedule.preempted
    batch.clear()


def test_schedule_evicts_what_is_kept_before_anybody_gives_way(case_of: Callable[..., Case]) -> None:
    case = case_of("llama", 4 * BLOCK)
    requests = [Request(0, None, (number, *PROMPTS[3]), 8) for number in range(2, 8)]
    batch = waiting_batch(case, *requests, max_batch=1)
    while not batch.idle:
        batch.step()
        check_blocks(batch)
    assert batch.schedule.preempted == 0
    assert batch.schedule.kv._kept
    batch.clear()


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_schedule_names_a_prompt_once_where_it_is_read_again(case_of: Callable[..., Case], steps: int) -> None:
    """The sequence gives way amid its prompt, or after its answer began."""

    def named(give_way: bool) -> list[Chunk]:
        case = case_of("llama")
        batch = Batch(case.decoder, NAMES, frozenset(), 8, prefill_chunk=20)
        older, reads = (sequence_of(case, Request(0, None, prompt, 30)) for prompt in PROMPTS[2:4])
        sampling = Sampling(30, prompt_logprobs=True, logprobs=2)
        reads.generation = replace(reads.generation, sampling=sampling)
        batch.add(older)
        batch.add(reads)
        told = [one for _ in range(steps) for one in batch.step()]
        if give_way:
            batch.schedule._preempt()
            assert batch.waiting == [reads] and reads.computed == 0 and not reads.blocks
        while not batch.idle:
            told += batch.step()
        batch.clear()
        return [
            replace(made, device_seconds=0.0)
            for sequence, made in told
            if sequence is reads and isinstance(made, Chunk)
        ]

    assert named(give_way=True) == named(give_way=False)
    assert [len(made.prompt) for made in named(give_way=True)[:2]] == [len(PROMPTS[3]), 0]


def test_schedule_forgets_logits_that_waited_for_a_form(case_of: Callable[..., Case]) -> None:
    """Else a token would be chosen from them, while nothing of the sequence is computed."""
    batch = waiting_batch(case_of("llama"), *[Request(0, None, prompt, 30) for prompt in PROMPTS[2:4]])
    batch.step()
    held = batch.running[1]
    held.logits = torch.zeros(VOCABULARY)
    batch.schedule._preempt()
    assert batch.waiting == [held] and held.logits is None
    batch.clear()

"""Whatever shares a batch with it, and whenever, a greedy answer is PEFT's, token for token."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ops.engines.protocol import Chunk, EngineError
from lora_ops.engines.torch_engine.architectures import make_decoder
from lora_ops.engines.torch_engine.batch import Batch
from lora_ops.engines.torch_engine.decoder import ScheduledSequence
from lora_ops.engines.torch_engine.sequence import Sequence
from lora_ops.engines.torch_engine.text_stream import TextStream
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
from tests.engines.torch_engine.conftest import Case, make_case
from tests.engines.torch_engine.models import END, LLAMA_LIKE_MODELS, OTHER_MODELS, make_model, save_adapter


@pytest.mark.parametrize("architecture", [*LLAMA_LIKE_MODELS, *OTHER_MODELS])
def test_alone_every_adapter_answers_as_peft_does(architecture: str, case_of: Callable[[str], Case]) -> None:
    case = case_of(architecture)
    answers = set()
    for kind in KINDS:
        for prompt in PROMPTS:
            request = Request(0, kind, prompt, 16)
            (got,) = run(case, [request])
            assert got == expected(case, request), (kind, prompt)
            answers.add((kind, tuple(got)))
    assert len({answer for _, answer in answers}) > len(answers) / 2, "adapters and prompts hardly matter"


@pytest.mark.parametrize("architecture", [*LLAMA_LIKE_MODELS, *OTHER_MODELS])
def test_together_every_adapter_answers_as_peft_does(architecture: str, case_of: Callable[[str], Case]) -> None:
    case = case_of(architecture)
    requests = [Request(0, kind, prompt, 12) for prompt in PROMPTS for kind in KINDS]
    got = run(case, requests, max_batch=len(requests), chunk=11)
    assert got == [expected(case, request) for request in requests]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(requests_of(16), min_size=1, max_size=12),
    max_batch=st.integers(1, 8),
    chunk=st.integers(1, 40),
)
def test_no_mix_of_joins_and_leaves_changes_an_answer(
    architecture: str,
    case_of: Callable[[str], Case],
    requests: list[Request],
    max_batch: int,
    chunk: int,
) -> None:
    case = case_of(architecture)
    got = run(case, requests, max_batch=max_batch, chunk=chunk)
    assert got == [expected(case, request) for request in requests]


def test_an_adapter_of_the_output_layer_is_applied_beside_others(tmp_path: Path) -> None:
    model = make_model("llama")
    folders = {
        "head": save_adapter(copy.deepcopy(model), tmp_path / "head", target_modules=["lm_head", "q_proj"]),
        "all": save_adapter(copy.deepcopy(model), tmp_path / "all", seed=1),
    }
    case = make_case(model, folders)
    requests = [Request(0, kind, prompt, 12) for prompt in PROMPTS for kind in (None, "head", "all")]
    assert run(case, requests) == [expected(case, request) for request in requests]


def test_without_a_compiler_the_answers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case_of: Callable[[str], Case]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    case = make_case(make_model("qwen3"), case_of("qwen3").folders)
    requests = [Request(0, kind, prompt, 8) for prompt in PROMPTS for kind in KINDS]
    assert run(case, requests, chunk=9) == [expected(case, request) for request in requests]


def test_a_cancelled_sequence_gives_its_place_back_at_the_next_step(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=1, prefill_chunk=64)
    first, second = (sequence_of(case, Request(0, None, PROMPTS[2], 9)) for _ in range(2))
    batch.add(first)
    batch.add(second)
    batch.step()
    first.cancelled = True
    batch.step()
    assert batch.running == [second]
    batch.clear()


def test_a_long_prompt_is_read_in_chunks_while_others_answer(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=10)
    short, long = (sequence_of(case, Request(0, None, prompt, 9)) for prompt in (PROMPTS[2], PROMPTS[3]))
    batch.add(short)
    batch.step()
    batch.add(long)
    read = [0]
    while long.pending > 1:
        assert short in [sequence for sequence, _ in batch.step()]
        read.append(long.computed)
    chunks = [after - before for before, after in zip(read, read[1:], strict=False)]
    # The further it is read, the more its tokens attend to, and the fewer a step takes.
    assert chunks[0] == 10 and len(chunks) >= 3 and all(0 < chunk <= 10 for chunk in chunks)
    batch.clear()


def test_a_long_prompt_holds_up_no_other_tenants_first_token(case_of: Callable[[str], Case]) -> None:
    """Three long prompts stood before it, and it had to wait until the last of them was read."""
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset([END]), 8, 16)
    long = [sequence_of(case, Request(0, None, PROMPTS[3], 4)) for _ in range(3)]
    short = sequence_of(case, Request(0, None, PROMPTS[2], 4))
    for sequence in (*long, short):
        tenant = "media" if sequence is short else "finance"
        sequence.generation = replace(sequence.generation, tenant=tenant)
        batch.add(sequence)
    assert [sequence for sequence, _ in batch.step()] == [short]
    batch.clear()


def test_a_prompt_that_begins_like_an_earlier_one_starts_where_they_part(
    case_of: Callable[[str], Case],
) -> None:
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=64)
    first, second, other = (
        sequence_of(case, Request(0, kind, prompt, 1))
        for kind, prompt in (("all", PROMPTS[4]), ("all", PROMPTS[5]), ("mlp", PROMPTS[5]))
    )
    batch.add(first)
    batch.step()
    batch.add(second)
    batch.add(other)
    batch.schedule.join()
    assert second.computed == 22  # 20 tokens of the system prompt and 7, 8
    assert other.computed == 0  # another adapter computes other keys and values
    told = {sequence: chunk for sequence, chunk in batch.step() if isinstance(chunk, Chunk)}
    assert [told[one].cached_tokens for one in (second, other)] == [22, 0]
    batch.clear()


def test_nothing_is_kept_of_an_adapter_that_was_unloaded(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    adapter = case.adapters["all"]
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=64)
    batch.add(sequence_of(case, Request(0, "all", PROMPTS[4], 1)))
    batch.step()
    assert adapter is not None
    batch.forget(adapter)
    again = sequence_of(case, Request(0, "all", PROMPTS[4], 1))
    batch.add(again)
    batch.schedule.join()
    assert again.computed == 0
    batch.clear()


@pytest.mark.parametrize("ended", [True, False])
def test_what_one_tenant_asked_makes_nobody_elses_answer_quicker(
    case_of: Callable[[str], Case], ended: bool
) -> None:
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=64)

    def asked_by(tenant: str, count: int) -> Sequence:
        sequence = sequence_of(case, Request(0, None, PROMPTS[4], count))
        sequence.generation = replace(sequence.generation, tenant=tenant)
        batch.add(sequence)
        return sequence

    asked_by("finance", 1 if ended else 9)
    batch.step()
    assert len(batch.running) == (0 if ended else 1)
    other, same = asked_by("media", 1), asked_by("finance", 1)
    batch.schedule.join()
    assert other.computed == 0
    assert same.computed == len(PROMPTS[4]) - 1
    batch.clear()


def test_a_text_that_cannot_be_made_ends_no_other_answer(case_of: Callable[[str], Case]) -> None:
    class Broken(TextStream):
        def add(self, token: int, *, may_stop: bool = True) -> str:
            raise OverflowError(f"there is no token {token}")

    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=64)
    requests = [Request(0, "all", PROMPTS[2], count) for count in (1, 9, 9)]
    ends, breaks, goes_on = (sequence_of(case, request) for request in requests)
    breaks.stream = Broken(TOKENIZER, PROMPTS[2], ())
    for sequence in (ends, breaks, goes_on):
        batch.add(sequence)
    told = dict(batch.step())
    assert isinstance(told[breaks], EngineError)
    assert "there is no token" in str(told[breaks])
    assert isinstance(told[ends], Chunk) and told[ends].finish == "length"
    assert batch.running == [goes_on]
    assert [sequence for sequence, _ in batch.step()] == [goes_on]
    batch.clear()
    assert batch.kv_tokens == 0


def test_a_beginning_that_cannot_be_copied_leaves_no_place_taken(
    case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=64)
    batch.add(sequence_of(case, Request(0, "all", PROMPTS[4], 1)))
    batch.step()
    monkeypatch.setattr(case.decoder, "copy", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    batch.add(sequence_of(case, Request(0, "all", PROMPTS[5], 1)))
    with pytest.raises(MemoryError):
        batch.step()
    assert len(batch.clear()) == 1
    assert batch.schedule.kv.held == 0


def test_the_steps_time_is_shared_out_by_rows(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = Batch(case.decoder, TOKENIZER, frozenset(), max_batch=4, prefill_chunk=64)
    for prompt in (PROMPTS[1], PROMPTS[3]):
        batch.add(sequence_of(case, Request(0, None, prompt, 3)))
    (_, little), (_, much) = batch.step()
    assert much.device_seconds == pytest.approx(little.device_seconds * 15)
    batch.clear()


def test_an_architecture_that_the_fused_path_does_not_know_is_named(caplog: pytest.LogCaptureFixture) -> None:
    make_decoder(make_model("gpt2"), kv_tokens=64)
    assert "GPT2LMHeadModel" in caplog.text


def test_a_model_that_only_looks_like_a_llama_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("llama")
    model.model.layers[0].mlp.act_fn = torch.nn.Identity()
    make_decoder(model, kv_tokens=64)
    assert "differ from the model's" in caplog.text


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_shed_ends_one_sequence_and_changes_no_answer(
    architecture: str, fails_at: int, case_of: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that finds no memory may have computed some of its layers already, and some of its rows."""
    case = case_of(architecture)
    requests = [Request(0, kind, prompt, 8) for prompt in PROMPTS[:3] for kind in (None, "all")]
    batch = Batch(case.decoder, TOKENIZER, frozenset([END]), max_batch=8, prefill_chunk=16)
    sequences = [sequence_of(case, request) for request in requests]
    for sequence in sequences:
        batch.add(sequence)
    step, taken = case.decoder.step, 0

    def starved(scheduled: list[ScheduledSequence]) -> torch.Tensor:
        nonlocal taken
        taken += 1
        if taken == fails_at:
            step(scheduled[: len(scheduled) // 2])
            raise MemoryError
        return step(scheduled)

    monkeypatch.setattr(case.decoder, "step", starved)
    lost = None
    while not batch.idle:
        try:
            batch.step()
        except MemoryError:
            lost = batch.shed()
    assert lost in sequences and batch.kv_tokens == 0 and batch.shed() is None
    for request, sequence in zip(requests, sequences, strict=True):
        if sequence is not lost:
            assert sequence.tokens[len(request.prompt) :] == expected(case, request)

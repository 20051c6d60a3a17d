"""Requests to a batch, and what they must give: greedy answers of PEFT."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lora_ops.engines.protocol import Chunk, Generation, Sampling
from lora_ops.engines.torch_engine.batch import Batch
from lora_ops.engines.torch_engine.sequence import Sequence
from lora_ops.engines.torch_engine.text_stream import TextStream
from tests.engines.torch_engine.conftest import Case
from tests.engines.torch_engine.models import END, VOCABULARY

TOKENIZER = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCABULARY)}, unk_token="w0"))
KINDS = (None, "all", "attention", "mlp", "rslora")
# Some begin alike, so that there is something to share.
PROMPTS = tuple(
    tuple(random.Random(length).choices(range(2, VOCABULARY), k=length)) for length in (1, 2, 7, 30)
) + tuple(tuple(range(50, 70)) + tail for tail in ((7, 8, 9), (7, 8, 10, 11), (12,)))


@dataclass(frozen=True)
class Request:
    """One generation: which step it comes at, and after how many tokens its client goes (None: never)."""

    step: int
    adapter: str | None
    prompt: tuple[int, ...]
    count: int
    leaves_after: int | None = None
    tenant: str | None = None


def sequence_of(case: Case, request: Request) -> Sequence:
    generation = Generation("test", request.prompt, request.adapter, Sampling(request.count), request.tenant)
    limit = min(len(request.prompt) + request.count, case.decoder.context_length)
    return Sequence(
        generation,
        case.adapters[request.adapter],
        TextStream(TOKENIZER, request.prompt, ()),
        None,
        limit,
        list(request.prompt),
    )


def run(
    case: Case,
    requests: list[Request],
    *,
    max_batch: int = 8,
    chunk: int = 16,
    look: Callable[[Batch], None] = lambda batch: None,
) -> list[list[int]]:
    """Each request's tokens, by a batch that starts empty and must end empty; `look` at it after each step."""
    batch = Batch(case.decoder, TOKENIZER, frozenset([END]), max_batch, chunk)
    sequences = [sequence_of(case, request) for request in requests]
    finished: dict[int, Chunk] = {}
    step = 0
    while len(finished) < len(requests) or not batch.idle:
        for request, sequence in zip(requests, sequences, strict=True):
            if request.step == step:
                batch.add(sequence)
        for sequence, chunk_made in batch.step():
            index = sequences.index(sequence)
            assert index not in finished
            assert isinstance(chunk_made, Chunk)
            request = requests[index]
            made = len(sequence.tokens) - len(request.prompt)
            if chunk_made.finish:
                assert chunk_made.prompt_tokens == len(request.prompt)
                finished[index] = chunk_made
            elif made == request.leaves_after:
                sequence.cancelled = True
                finished[index] = chunk_made
        look(batch)
        assert len(batch.running) <= max_batch
        assert batch.kv_tokens <= case.decoder.kv_tokens
        step += 1
        assert step < 1000, "the batch makes no progress"
    assert batch.kv_tokens == 0
    batch.clear()
    look(batch)
    return [sequence.tokens[len(sequence.generation.prompt) :] for sequence in sequences]


def expected(case: Case, request: Request) -> list[int]:
    count = request.count if request.leaves_after is None else min(request.leaves_after, request.count)
    return case.reference(request.adapter, request.prompt, count)


def requests_of(longest: int) -> st.SearchStrategy[Request]:
    """Any, with answers of so many tokens at most."""
    return st.builds(
        Request,
        step=st.integers(0, 12),
        adapter=st.sampled_from(KINDS),
        prompt=st.sampled_from(PROMPTS),
        count=st.integers(1, longest),
        leaves_after=st.one_of(st.none(), st.integers(1, longest)),
        tenant=st.sampled_from(["finance", "media"]),
    )

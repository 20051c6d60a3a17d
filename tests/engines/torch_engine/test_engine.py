"""The engine as the gateway sees it: a real one, on the tiny base model."""

import asyncio
import copy
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher
from peft import PeftModel
from safetensors.torch import load_file

from lora_ops.engines.protocol import Chunk, EngineError, Generation, Sampling, Structure, Unsupported
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.engines.torch_engine import engine as engines
from lora_ops.engines.torch_engine.decoder import BLOCK, ScheduledSequence
from lora_ops.engines.torch_engine.token_bytes import TokenBytes
from lora_ops.loading import load_base_model
from tests.conftest import ROOT
from tests.engines.torch_engine.models import Reference, rounded, save_adapter

PROMPT = (5, 9, 70, 200, 41)
GREEDY = Sampling(12)


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, _ = load_base_model(tiny_base)
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "finance@1": save_adapter(copy.deepcopy(model), folder / "finance", seed=1),
        "media@2": save_adapter(copy.deepcopy(model), folder / "media", seed=2, r=9, target_modules=["v_proj"]),
    }


def with_engine(base: Path, use: Callable[[TorchEngine], Awaitable[None]], **settings: int | str) -> None:
    """Run `use` with a started engine, then close it."""

    async def run() -> None:
        engine = TorchEngine(base, threads=1, device="cpu", **settings)  # type: ignore[arg-type]
        await engine.start()
        try:
            await asyncio.wait_for(use(engine), 60)
        finally:
            await engine.close()

    asyncio.run(run())


async def answer(
    engine: TorchEngine,
    adapter: str | None = None,
    prompt: tuple[int, ...] = PROMPT,
    sampling: Sampling = GREEDY,
) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(Generation("test", prompt, adapter, sampling))]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_engine_is_unhealthy_while_every_step_fails(tiny_base: Path) -> None:
    """As after an illegal access on a GPU: /ready said yes for ever, and each request got a 502."""

    async def use(engine: TorchEngine) -> None:
        step = engine._decoder.step

        def broken(_: object) -> torch.Tensor:
            raise RuntimeError("illegal access")

        engine._decoder.step = broken  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="illegal access"):
            await answer(engine)
        await until(lambda: not engine._sound)
        assert not await engine.healthy()
        engine._decoder.step = step  # type: ignore[method-assign]
        await until(lambda: engine._sound)
        assert await engine.healthy()
        assert len(await answer(engine)) > 0

    with_engine(tiny_base, use)


def test_engine_stays_healthy_where_one_request_fails(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        step = engine._decoder.step

        def picky(scheduled: list[ScheduledSequence]) -> torch.Tensor:
            if any(PROMPT[0] in one.tokens for one in scheduled):
                raise RuntimeError("this one")
            return step(scheduled)

        engine._decoder.step = picky  # type: ignore[assignment,method-assign]
        for _ in range(4):
            with pytest.raises(EngineError, match="this one"):
                await answer(engine)
            assert await engine.healthy()
        assert len(await answer(engine, prompt=(7, 8))) > 0

    with_engine(tiny_base, use)


STARVED = """
import asyncio, resource, sys
from pathlib import Path

from lora_ops.engines.protocol import EngineBusy, Generation, Sampling
from lora_ops.engines.torch_engine import TorchEngine

LARGE = tuple(number % 300 + 5 for number in range(1900))


async def answer(engine, prompt, sampling, tenant, begun=None):
    text = ""
    async for chunk in engine.generate(Generation(tenant, prompt, None, sampling, tenant)):
        text += chunk.text
        if begun:
            begun.set()
    return text


async def main():
    engine = TorchEngine(Path(sys.argv[1]), threads=1, device="cpu", prefill_chunk=2000)
    await engine.start()
    small = [((5, 9, 70 + number), Sampling(400), f"small {number}") for number in range(3)]
    alone = [await answer(engine, *one) for one in small]
    begun = [asyncio.Event() for _ in small]
    tasks = [asyncio.create_task(answer(engine, *one, event)) for one, event in zip(small, begun)]
    await asyncio.gather(*(event.wait() for event in begun))
    size = 1024 * int(Path("/proc/self/status").read_text().partition("VmSize:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
    try:
        await answer(engine, LARGE, Sampling(1, logprobs=20, prompt_logprobs=True), "large")
    except EngineBusy as error:
        print(error)
    assert await engine.healthy()
    assert [await task for task in tasks] == alone
    assert engine.status().kv_tokens == engine.status().running == 0
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await answer(engine, LARGE, Sampling(1, logprobs=20, prompt_logprobs=True), "large")
    await engine.close()


asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_engine_without_memory_ends_what_takes_most(tiny_base: Path) -> None:
    """A prompt for which there was no memory ended the answers of all tenants."""
    # Without it the C library answers from what it keeps.
    kept = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tiny_base)],
        env=os.environ | kept,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "has no memory left for this answer" in done.stdout


def test_engine_fails_what_waits_for_a_step_that_hangs(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "HANG_SECONDS", 0.2)

    async def use(engine: TorchEngine) -> None:
        step, go_on = engine._decoder.step, threading.Event()

        def hangs(scheduled: list[ScheduledSequence]) -> torch.Tensor:
            assert go_on.wait(30)
            return step(scheduled)

        engine._decoder.step = hangs  # type: ignore[assignment,method-assign]
        waiting = asyncio.create_task(answer(engine))
        await asyncio.sleep(0.4)
        assert not await engine.healthy()
        with pytest.raises(EngineError, match="takes more than"):
            await waiting
        with pytest.raises(EngineError, match="takes more than"):
            await answer(engine)
        go_on.set()
        await until(lambda: engine._step_began is None)
        assert await engine.healthy()
        assert len(await answer(engine)) > 0

    with_engine(tiny_base, use)


def test_engine_survives_a_command_that_fails(tiny_base: Path) -> None:
    """Its thread ended, and what ran waited for the request's timeout."""

    async def use(engine: TorchEngine) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("no such command")

        running = asyncio.create_task(answer(engine, sampling=Sampling(1000)))
        await until(lambda: engine.status().running == 1)
        engine._submit(broken)
        with pytest.raises(EngineError, match="no such command"):
            await running
        assert await engine.healthy() and len(await answer(engine)) > 0

    with_engine(tiny_base, use)


def test_base_and_adapters_answer_together_as_peft_does(tiny_base: Path, folders: dict[str, Path]) -> None:
    model, tokenizer = load_base_model(tiny_base)
    reference = Reference(model, folders)

    async def use(engine: TorchEngine) -> None:
        for name, folder in folders.items():
            assert await engine.load(name, folder) > 0
        names = (None, *folders)
        answers = await asyncio.gather(*(answer(engine, name) for name in names))
        for name, chunks in zip(names, answers, strict=True):
            wanted = reference(name, PROMPT, GREEDY.max_tokens)
            shown = tokenizer.decode(wanted, skip_special_tokens=True)
            assert text_of(chunks) == shown.rstrip("�")
            assert sum(chunk.tokens for chunk in chunks) == len(wanted)
        assert len({text_of(chunks) for chunks in answers}) == 3

    with_engine(tiny_base, use)


@pytest.mark.parametrize("compiler", ["any", "none"])
@pytest.mark.parametrize("kept", ["auto", "bfloat16"])
def test_adapters_in_bfloat16_answer_as_peft_does_with_rounded_weights_and_take_less_memory(
    tiny_base: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    kept: str,
) -> None:
    if compiler == "none":
        monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    narrow = {name: rounded(Path(shutil.copytree(folder, tmp_path / name))) for name, folder in folders.items()}
    model, tokenizer = load_base_model(tiny_base)
    reference = Reference(model, narrow)

    async def use(engine: TorchEngine) -> None:
        # As their files are, or rounded here.
        for name, folder in (narrow if kept == "auto" else folders).items():
            took = await engine.load(name, folder)
            numbers = sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())
            # Without the C code it would be widened at each step.
            width = 4 if (kept, compiler) == ("auto", "none") else 2
            assert took == await engine.size(folder) == width * numbers
        asked = [(name, (*PROMPT, last)) for name in (None, *folders) for last in range(20, 26)]
        answers = await asyncio.gather(*(answer(engine, *one) for one in asked))
        for one, chunks in zip(asked, answers, strict=True):
            shown = tokenizer.decode(reference(*one, GREEDY.max_tokens), skip_special_tokens=True)
            assert text_of(chunks) == shown.rstrip("�"), one

    with_engine(tiny_base, use, adapter_dtype=kept)


@pytest.mark.parametrize("narrow", [True, False])
def test_a_base_model_in_bfloat16_answers_with_adapters_of_any_type(
    tiny_base: Path, folders: dict[str, Path], tmp_path: Path, narrow: bool
) -> None:
    folder = Path(shutil.copytree(folders["finance@1"], tmp_path / "adapter"))
    if narrow:
        rounded(folder)
    model, _ = load_base_model(tiny_base)
    adapted = PeftModel.from_pretrained(model.bfloat16().float(), folder)
    scores = adapted(torch.tensor([PROMPT])).logits[0, -1].float().log_softmax(-1)

    async def use(engine: TorchEngine) -> None:
        assert await engine.load("finance@1", folder) == await engine.size(folder)
        (chunk,) = await answer(engine, "finance@1", sampling=Sampling(1, logprobs=1))
        assert chunk.logprobs[0].logprob == pytest.approx(scores.max().item(), abs=1e-4)

    with_engine(tiny_base, use, dtype="bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_in_one_sentence(tiny_base: Path) -> None:
    with pytest.raises(EngineError, match="device is cuda, and torch finds no GPU"):
        asyncio.run(TorchEngine(tiny_base, device="cuda").start())


def test_only_the_last_chunk_has_a_finish_and_the_prompts_length(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        chunks = await answer(engine)
        assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert [chunk.prompt_tokens for chunk in chunks[:-1]] == [0] * (len(chunks) - 1)
        assert chunks[-1].finish in ("stop", "length")
        assert chunks[-1].prompt_tokens == len(PROMPT)
        assert all(chunk.device_seconds > 0 for chunk in chunks)

    with_engine(tiny_base, use)


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        whole = text_of(await answer(engine))
        stop = whole[3:5]
        chunks = await answer(engine, sampling=Sampling(12, stop=(stop,)))
        assert text_of(chunks) == whole[: whole.index(stop)]
        assert chunks[-1].finish == "stop"

    with_engine(tiny_base, use)


def test_a_seed_gives_the_same_answer_in_any_company(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        seeded = Sampling(12, temperature=1.0, top_p=0.95, seed=11)
        alone = text_of(await answer(engine, sampling=seeded))
        others = [answer(engine, sampling=Sampling(12, temperature=1.0)) for _ in range(5)]
        together, *rest = await asyncio.gather(answer(engine, sampling=seeded), *others)
        assert text_of(together) == alone
        assert len({text_of(chunks) for chunks in rest}) > 1

    with_engine(tiny_base, use)


def test_an_answer_has_the_same_probabilities_to_the_last_bit_in_any_company(
    tiny_base: Path, folders: dict[str, Path]
) -> None:
    sampling = Sampling(12, logprobs=5)

    async def use(engine: TorchEngine) -> None:
        for name, folder in folders.items():
            await engine.load(name, folder)
        asked = [(name, tuple(range(3, 3 + length))) for name in (None, *folders) for length in (1, 4, 40)]
        alone = [[chunk.logprobs for chunk in await answer(engine, *one, sampling)] for one in asked]
        together = await asyncio.gather(*(answer(engine, *one, sampling) for one in reversed(asked)))
        assert [[chunk.logprobs for chunk in chunks] for chunks in reversed(together)] == alone

    with_engine(tiny_base, use, prefill_chunk=7)


def test_an_answer_that_gave_way_goes_on_to_the_last_bit(tiny_base: Path, folders: dict[str, Path]) -> None:
    """Seeds, penalties, forms, stop texts and probabilities are those of an engine with room for all."""
    samplings = [
        Sampling(90, temperature=1.0, seed=7, logprobs=2),
        Sampling(90, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, logprobs=1),
        Sampling(90, temperature=0.8, top_k=40, min_tokens=80, seed=3, prompt_logprobs=True, logprobs=0),
        Sampling(90, structure=Structure("choice", f'["{"Lodging and " * 12}"]')),
        Sampling(90, temperature=1.2, seed=5, stop=("zq", "never to be found")),
        Sampling(90, ignore_eos=True),
    ]
    asked = [
        Generation(str(number), tuple(range(3 + number, 40)), name, sampling, tenant)
        for number, (sampling, name) in enumerate(product(samplings, (None, *folders)))
        for tenant in ("finance", "media")
    ]

    async def all_chunks(engine: TorchEngine, generation: Generation) -> list[Chunk]:
        return [replace(chunk, device_seconds=0.0) async for chunk in engine.generate(generation)]

    async def use(engine: TorchEngine) -> None:
        for name, folder in folders.items():
            await engine.load(name, folder)
        answers.append(await asyncio.gather(*(all_chunks(engine, one) for one in asked)))
        preempted.append(engine.status().preempted)
        assert engine.status().kv_tokens == 0

    answers: list[list[list[Chunk]]] = []
    preempted: list[int] = []
    for kv_tokens in (16384, 400):
        with_engine(tiny_base, use, kv_tokens=kv_tokens)
    assert answers[0] == answers[1]
    assert preempted[0] == 0 < preempted[1]


def test_logprobs_name_each_token_and_its_alternatives(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        for chunk in await answer(engine, sampling=Sampling(4, logprobs=3)):
            (chosen,) = chunk.logprobs
            assert len(chosen.top) == 3
            assert chosen.top[0] == (chosen.token, pytest.approx(chosen.logprob, abs=1e-6))

    with_engine(tiny_base, use)


def prompt_logprobs(base: Path, prompt: Sequence[int]) -> list[float]:
    """Return what transformers gives each token of a prompt but the first."""
    model, _ = load_base_model(base)
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [logprobs[place, token].item() for place, token in enumerate(prompt[1:])]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 40])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_logprobs_are_transformers(tiny_base: Path, length: int, max_tokens: int) -> None:
    prompt = tuple(range(3, 3 + length))
    wanted = prompt_logprobs(tiny_base, prompt)
    sampling = Sampling(max_tokens, logprobs=2, prompt_logprobs=True, ignore_eos=True)

    async def use(engine: TorchEngine) -> None:
        await answer(engine, None, prompt)  # nothing that is kept of it may be left out
        first, *rest = await answer(engine, None, prompt, sampling)
        assert first.prompt[0].logprob is None
        assert [one.logprob for one in first.prompt[1:]] == pytest.approx(wanted, abs=1e-4)
        assert all(len(one.top) == 2 for one in first.prompt[1:])
        chunks = [first, *rest]
        assert not any(chunk.prompt for chunk in rest)
        assert sum(chunk.tokens for chunk in chunks) == max_tokens
        assert (chunks[-1].finish, chunks[-1].prompt_tokens) == ("length", length)
        plain = await answer(engine, None, prompt, replace(sampling, prompt_logprobs=False))
        assert text_of(chunks) == text_of(plain)

    with_engine(tiny_base, use, prefill_chunk=7)


def test_prompt_logprobs_come_in_any_company(tiny_base: Path, folders: dict[str, Path]) -> None:
    async def use(engine: TorchEngine) -> None:
        await engine.load("finance@1", folders["finance@1"])
        echo = Sampling(2, logprobs=1, prompt_logprobs=True)
        asked = [(name, tuple(range(3, 3 + length))) for name in (None, "finance@1") for length in (5, 33)]
        alone = [[chunk.prompt for chunk in await answer(engine, *one, echo)] for one in asked]
        others = [answer(engine, None, (9, 8, 7, 6)) for _ in range(3)]
        together = await asyncio.gather(*(answer(engine, *one, echo) for one in asked), *others)
        assert [[chunk.prompt for chunk in chunks] for chunks in together[:4]] == alone

    with_engine(tiny_base, use, prefill_chunk=7)


def test_a_stop_token_ends_an_answer_after_min_tokens(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        whole = [chunk.logprobs[0].token for chunk in await answer(engine, sampling=Sampling(8, logprobs=0))]
        names = TokenBytes(engine._tokenizer)
        third = next(token for token in names if names[token] == whole[2])
        cut = await answer(engine, sampling=Sampling(8, stop_token_ids=frozenset({third})))
        assert (len(cut), cut[-1].finish) == (whole.index(whole[2]) + 1, "stop")
        late = await answer(engine, sampling=Sampling(8, stop_token_ids=frozenset({third}), min_tokens=5))
        assert len(late) >= 6 or late[-1].finish == "length"

    with_engine(tiny_base, use)


def test_a_stop_text_counts_from_min_tokens_on(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        whole = text_of(await answer(engine))
        chunks = await answer(engine, sampling=Sampling(12, stop=tuple(whole), min_tokens=6))
        assert sum(chunk.tokens for chunk in chunks) > 6 and len(text_of(chunks)) > 1

    with_engine(tiny_base, use)


def formed(tenant: str, text: str) -> Generation:
    """An answer that must be this text."""
    sampling = Sampling(600, structure=Structure("choice", f'["{text}"]'))
    return Generation("test", PROMPT, None, sampling, tenant)


def test_a_form_that_takes_long_holds_up_no_other_answer(tiny_base: Path) -> None:
    """`((a{1000}){1000}){1000}` takes two seconds for one token."""

    async def use(engine: TorchEngine) -> None:
        goes_on = threading.Event()
        for text in ("Lodging", "x" * 500):  # it waits before its first token, and amid the answer
            goes_on.clear()
            generating = engine.generate(formed("slow", text))
            said = "" if text == "Lodging" else (await anext(generating)).text
            engine._form_threads.submit("slow", goes_on.wait)
            slow = asyncio.create_task(text_from(generating))
            assert await answer(engine)
            assert await text_from(engine.generate(formed("quick", "neutral"))) == "neutral"
            assert not slow.done()
            goes_on.set()
            assert said + await slow == text
        assert engine.status().kv_tokens == 0

    with_engine(tiny_base, use)


async def text_from(chunks: AsyncIterator[Chunk]) -> str:
    return text_of([chunk async for chunk in chunks])


def test_a_cancelled_form_gives_its_place_back(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        goes_on = threading.Event()
        engine._form_threads.submit("slow", goes_on.wait)
        slow = asyncio.create_task(text_from(engine.generate(formed("slow", "Lodging"))))
        await until(lambda: engine.status().running == 1)
        slow.cancel()
        await until(lambda: engine.status().running == 0)
        assert engine.status().kv_tokens == 0
        goes_on.set()
        assert await text_from(engine.generate(formed("slow", "Airlines"))) == "Airlines"

    with_engine(tiny_base, use)


@pytest.mark.parametrize("call", ["compute_bitmask", "consume_token"])
def test_a_form_that_fails_ends_its_own_answer(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A panic of Rust is no Exception, and ended the thread that answers everybody."""

    class Panic(BaseException):
        pass

    class Broken:
        def __init__(self, matcher: object) -> None:
            self._matcher = matcher

        def __getattr__(self, name: str) -> object:
            return self._panic if name == call else getattr(self._matcher, name)

        def _panic(self, *_: object) -> None:
            raise Panic

    async def use(engine: TorchEngine) -> None:
        monkeypatch.setattr(LLMatcher, "deep_copy", lambda matcher: Broken(matcher))
        other = asyncio.create_task(answer(engine))
        with pytest.raises(Unsupported, match="can't be followed"):
            await text_from(engine.generate(formed("broken", "Lodging")))
        assert text_of(await other) == text_of(await answer(engine))

    with_engine(tiny_base, use)


def test_closing_ends_what_waits_for_its_form(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        goes_on = threading.Event()
        engine._compiler.submit("other", goes_on.wait)
        waiting = [asyncio.create_task(text_from(engine.generate(formed("slow", "Lodging")))) for _ in range(3)]
        await until(lambda: len(engine._compiler._lines) == 2)
        await engine.close()
        goes_on.set()
        for one in waiting:
            with pytest.raises(EngineError, match="The engine"):
                await asyncio.wait_for(one, 10)

    with_engine(tiny_base, use)


def test_an_answer_that_would_leave_the_context_ends_there(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        assert engine.context_length == 20
        chunks = await answer(engine, sampling=Sampling(1000))
        assert chunks[-1].finish == "length"
        assert sum(chunk.tokens for chunk in chunks) == 20 - len(PROMPT)

    with_engine(tiny_base, use, kv_tokens=20)


@pytest.mark.parametrize(
    ("prompt", "adapter", "sampling", "problem"),
    [
        ((), None, GREEDY, "empty"),
        ((1,) * 20, None, GREEDY, "20 tokens.*room for 20"),
        ((5, 100_000), None, GREEDY, "token that is not one of"),
        ((5, -1), None, GREEDY, "token that is not one of"),
        (PROMPT, "nobody@1", GREEDY, "no adapter 'nobody@1'"),
        (PROMPT, None, Sampling(-1), "max_tokens"),
        (PROMPT, None, Sampling(1, stop_token_ids=frozenset({100_000})), "token that is not one of"),
        (PROMPT, None, Sampling(1, logit_bias=((-1, 1.0),)), "token that is not one of"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(
    tiny_base: Path, prompt: tuple[int, ...], adapter: str | None, sampling: Sampling, problem: str
) -> None:
    async def use(engine: TorchEngine) -> None:
        with pytest.raises(EngineError, match=problem):
            await answer(engine, adapter, prompt, sampling)
        assert engine.status().running == 0

    with_engine(tiny_base, use, kv_tokens=20)


def test_more_requests_than_fit_wait_and_are_all_answered(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        answers = await asyncio.gather(*(answer(engine) for _ in range(20)))
        assert len({text_of(chunks) for chunks in answers}) == 1
        assert engine.status().running == engine.status().waiting == engine.status().kv_tokens == 0

    with_engine(tiny_base, use, max_batch=3, kv_tokens=40)


def test_status_tells_who_runs_who_waits_and_what_is_loaded(tiny_base: Path, folders: dict[str, Path]) -> None:
    async def use(engine: TorchEngine) -> None:
        size = await engine.load("finance@1", folders["finance@1"])
        endless = [engine.generate(Generation("x", PROMPT, None, Sampling(1000))) for _ in range(3)]
        tasks = [asyncio.ensure_future(anext(chunks)) for chunks in endless]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: engine.status().running == 2)
        status = engine.status()
        assert (status.running, status.waiting) == (2, 1)
        assert 0 < status.kv_tokens <= 2 * (1000 + len(PROMPT) + BLOCK)
        assert status.kv_tokens % BLOCK == 0 and status.kv_capacity == 2112
        assert status.adapters == {"finance@1": size}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for chunks in endless:
            await chunks.aclose()

    with_engine(tiny_base, use, max_batch=2, kv_tokens=2100)


def test_closing_the_iterator_frees_the_place_for_the_next(tiny_base: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        chunks = engine.generate(Generation("gone", PROMPT, None, Sampling(2000)))
        await anext(chunks)
        await chunks.aclose()
        assert text_of(await answer(engine))
        assert engine.status().running == 0

    with_engine(tiny_base, use, max_batch=1)


def test_an_adapter_is_loaded_while_another_answers(tiny_base: Path, folders: dict[str, Path]) -> None:
    async def use(engine: TorchEngine) -> None:
        chunks = engine.generate(Generation("long", PROMPT, None, Sampling(1500)))
        await anext(chunks)
        await engine.load("finance@1", folders["finance@1"])
        assert text_of(await answer(engine, "finance@1"))
        assert engine.status().running == 1
        await chunks.aclose()

    with_engine(tiny_base, use)


def test_a_load_takes_no_threads_from_an_engine_that_starts_later(
    tiny_base: Path, folders: dict[str, Path]
) -> None:
    async def threads_after_a_load(engine: TorchEngine) -> int:
        await engine.start()
        found: Future[int] = Future()
        await engine.load("finance@1", folders["finance@1"])
        engine._submit(lambda _: found.set_result(torch.get_num_threads()))
        return await asyncio.wrap_future(found)

    async def run() -> None:
        engines = [TorchEngine(tiny_base, device="cpu") for _ in range(2)]
        assert [await threads_after_a_load(engine) for engine in engines] == [2, 2]
        for engine in engines:
            await engine.close()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        asyncio.run(run())
    finally:
        torch.set_num_threads(before)


def test_an_adapter_in_use_is_not_unloaded_and_an_unknown_one_is_no_error(
    tiny_base: Path, folders: dict[str, Path]
) -> None:
    async def use(engine: TorchEngine) -> None:
        await engine.load("finance@1", folders["finance@1"])
        chunks = engine.generate(Generation("long", PROMPT, "finance@1", Sampling(1500)))
        await anext(chunks)
        with pytest.raises(EngineError, match="still used by 1"):
            await engine.unload("finance@1")
        await chunks.aclose()
        await engine.unload("finance@1")
        await engine.unload("finance@1")
        with pytest.raises(EngineError, match="no adapter"):
            await answer(engine, "finance@1")

    with_engine(tiny_base, use)


def test_a_name_means_one_adapter(tiny_base: Path, folders: dict[str, Path]) -> None:
    async def use(engine: TorchEngine) -> None:
        sizes = await asyncio.gather(*(engine.load("finance@1", folders["finance@1"]) for _ in range(3)))
        assert len(set(sizes)) == 1
        with pytest.raises(EngineError, match="from other files"):
            await engine.load("finance@1", folders["media@2"])
        before = text_of(await answer(engine, "finance@1"))
        await engine.unload("finance@1")
        await engine.load("finance@1", folders["media@2"])
        assert text_of(await answer(engine, "finance@1")) != before

    with_engine(tiny_base, use)


def test_a_broken_adapter_takes_nothing_down(tiny_base: Path, tmp_path: Path) -> None:
    async def use(engine: TorchEngine) -> None:
        with pytest.raises(EngineError, match="adapter_model.safetensors"):
            await engine.load("broken@1", tmp_path)
        assert engine.status().adapters == {}
        assert text_of(await answer(engine))

    with_engine(tiny_base, use)


def test_a_step_that_fails_ends_its_generations_and_no_later_one(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(engine: TorchEngine) -> None:
        step = engine._decoder.step
        monkeypatch.setattr(engine._decoder, "step", lambda _: (_ for _ in ()).throw(RuntimeError("full")))
        failed = await asyncio.gather(answer(engine), answer(engine), return_exceptions=True)
        assert [str(error) for error in failed] == ["The engine failed: full"] * 2
        monkeypatch.setattr(engine._decoder, "step", step)
        assert text_of(await answer(engine))

    with_engine(tiny_base, use)


def test_closing_ends_what_still_runs_with_an_error(tiny_base: Path) -> None:
    async def run() -> None:
        engine = TorchEngine(tiny_base, threads=1, device="cpu")
        await engine.start()
        task = asyncio.ensure_future(answer(engine, sampling=Sampling(2000)))
        await until(lambda: engine.status().running == 1)
        await engine.close()
        with pytest.raises(EngineError, match="stopped"):
            await task
        with pytest.raises(EngineError, match="not running"):
            await answer(engine)

    asyncio.run(run())


def test_no_base_model_is_one_sentence(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(EngineError, match="base_model.json"):
            await TorchEngine(tmp_path, device="cpu").start()

    asyncio.run(run())


def test_the_event_loop_is_never_held_up_for_long(tiny_base: Path) -> None:
    """Not a measurement of speed: a step that ran on the loop would stop it until the answer's end."""

    async def use(engine: TorchEngine) -> None:
        task = asyncio.ensure_future(answer(engine, sampling=Sampling(300)))
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 300

    with_engine(tiny_base, use)


@pytest.mark.skipif(not (ROOT / "models/base/base_model.json").is_file(), reason="models/base is not made yet")
def test_the_real_model_answers_as_peft_does(tmp_path: Path) -> None:
    base = ROOT / "models/base"
    model, tokenizer = load_base_model(base)
    folders = {
        f"tenant@{rank}": save_adapter(
            copy.deepcopy(model), tmp_path / str(rank), seed=rank, r=rank, scale=0.05
        )
        for rank in (4, 8)
    }
    rounded(folders["tenant@8"])
    reference = Reference(model, folders)
    prompts = [
        tuple(tokenizer(text)["input_ids"]) for text in ("The capital of France is", "def fibonacci(n):")
    ]

    async def use(engine: TorchEngine) -> None:
        for name, folder in folders.items():
            await engine.load(name, folder)
        asked = [(name, prompt) for name in (None, *folders) for prompt in prompts]
        answers = await asyncio.gather(*(answer(engine, *one, Sampling(16)) for one in asked))
        for one, chunks in zip(asked, answers, strict=True):
            wanted = tokenizer.decode(reference(*one, 16), skip_special_tokens=True)
            assert text_of(chunks) == wanted.rstrip("�"), one

    with_engine(base, use)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_answers_as_the_cpu_does(tiny_base: Path, folders: dict[str, Path]) -> None:
    async def run(device: str) -> str:
        engine = TorchEngine(tiny_base, device=device, dtype="float32")
        await engine.start()
        await engine.load("finance@1", folders["finance@1"])
        text = text_of(await answer(engine, "finance@1"))
        await engine.close()
        return text

    assert asyncio.run(run("cuda")) == asyncio.run(run("cpu"))

"""What every engine does: the same tests for the embedded one and for an OpenAI-compatible server.

The server is a second gateway of ours, which speaks the same calls as vLLM; vLLM itself is in test_vllm.py.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ops.adapter_files import adapter_digests
from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.engines.protocol import Chunk, Engine, EngineError, Generation, Sampling, Structure, Unsupported
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.registry import packages
from lora_ops.registry.backends import open_registry
from lora_ops.serving.keys import KeyStore
from lora_ops.settings.serving import OpenAIEngineSettings
from tests.serving.conftest import Clone, Served, served

PROMPT = (5, 9, 70, 200, 41)
ADAPTERS = ("finance@1", "finance@2", "healthcare@1")
Use = Callable[[Engine], Awaitable[None]]
Run = Callable[[Use], None]


@pytest.fixture
def folders(clone: Clone) -> dict[str, Path]:
    with closing(open_registry(clone.root)) as registry:
        return {name: packages.verified_path(registry, name) for name in ADAPTERS}


@pytest.fixture(params=["torch", "openai"])
def with_engine(request: pytest.FixtureRequest, clone: Clone, tiny_base: Path) -> Run:
    @asynccontextmanager
    async def started(engine: Engine) -> AsyncIterator[Engine]:
        await engine.start()
        yield engine
        await engine.close()

    def run(use: Use) -> None:
        async def main(engine: Engine) -> None:
            async with started(engine):
                await asyncio.wait_for(use(engine), 60)

        torch_engine = TorchEngine(tiny_base, threads=1, kv_tokens=8192)
        if request.param == "torch":
            asyncio.run(main(torch_engine))
            return
        with served(clone.root, clone.settings(), torch_engine) as behind:
            asyncio.run(main(OpenAIEngine(OpenAIEngineSettings(url=behind.url, adapters="name"))))

    return run


async def chunks(engine: Engine, adapter: str | None = None, **sampling: object) -> list[Chunk]:
    options = {"max_tokens": 12, **sampling}
    generation = Generation("test", PROMPT, adapter, Sampling(**options))  # type: ignore[arg-type]
    return [chunk async for chunk in engine.generate(generation)]


def text(pieces: list[Chunk]) -> str:
    return "".join(piece.text for piece in pieces).rstrip("\ufffd")


def peft_says(base: Path, folder: Path | None, tokens: int = 12) -> str:
    model = AutoModelForCausalLM.from_pretrained(base)
    if folder:
        model = PeftModel.from_pretrained(model, folder)
    prompt = torch.tensor([PROMPT])
    written = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False
    )
    said = AutoTokenizer.from_pretrained(base).decode(written[0, len(PROMPT) :], skip_special_tokens=True)
    return str(said).rstrip("\ufffd")  # an engine does not show the half of a character


def test_greedy_answers_are_those_of_peft_alone_and_mixed(
    with_engine: Run, folders: dict[str, Path], tiny_base: Path
) -> None:
    expected = {name: peft_says(tiny_base, folders.get(name)) for name in (*ADAPTERS, "base")}
    assert len(set(expected.values())) > 2

    async def use(engine: Engine) -> None:
        for name in ADAPTERS:
            await engine.load(name, folders[name])
        names: list[str | None] = [*ADAPTERS, None]
        for name in names:
            assert text(await chunks(engine, name)) == expected[name or "base"]
        mixed = await asyncio.gather(*(chunks(engine, name) for name in names * 4))
        assert [text(one) for one in mixed] == [expected[name or "base"] for name in names * 4]

    with_engine(use)


SHAPED: list[dict[str, object]] = [
    {"logit_bias": ((70, 100.0), (9, -100.0))},
    {"presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"repetition_penalty": 1.9, "ignore_eos": True},
    {"temperature": 1.5, "top_k": 3, "min_p": 0.1, "top_p": 0.8, "seed": 7},
    {"stop_token_ids": frozenset(range(40, 200)), "min_tokens": 3},
    {"structure": Structure("choice", '["Lodging", "Airlines"]'), "max_tokens": 40},
    {"structure": Structure("regex", "[0-9]{4}"), "max_tokens": 40},
    {"structure": Structure("json", '{"const": {"a": 1}}'), "max_tokens": 40},
    {"structure": Structure("grammar", 'start: "x" /[a-c]+/ "y"'), "max_tokens": 40},
]


def test_both_engines_shape_the_choice_alike(with_engine: Run, tiny_base: Path) -> None:
    async def use(engine: Engine) -> None:
        here = TorchEngine(tiny_base, threads=1, kv_tokens=8192)
        await here.start()
        plain = text(await chunks(here))
        for shaped in SHAPED:
            wanted, found = await chunks(here, **shaped), await chunks(engine, **shaped)
            assert (text(found), found[-1].finish) == (text(wanted), wanted[-1].finish), shaped
            assert text(wanted) != plain, shaped
        await here.close()

    with_engine(use)


def test_what_an_engine_does_not_do_is_the_clients_to_mend(with_engine: Run) -> None:
    async def use(engine: Engine) -> None:
        wrong: list[dict[str, object]] = [{"structure": Structure("regex", "(a")}]
        if isinstance(engine, OpenAIEngine):
            wrong.append({"prompt_logprobs": True, "logprobs": 1})
        for sampling in wrong:
            with pytest.raises(Unsupported):
                await chunks(engine, **sampling)
        assert await chunks(engine)

    with_engine(use)


def test_a_schema_that_is_no_json_is_the_clients_to_mend(with_engine: Run) -> None:
    huge = f'{{"maximum": {"9" * 5000}}}'
    schemas = ("{", '{"maximum": 1e999}', '{"maximum": NaN}', '{"const": "\\ud800"}', "[" * 20_000, huge)

    async def use(engine: Engine) -> None:
        for schema in schemas:
            with pytest.raises(Unsupported, match="The answer's form can't be"):
                await chunks(engine, structure=Structure("json", schema))
        assert await chunks(engine)

    with_engine(use)


def test_only_the_last_chunk_has_the_end_and_all_of_them_the_tokens(with_engine: Run) -> None:
    async def use(engine: Engine) -> None:
        pieces = await chunks(engine, max_tokens=7)
        assert [piece.finish is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].finish == "length" and sum(piece.tokens for piece in pieces) == 7
        assert pieces[-1].prompt_tokens == len(PROMPT)
        assert sum(piece.device_seconds for piece in pieces) > 0

    with_engine(use)


def test_a_seed_repeats_and_a_stop_ends_and_logprobs_are_told(with_engine: Run) -> None:
    async def use(engine: Engine) -> None:
        once = text(await chunks(engine, temperature=1.5, seed=4, top_p=0.9))
        assert text(await chunks(engine, temperature=1.5, seed=4, top_p=0.9)) == once
        assert text(await chunks(engine, temperature=1.5, seed=5, top_p=0.9)) != once
        whole = text(await chunks(engine))
        cut = await chunks(engine, stop=(whole[3:5],))
        assert text(cut) == whole[: whole.index(whole[3:5])] and cut[-1].finish == "stop"
        told = [one for piece in await chunks(engine, logprobs=3) for one in piece.logprobs]
        assert len(told) == 12
        assert all(one.top and one.logprob == pytest.approx(one.top[0][1], abs=1e-5) for one in told)

    with_engine(use)


def test_adapters_come_and_go_while_others_generate(with_engine: Run, folders: dict[str, Path]) -> None:
    async def use(engine: Engine) -> None:
        await engine.load("finance@1", folders["finance@1"])
        running = asyncio.create_task(chunks(engine, "finance@1", max_tokens=200))
        await engine.load("healthcare@1", folders["healthcare@1"])
        assert set(engine.status().adapters) == {"finance@1", "healthcare@1"}
        await chunks(engine, "healthcare@1")
        await engine.unload("healthcare@1")
        assert sum(piece.tokens for piece in await running) == 200
        with pytest.raises(EngineError, match="no adapter 'healthcare@1'"):
            await chunks(engine, "healthcare@1")
        await engine.unload("healthcare@1")

    with_engine(use)


def test_the_same_name_with_other_files_is_refused(with_engine: Run, folders: dict[str, Path]) -> None:
    async def use(engine: Engine) -> None:
        await engine.load("finance@1", folders["finance@1"])
        await engine.load("finance@1", folders["finance@1"])
        with pytest.raises(EngineError, match="from other files"):
            await engine.load("finance@1", folders["healthcare@1"])

    with_engine(use)


def test_load_refuses_files_that_were_not_verified(with_engine: Run, folders: dict[str, Path]) -> None:
    async def use(engine: Engine) -> None:
        verified = adapter_digests(folders["healthcare@1"])
        with pytest.raises(EngineError, match="was changed after it was verified"):
            await engine.load("finance@1", folders["finance@1"], verified)
        assert not engine.status().adapters
        await engine.load("finance@1", folders["finance@1"], adapter_digests(folders["finance@1"]))

    with_engine(use)


def test_closing_early_frees_the_place(with_engine: Run) -> None:
    async def use(engine: Engine) -> None:
        generation = Generation("test", PROMPT, None, Sampling(max_tokens=1500))
        stream = engine.generate(generation)
        await anext(stream)
        assert engine.status().running == 1
        await stream.aclose()  # type: ignore[attr-defined]
        for _ in range(100):
            if engine.status().running == 0:
                return
            await asyncio.sleep(0.02)
        pytest.fail("it still runs")

    with_engine(use)


def test_a_prompt_that_is_too_long_is_refused(with_engine: Run) -> None:
    async def use(engine: Engine) -> None:
        too_long = Generation("test", (5,) * (engine.context_length + 1), None, Sampling(max_tokens=1))
        with pytest.raises(EngineError):
            [chunk async for chunk in engine.generate(too_long)]
        assert await chunks(engine)

    with_engine(use)


def test_an_engine_is_healthy_from_its_start_to_its_end(with_engine: Run) -> None:
    engines = []

    async def use(engine: Engine) -> None:
        engines.append(engine)
        assert await engine.healthy()

    with_engine(use)
    assert not asyncio.run(engines[0].healthy())


# What only a server behind the network can do wrong.


def test_a_gateway_before_a_gateway_answers_the_same(clone: Clone, engine: Engine) -> None:
    body = {"model": "finance", "messages": [{"role": "user", "content": "AIRBNB"}], "max_tokens": 9}
    with served(clone.root, clone.settings(), engine) as behind:
        front_engine = OpenAIEngine(OpenAIEngineSettings(url=behind.url, adapters="name"))
        with served(clone.root, clone.settings(path=".serving-front"), front_engine) as front:
            answers = [one.http().post("/v1/chat/completions", json=body).json() for one in (behind, front)]
    for answer in answers:
        del answer["id"], answer["created"]
    assert answers[0] == answers[1]


def test_a_server_that_is_not_there_refuses_the_key_or_has_another_model_is_one_sentence(
    gateway: Served, clone: Clone
) -> None:
    async def start(**settings: str) -> None:
        await OpenAIEngine(OpenAIEngineSettings(**settings)).start()  # type: ignore[arg-type]

    with pytest.raises(EngineError, match="can't be reached"):
        asyncio.run(start(url="http://127.0.0.1:9"))
    with pytest.raises(EngineError, match=r"does not serve 'llama' \(base models there: tiny-random\)"):
        asyncio.run(start(url=gateway.url, model="llama"))
    with closing(KeyStore(clone.root / ".serving/keys.sqlite")) as keys:
        keys.create("admin")
    with pytest.raises(EngineError, match="answers 401: The API key is missing"):
        asyncio.run(start(url=gateway.url))


def test_a_server_that_goes_away_in_the_middle_of_an_answer_ends_it_with_an_error(
    clone: Clone, tiny_base: Path
) -> None:
    torch_engine = TorchEngine(tiny_base, threads=1, kv_tokens=8192)

    async def use(url: str, stop: Callable[[], None]) -> None:
        engine = OpenAIEngine(OpenAIEngineSettings(url=url, adapters="name"))
        await engine.start()
        stream = engine.generate(Generation("test", PROMPT, None, Sampling(max_tokens=1900)))
        await anext(stream)
        stop()
        with pytest.raises(EngineError):
            [chunk async for chunk in stream]
        async with asyncio.timeout(20):
            while await engine.healthy():
                await asyncio.sleep(0.02)
        await engine.close()

    settings = clone.settings(request_timeout_seconds=0.5)
    with served(clone.root, settings, torch_engine) as behind:

        def stop() -> None:
            behind.server.should_exit = behind.server.force_exit = True

        asyncio.run(use(behind.url, stop))


def test_a_path_is_sent_to_a_server_that_wants_one_and_refused_by_one_that_does_not(
    gateway: Served, folders: dict[str, Path]
) -> None:
    async def use() -> None:
        engine = OpenAIEngine(OpenAIEngineSettings(url=gateway.url, adapters="path"))
        await engine.start()
        with pytest.raises(EngineError, match="answers 400: lora_path"):
            await engine.load("finance@1", folders["finance@1"])
        await engine.close()

    asyncio.run(use())

"""The `openai` engine before vLLM and before a server as strict: loads, answers, restarts of either side.

For vLLM itself set VLLM_PYTHON to the Python of an environment that has it, and make the base model first.
"""

import asyncio
import copy
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.engines.protocol import EngineError, Generation, Sampling, ToolChat
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.loading import load_base_model
from lora_ops.serving.tokenization import Tokenization
from lora_ops.settings.serving import OpenAIEngineSettings
from tests.conftest import ROOT, record_base
from tests.engines.torch_engine.models import rounded, save_adapter
from tests.engines.vllm_servers import TOOL_TEMPLATE, Server, StrictDoor, Vllm

PROMPTS = ((5, 9, 70, 200, 41), (17, 30, 31), (60, 8, 8, 61))
NAMES = ("finance@1", "healthcare@1")
TOKENS = 8
Use = Callable[[OpenAIEngine], Awaitable[None]]
Answers = dict[tuple[str | None, tuple[int, ...]], str]


@pytest.fixture(scope="module", params=["strict", "vllm"])
def server(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    made: Server
    if request.param == "strict":
        made = StrictDoor(tiny_base)
    else:
        python = os.environ.get("VLLM_PYTHON")
        if not python:
            pytest.skip("VLLM_PYTHON names no Python with vLLM")
        if not (ROOT / "models/base/base_model.json").is_file():
            pytest.skip("models/base is not made yet")
        made = Vllm(python, ROOT / "models/base", tmp_path_factory.mktemp("vllm") / "log")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def folders(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, _ = load_base_model(server.base)
    folder = tmp_path_factory.mktemp("adapters")
    scale = 0.3 if isinstance(server, StrictDoor) else 0.05
    return {
        name: rounded(save_adapter(copy.deepcopy(model), folder / name, seed=seed, scale=scale))
        for seed, name in enumerate(NAMES)
    }


async def answer(engine: OpenAIEngine | TorchEngine, name: str | None, prompt: tuple[int, ...]) -> str:
    asked = Generation("test", prompt, name, Sampling(TOKENS))
    return "".join([chunk.text async for chunk in engine.generate(asked)]).rstrip("\ufffd")


@pytest.fixture(scope="module")
def expected(server: Server, folders: dict[str, Path]) -> Answers:
    """What the embedded engine answers."""

    async def run() -> Answers:
        engine = TorchEngine(server.base, threads=1, device="cpu", kv_tokens=2048)
        await engine.start()
        for name, folder in folders.items():
            await engine.load(name, folder)
        said = {(name, p): await answer(engine, name, p) for name in (None, *NAMES) for p in PROMPTS}
        await engine.close()
        return said

    return asyncio.run(run())


def with_engine(server: Server, use: Use) -> None:
    """A gateway's engine, from its start to its end."""

    async def run() -> None:
        engine = OpenAIEngine(OpenAIEngineSettings(url=server.url))
        await engine.start()
        await asyncio.wait_for(use(engine), 300)
        await engine.close()

    asyncio.run(run())


def loaded(server: Server) -> set[str]:
    """The versions that it has, without the content that it names them by."""
    cards = httpx.get(f"{server.url}/v1/models").json()["data"]
    return {card["id"].partition("-")[0] for card in cards if card["parent"]}


SALTED = [
    ("finance", None),
    ("finance", "a user"),
    ("finance", "@/\\"),
    ("finance", "s" * 200),
    ("media", None),
    (None, "a user"),
]


def test_each_tenant_and_salt_has_a_prefix_cache_of_its_own(tmp_path: Path, tiny_base: Path) -> None:
    """vLLM refuses a salt with a slash, and shares what it keeps of prompts where there is none."""
    door = StrictDoor(tiny_base)
    door.start()

    async def use(engine: OpenAIEngine) -> None:
        for tenant, salt in (*SALTED, *SALTED):
            asked = Generation("test", PROMPTS[0], None, Sampling(1), tenant, salt)
            assert [chunk async for chunk in engine.generate(asked)]

    with_engine(door, use)
    door.stop()
    assert len(set(door.salts)) == len(SALTED) and door.salts[: len(SALTED)] == door.salts[len(SALTED) :]


def test_tokens_that_the_server_had_kept_are_passed_on(door: StrictDoor) -> None:
    async def use(engine: OpenAIEngine) -> None:
        asked = Generation("test", PROMPTS[0], None, Sampling(TOKENS))
        chunks = [chunk async for chunk in engine.generate(asked)]
        assert [chunk.cached_tokens for chunk in chunks] == [None] * (len(chunks) - 1) + [4]

    with_engine(door, use)


def test_greedy_answers_are_those_of_the_embedded_engine(
    server: Server, folders: dict[str, Path], expected: Answers
) -> None:
    assert len(set(expected.values())) == len(expected)

    async def use(engine: OpenAIEngine) -> None:
        for name, folder in folders.items():
            await engine.load(name, folder)
        assert loaded(server) == set(NAMES)
        said = await asyncio.gather(*(answer(engine, *asked) for asked in expected))
        assert dict(zip(expected, said, strict=True)) == expected

    with_engine(server, use)


def test_a_gateway_that_starts_anew_unloads_what_it_finds_and_loads_it_again(
    server: Server, folders: dict[str, Path], expected: Answers
) -> None:
    async def before(engine: OpenAIEngine) -> None:
        await engine.load(NAMES[0], folders[NAMES[0]])

    async def after(engine: OpenAIEngine) -> None:
        assert loaded(server) == set()
        with pytest.raises(EngineError, match="no adapter 'finance@1'"):
            await answer(engine, NAMES[0], PROMPTS[0])
        await engine.load(NAMES[0], folders[NAMES[0]])
        assert await answer(engine, NAMES[0], PROMPTS[0]) == expected[NAMES[0], PROMPTS[0]]

    with_engine(server, before)
    assert NAMES[0] in loaded(server)
    with_engine(server, after)


def test_a_server_that_starts_anew_is_given_its_adapters_again(
    server: Server, folders: dict[str, Path], expected: Answers
) -> None:
    async def use(engine: OpenAIEngine) -> None:
        for name, folder in folders.items():
            await engine.load(name, folder)
        await asyncio.to_thread(server.stop)
        with pytest.raises(EngineError, match="can't be reached"):
            await answer(engine, NAMES[0], PROMPTS[0])
        with pytest.raises(EngineError, match="can't be reached"):
            await engine.unload(NAMES[1])
        assert set(engine.status().adapters) == set(NAMES)
        await asyncio.to_thread(server.start)
        assert loaded(server) == set()
        asked = [(name, prompt) for name in NAMES for prompt in PROMPTS]
        assert await asyncio.gather(*(answer(engine, *one) for one in asked)) == [
            expected[one] for one in asked
        ]
        for name in NAMES:
            await engine.unload(name)
        assert loaded(server) == set()

    with_engine(server, use)


def test_an_adapter_that_is_nowhere_is_refused_and_the_next_load_is_not(
    server: Server, folders: dict[str, Path], tmp_path: Path
) -> None:
    async def use(engine: OpenAIEngine) -> None:
        with pytest.raises(EngineError, match="There is no adapter_model.safetensors"):
            await engine.load(NAMES[0], tmp_path)
        await engine.load(NAMES[0], folders[NAMES[0]])
        await engine.unload(NAMES[0])
        await engine.load(NAMES[0], folders[NAMES[1]])

    with_engine(server, use)


@pytest.fixture
def door(tiny_base: Path) -> Iterator[StrictDoor]:
    made = StrictDoor(tiny_base)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    model, _ = load_base_model(tiny_base)
    return save_adapter(model, tmp_path / "adapter", seed=1)


def test_however_many_answers_miss_an_adapter_it_is_loaded_again_once(door: StrictDoor, folder: Path) -> None:
    async def use(engine: OpenAIEngine) -> None:
        await engine.load("finance@1", folder)
        await asyncio.to_thread(door.stop)
        await asyncio.to_thread(door.start)
        door.loads.clear()
        said = await asyncio.gather(*(answer(engine, "finance@1", PROMPTS[0]) for _ in range(12)))
        assert len(set(said)) == 1
        assert [name.partition("-")[0] for name in door.loads] == ["finance@1"]

    with_engine(door, use)


def test_a_load_whose_answer_was_lost_can_be_repeated(door: StrictDoor, folder: Path) -> None:
    async def use(engine: OpenAIEngine) -> None:
        door.fail_after_next_load = True
        with pytest.raises(EngineError, match="answers 502"):
            await engine.load("finance@1", folder)
        assert loaded(door) == {"finance@1"}
        await engine.load("finance@1", folder)
        assert await answer(engine, "finance@1", PROMPTS[0])

    with_engine(door, use)


def test_files_that_changed_since_they_were_verified_are_not_loaded_again(
    door: StrictDoor, folder: Path
) -> None:
    async def use(engine: OpenAIEngine) -> None:
        await engine.load("finance@1", folder)
        await asyncio.to_thread(door.stop)
        await asyncio.to_thread(door.start)
        config = folder / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 99'))
        with pytest.raises(EngineError, match="not those that were verified"):
            await answer(engine, "finance@1", PROMPTS[0])
        assert loaded(door) == set()

    with_engine(door, use)


def test_weights_that_the_server_kept_never_answer_for_others(
    door: StrictDoor, folder: Path, tmp_path: Path
) -> None:
    """A server that says it unloaded an adapter, and has its weights ready under the same name."""
    model, _ = load_base_model(door.base)
    other = rounded(save_adapter(model, tmp_path / "other", seed=2, scale=0.5))

    async def use(engine: OpenAIEngine) -> None:
        await engine.load("finance@1", other)
        expected = await answer(engine, "finance@1", PROMPTS[0])
        await engine.unload("finance@1")
        door.forgets = False
        await engine.load("finance@1", folder)
        assert await answer(engine, "finance@1", PROMPTS[0]) != expected
        await engine.unload("finance@1")
        await engine.load("finance@1", other)
        assert await answer(engine, "finance@1", PROMPTS[0]) == expected

    with_engine(door, use)


def test_an_adapter_that_does_not_answer_is_not_loaded(door: StrictDoor, folder: Path) -> None:
    async def use(engine: OpenAIEngine) -> None:
        door.answers_with_adapters = False
        with pytest.raises(EngineError, match="does not answer with the adapter 'finance@1-"):
            await engine.load("finance@1", folder)
        assert loaded(door) == set() and not engine.status().adapters
        door.answers_with_adapters = True
        await engine.load("finance@1", folder)
        assert await answer(engine, "finance@1", PROMPTS[0])

    with_engine(door, use)


CITY = {"type": "object", "properties": {"city": {"enum": ["Porto", "Lisbon"]}}, "required": ["city"]}
FUNCTION = {
    "name": "weather",
    "description": "The weather.",
    "parameters": CITY | {"additionalProperties": False},
    "strict": True,  # else vLLM 0.32 makes the model call, with any arguments
}
TOOLS = ({"type": "function", "function": FUNCTION},)
TURNS = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it sunny in Porto?"})
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Pórto"}'}}
CALLED = (
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
)
BY_NAME = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def tokenization(server: Server, tmp_path: Path) -> Tokenization:
    """The gateway's reading of the same base model, with the template that vLLM has."""
    if not isinstance(server, Vllm):
        pytest.skip("only vLLM has tools")
    base = shutil.copytree(server.base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    (base / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    record_base(base)
    return Tokenization(base)


@pytest.mark.parametrize("choice", [BY_NAME, "required"])
def test_vllm_calls_the_tool_that_it_must(
    server: Server, tokenization: Tokenization, folders: dict[str, Path], choice: str | dict
) -> None:
    """Its prompt has as many tokens as the gateway counts, earlier calls and results included."""

    async def use(engine: OpenAIEngine) -> None:
        await engine.load(NAMES[0], folders[NAMES[0]])
        for adapter in (None, NAMES[0]):
            for turns in (TURNS, TURNS + CALLED):
                chat = ToolChat(turns, TOOLS, choice)
                prompt = tokenization.tool_chat(chat)
                asked = Generation("test", prompt, adapter, Sampling(100, logprobs=1), "finance", chat=chat)
                chunks = [chunk async for chunk in engine.generate(asked)]
                parts = [part for chunk in chunks for part in chunk.tool_calls]
                assert {part.index for part in parts} == {0}
                assert parts[0].name == "weather" and parts[0].id
                assert json.loads("".join(part.arguments for part in parts))["city"] in ("Porto", "Lisbon")
                assert chunks[-1].finish in ("stop", "tool_calls")
                assert chunks[-1].prompt_tokens == len(prompt)
                assert 0 < sum(chunk.tokens for chunk in chunks) <= 100

    with_engine(server, use)


def test_vllm_answers_what_a_tool_returned(server: Server, tokenization: Tokenization) -> None:
    async def use(engine: OpenAIEngine) -> None:
        for tools in ((), TOOLS):
            chat = ToolChat(TURNS + CALLED, tools, "none" if tools else "auto")
            prompt = tokenization.tool_chat(chat)
            asked = Generation("test", prompt, None, Sampling(TOKENS), chat=chat)
            chunks = [chunk async for chunk in engine.generate(asked)]
            assert "".join(chunk.text for chunk in chunks)
            assert not any(chunk.tool_calls for chunk in chunks)
            assert chunks[-1].prompt_tokens == len(prompt)

    with_engine(server, use)

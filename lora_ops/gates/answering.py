"""The answers of one system to a suite's cases, by the engine that serves."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from lora_ops.adapter_files import adapter_digests
from lora_ops.engines.protocol import Engine, EngineError, Generation, Sampling
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.loading import load_tokenizer
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.base_model import read_base_model
from lora_ops.records.policy import PolicyPromptsRecord
from lora_ops.records.suite import AnswersRecord, AskedCase, CaseAnswer, CasesRecord

ADAPTER = "adapter"
PREFILL_CHUNK = 256
MAX_BATCH = 50
TOP_P = 0.95


class Asked(NamedTuple):
    """A prompt and how it is answered; `key` is what decides on the answer besides the model."""

    id: str
    key: str
    prompt: str
    max_tokens: int
    temperature: float = 0.0
    repeats: int = 1
    seed: int = 0


def answer_cases(
    cases: CasesRecord, base: Path, adapter: Path | None, asked: Sequence[AskedCase] | None = None
) -> AnswersRecord:
    """Return the answers of the adapter in folder `adapter`, or of the base model alone.

    Args:
        cases: the suite.
        base: the folder of the base model.
        adapter: a folder with the adapter's files; None: the base model.
        asked: the cases to answer; default: all.

    Raises:
        LoraOpsError: the suite was written for another base model, the engine can't load one of them or can't
            answer, or the adapter changed meanwhile.
    """
    chosen = [
        Asked(
            one.case.id, one.key, one.prompt, one.max_tokens, one.case.temperature, one.case.repeats, one.seed
        )
        for one in (cases.cases if asked is None else asked)
    ]
    return _answers(cases, base, adapter, chosen)


def answer_policy(prompts: PolicyPromptsRecord, base: Path, adapter: Path) -> AnswersRecord:
    """Return the answers of the adapter in folder `adapter` to its policy suite.

    Raises:
        LoraOpsError: as `answer_cases`.
    """
    chosen = [Asked(one.id, one.key, one.prompt, one.max_tokens) for one in prompts.prompts]
    return _answers(prompts, base, adapter, chosen)


def _answers(
    suite: CasesRecord | PolicyPromptsRecord, base: Path, adapter: Path | None, todo: Sequence[Asked]
) -> AnswersRecord:
    record = read_base_model(base)
    if not record.matches(suite.base_model_sha256, suite.base_files_sha256):
        raise LoraOpsError(
            f"The cases of '{suite.tenant}' were written for another base model than {base}: run "
            f"`dvc repro suite@{suite.tenant}`."
        )
    digests = adapter_digests(adapter) if adapter else {}
    # A notebook's own event loop runs already: the engine gets one in a thread of its own.
    with start_blocking_portal() as portal:
        answers = portal.call(_answer, base, adapter, digests, todo) if todo else []
    if adapter and adapter_digests(adapter) != digests:
        raise LoraOpsError(f"The adapter in {adapter} was changed while it answered: run this again.")
    return AnswersRecord(
        tenant=suite.tenant,
        base_model_sha256=record.sha256,
        base_files_sha256=record.files_sha256,
        adapter_sha256=digests[ADAPTER_FILES[0]] if adapter else None,
        adapter_config_sha256=digests[ADAPTER_FILES[1]] if adapter else None,
        cases_sha256=sha256_text(suite.to_json()),
        answers=tuple(answers),
    )


async def _answer(
    base: Path, adapter: Path | None, digests: Mapping[str, str], asked: Sequence[Asked]
) -> list[CaseAnswer]:
    from lora_ops.engines.torch_engine import TorchEngine  # torch and peft, which a replay does without

    tokenizer = load_tokenizer(base)
    engine = TorchEngine(base, max_batch=MAX_BATCH, prefill_chunk=PREFILL_CHUNK)
    tokens = tokenizer([one.prompt for one in asked], add_special_tokens=False)["input_ids"]
    try:
        await engine.start()
        if adapter:
            await engine.load(ADAPTER, adapter, digests)
        name = ADAPTER if adapter else None
        count = sum(one.repeats for one in asked)
        with tqdm(total=count, desc=name or "base", unit="answer", mininterval=5, file=sys.stdout) as progress:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_one_prompt(engine, one, tuple(ids), name, progress))
                    for one, ids in zip(asked, tokens, strict=True)
                ]
        return [task.result() for task in tasks]
    except* EngineError as errors:
        raise LoraOpsError(f"The engine that serves can't answer: {errors.exceptions[0]}") from errors
    finally:
        await engine.close()


async def _one_prompt(
    engine: Engine, asked: Asked, prompt: tuple[int, ...], adapter: str | None, progress: "tqdm[None]"
) -> CaseAnswer:
    sampling = Sampling(max_tokens=asked.max_tokens, temperature=asked.temperature)
    texts, cut = [], 0
    for number in range(asked.repeats):
        drawn = replace(sampling, seed=asked.seed + number, top_p=TOP_P) if sampling.temperature else sampling
        text, finish = "", ""
        generation = Generation(f"{asked.id}-{number}", prompt, adapter, drawn)
        async for chunk in engine.generate(generation):
            text, finish = text + chunk.text, chunk.finish or finish
        texts.append(text.strip())
        cut += finish == "length"
        progress.update()
    return CaseAnswer(key=asked.key, case=asked.id, texts=tuple(texts), cut=cut)

"""The answers of base model and adapter to the held-out rows: the slow part of an evaluation.

The engine that serves gives them, so that what is served is what was evaluated. transformers, with PEFT,
answers a sample of the rows again, and both must agree.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anyio.from_thread import start_blocking_portal

from lora_ops.adapter_files import adapter_digests
from lora_ops.engines.protocol import Engine, EngineError, one_of
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.answered import Answered
from lora_ops.evaluation.generate import Answers, generate, generate_with_engine
from lora_ops.evaluation.likelihood import choose_labels
from lora_ops.loading import load_base_model, load_tokenizer, pick_device
from lora_ops.records.evaluation import ADAPTER, ADAPTER_LABELS, BASE, BASE_FEW_SHOT, BASE_LABELS, Agreement
from lora_ops.records.example import Example
from lora_ops.settings.evaluate import EvaluateSettings

# Rows that are answered twice, for each system.
SAMPLE = 8
# Nearly equal logits may be ordered otherwise by other kernels, in bf16 above all. More than that is a fault.
LEAST_AGREEMENT = 0.75
# Prompt tokens of a step. Nobody waits for a token here, so it is more than the gateway's.
PREFILL_CHUNK = 256

# system -> its prompts
Questions = Mapping[str, Sequence[str]]
Found = dict[str, Answers]


def answer(
    base: Path,
    adapter: Path,
    rows: Sequence[Example],
    settings: EvaluateSettings,
    few_shot: Sequence[str] = (),
    labels: Sequence[str] = (),
    best: Sequence[str] = (),
) -> Answered:
    """Return the answers of the base model in folder `base` and of the adapter in folder `adapter`.

    The engine answers all rows and transformers the sample. Where the engine can't decode this base model in
    batches, transformers is quicker, and they change places. transformers alone tells how likely labels are.

    Args:
        few_shot: the prompt of each row with examples before it, which only the base model gets; none: no such
            system.
        labels: to which the engine holds the adapter in a system of its own; none: no such system.
        best: the base model's best prompt of each row, by which its answer is the likeliest of `labels`; none:
            no such system.

    Raises:
        LoraOpsError: the engine can't load base model or adapter, or its answers are not those of transformers.
    """
    digests = adapter_digests(adapter)
    prompts = [row.prompt for row in rows]
    asked: Questions = {BASE: prompts, BASE_FEW_SHOT: list(few_shot), ADAPTER: prompts}
    asked = {system: questions for system, questions in asked.items() if questions}
    chosen = sample_of(rows)
    sample = {system: [questions[place] for place in chosen] for system, questions in asked.items()}
    # A notebook's own event loop runs already: the engine gets one in a thread of its own.
    with start_blocking_portal() as portal:
        engine, engine_seconds, batches = portal.call(
            _ask_engine, base, adapter, digests, asked, sample, settings, labels
        )
    model, tokenizer = _load_transformers(base, adapter)
    peer, peer_seconds = _ask_transformers(model, tokenizer, sample if batches else asked, settings)
    # Nobody answers these again: only the engine can be held to labels, and only transformers weighs them.
    alone, alone_seconds = {}, {}
    if labels:
        alone[ADAPTER_LABELS] = engine.pop(ADAPTER_LABELS)
        alone_seconds[ADAPTER_LABELS] = engine_seconds.pop(ADAPTER_LABELS)
    if labels and best:
        start = time.perf_counter()
        alone[BASE_LABELS] = _choose_labels(model, tokenizer, best, labels, packs=batches)
        alone_seconds[BASE_LABELS] = round(time.perf_counter() - start, 2)
    if adapter_digests(adapter) != digests:
        raise LoraOpsError(f"The adapter in {adapter} was changed while it answered: run this again.")
    found, seconds, again = (engine, engine_seconds, peer) if batches else (peer, peer_seconds, engine)
    agreement = {}
    for system, answers in found.items():
        pairs = zip((answers.texts[place] for place in chosen), again[system].texts, strict=True)
        equal = sum(whole_characters(one) == whole_characters(other) for one, other in pairs)
        agreement[system] = Agreement(rows=len(chosen), equal=equal)
    _require_agreement(agreement)
    found, seconds = found | alone, seconds | alone_seconds
    frame = pd.DataFrame([row.model_dump(include={"id", "group", "text", "target"}) for row in rows])
    return Answered(
        frame.assign(**{system: answers.texts for system, answers in found.items()}),
        seconds,
        {system: answers.cut for system, answers in found.items()},
        "engine" if batches else "transformers",
        agreement,
        digests,
    )


def whole_characters(text: str) -> str:
    """Return a text without U+FFFD, by which transformers shows half a character; the engine leaves it out."""
    return text.replace("\ufffd", "").strip()


def sample_of(rows: Sequence[Example]) -> list[int]:
    """Return the places of `SAMPLE` rows, the shortest and the longest prompt among them."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].prompt))
    count = min(SAMPLE, len(rows))
    return sorted({order[round(step * (len(rows) - 1) / max(1, count - 1))] for step in range(count)})


async def _ask_engine(
    base: Path,
    adapter: Path,
    digests: Mapping[str, str],
    asked: Questions,
    sample: Questions,
    settings: EvaluateSettings,
    labels: Sequence[str],
) -> tuple[Found, dict[str, float], bool]:
    """Return the engine's answers, how long each system took, and whether it answered all: else the sample."""
    tokenizer = load_tokenizer(base)
    engine = TorchEngine(base, max_batch=settings.batch_size, prefill_chunk=PREFILL_CHUNK)
    found, seconds = {}, {}
    try:
        await engine.start()
        await engine.load(ADAPTER, adapter, digests)
        for system, prompts in (asked if engine.batches else sample).items():
            start = time.perf_counter()
            found[system] = await generate_with_engine(
                engine,
                tokenizer,
                prompts,
                adapter=ADAPTER if system == ADAPTER else None,
                max_new_tokens=settings.max_new_tokens,
                what=system,
            )
            seconds[system] = round(time.perf_counter() - start, 2)
        if labels:
            start = time.perf_counter()
            free = found[ADAPTER].whole if engine.batches else []
            found[ADAPTER_LABELS] = await _ask_for_labels(
                engine, tokenizer, asked[ADAPTER], free, settings, labels
            )
            seconds[ADAPTER_LABELS] = round(time.perf_counter() - start, 2)
        return found, seconds, engine.batches
    except* EngineError as errors:
        raise LoraOpsError(f"The engine that serves can't answer: {errors.exceptions[0]}") from errors
    finally:
        await engine.close()


async def _ask_for_labels(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[str],
    free: Sequence[str],
    settings: EvaluateSettings,
    labels: Sequence[str],
) -> Answers:
    """Return the adapter's answers where it may only answer with a label.

    A greedy answer that is a label stays what it is: the likeliest token of each step was allowed. So only the
    other rows are asked.

    Args:
        free: the adapter's greedy answers to all prompts, with their spaces; none where they are not known.
    """
    held = {place: text for place, text in enumerate(free) if text in labels}
    others = [place for place in range(len(prompts)) if place not in held]
    cut = 0
    if others:
        asked = await generate_with_engine(
            engine,
            tokenizer,
            [prompts[place] for place in others],
            adapter=ADAPTER,
            max_new_tokens=settings.max_new_tokens,
            structure=one_of(labels),
            what=ADAPTER_LABELS,
        )
        held |= dict(zip(others, asked.texts, strict=True))
        cut = asked.cut
    texts = [held[place] for place in range(len(prompts))]
    return Answers(texts, cut, texts)


def _load_transformers(base: Path, adapter: Path) -> tuple[Any, Any]:
    """Return the base model with the adapter, as PEFT has it, and the tokenizer."""
    from peft import PeftModel

    device, dtype = pick_device()
    # Cycles of references hold the engine's base model and KV cache, which would stay on a GPU with this copy.
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    model, tokenizer = load_base_model(base, device, dtype)
    return PeftModel.from_pretrained(model, adapter).eval(), tokenizer


def _choose_labels(
    model: Any, tokenizer: Any, prompts: Sequence[str], labels: Sequence[str], *, packs: bool
) -> Answers:
    """Return the base model's likeliest label for each prompt.

    Args:
        packs: what the engine decodes in batches also computes packed rows, since it knows no windows.
    """
    with model.disable_adapter():
        chosen = choose_labels(model, tokenizer, prompts, labels, packs=packs, what=BASE_LABELS)
    return Answers(chosen, 0, chosen)


def _ask_transformers(
    model: Any, tokenizer: Any, asked: Questions, settings: EvaluateSettings
) -> tuple[Found, dict[str, float]]:
    """Return the answers of transformers' `generate`, and how long each system took."""
    found, seconds = {}, {}
    for system, prompts in asked.items():
        start = time.perf_counter()
        with nullcontext() if system == ADAPTER else model.disable_adapter():
            found[system] = generate(
                model,
                tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                what=f"{system}, by transformers",
            )
        seconds[system] = round(time.perf_counter() - start, 2)
    return found, seconds


def _require_agreement(agreement: Mapping[str, Agreement]) -> None:
    for system, both in agreement.items():
        if both.equal < LEAST_AGREEMENT * both.rows:
            raise LoraOpsError(
                f"The engine that serves and transformers agree on {both.equal} of {both.rows} answers "
                f"({system}): what is measured would not hold for what is served. Report this base model."
            )

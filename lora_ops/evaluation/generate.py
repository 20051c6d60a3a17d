"""Greedy answers to many prompts: through the engine that serves, or by transformers."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lora_ops.engines.protocol import Engine, FinishReason, Generation, Sampling, Structure


class Answers(NamedTuple):
    """One answer to each prompt, in their order.

    Attributes:
        texts: without the spaces at their ends.
        cut: how many were cut at `max_new_tokens`.
        whole: with the spaces at their ends.
    """

    texts: list[str]
    cut: int
    whole: list[str]


async def generate_with_engine(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    adapter: str | None,
    max_new_tokens: int,
    structure: Structure | None = None,
    what: str = "",
) -> Answers:
    """Return one greedy answer to each prompt, from an engine that was started.

    The first prompt is answered alone. The others find what they share with it, such as a system prompt or
    few-shot examples, in the engine's KV cache.

    Args:
        adapter: the name that the engine knows; None: the base model.
        structure: the form that each answer must have; None: any.

    Raises:
        EngineError: the engine can't answer one of them.
    """
    tokens = [tuple(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    sampling = Sampling(max_tokens=max_new_tokens, structure=structure)
    with progress(len(prompts), what, "row") as shown:

        async def one(number: int) -> tuple[str, FinishReason | None]:
            text, finish = "", None
            generation = Generation(f"{what}-{number}", tokens[number], adapter, sampling)
            async for chunk in engine.generate(generation):
                text, finish = text + chunk.text, chunk.finish
            shown.update()
            return text, finish

        async with asyncio.TaskGroup() as group:
            first = group.create_task(one(0))
            await asyncio.wait([first])
            tasks = [first, *(group.create_task(one(number)) for number in range(1, len(prompts)))]
    answers = [task.result() for task in tasks]
    whole = [text for text, _ in answers]
    cut = sum(finish == "length" for _, finish in answers)
    return Answers([text.strip() for text in whole], cut, whole)


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int, what: str = ""
) -> Answers:
    """Return one greedy answer of transformers' `generate` to each prompt.

    Prompts of similar length share a batch, since a batch is as slow as its longest row.
    """
    ends = torch.tensor(end_tokens(model, tokenizer))
    cut = 0
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in progress(range(0, len(order), batch_size), what, "batch"):
        chosen = order[start : start + batch_size]
        inputs = tokenizer(
            [prompts[index] for index in chosen], padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(model.device)
        outputs = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new = outputs[:, inputs["input_ids"].shape[1] :]
        # An answer that ended by itself holds a token that ends it.
        cut += int((~torch.isin(new.cpu(), ends).any(dim=1)).sum())
        for index, text in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[index] = text
    return Answers([text.strip() for text in texts], cut, texts)


def progress(of: Any, what: str, unit: str) -> Any:
    """Return a progress bar on stdout: a page shows stderr in red, and progress is no fault."""
    given = {"total": of} if isinstance(of, int) else {"iterable": of}
    return tqdm(**given, desc=what, unit=unit, mininterval=5, file=sys.stdout)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens at which an answer of `model` ends."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [ends]

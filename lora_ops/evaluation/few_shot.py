"""The base model at its best: the labels listed and answered examples before each question.

A bare prompt measures how well the base model guesses the form of an answer. An adapter is worth its upkeep
only if it beats a prompt that shows that form.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.hashing import sha256_text
from lora_ops.loading import context_tokens, load_tokenizer
from lora_ops.prompts import render_prompt
from lora_ops.records.data import PromptRecord
from lora_ops.records.example import Example
from lora_ops.settings.evaluate import EvaluateSettings

# Labels and shots may take so many tokens: each row of a batch keeps keys and values of all of them in memory.
MOST_TOKENS = 1024


class BasePrompts(NamedTuple):
    """How the base model is asked at its best, for each row.

    Attributes:
        few_shot: labels and examples before each row; none where there is no example or no room for one.
        best: the same, or where there is none the labels alone: the likeliest label follows it.
        shown: how many examples there was room for.
    """

    few_shot: list[str]
    best: list[str]
    shown: int


def base_prompts(
    base: Path,
    rows: Sequence[Example],
    train: Sequence[Example],
    prompt: PromptRecord,
    settings: EvaluateSettings,
) -> BasePrompts:
    """Return the prompts of the base model in folder `base` for `rows`, with examples from the `train` rows."""
    shots = choose_shots(train, settings.few_shot, prompt.labels)
    tokenizer, limit = load_tokenizer(base), room(base, settings.max_new_tokens)
    few_shot, shown = few_shot_prompts(tokenizer, rows, shots, prompt, limit)
    best = few_shot or prompts_with_labels(tokenizer, rows, prompt, limit)
    return BasePrompts(few_shot, best, shown)


def choose_shots(train: Sequence[Example], count: int, labels: Sequence[str]) -> list[Example]:
    """Return `count` training rows, of as many labels as possible, chosen by the hash of their ids.

    The labels take turns, the most frequent one first. Written answers, which have no labels, take none: by
    their alphabet all examples would begin with an A.
    """
    shuffled = sorted(train, key=lambda row: sha256_text(row.id))
    if not labels:
        return shuffled[:count]
    by_target: dict[str, list[Example]] = {}
    for row in shuffled:
        by_target.setdefault(row.target, []).append(row)
    turns = sorted(by_target.values(), key=lambda rows: (-len(rows), rows[0].target))
    taken = [row for row in chain.from_iterable(zip_longest(*turns)) if row is not None]
    return taken[:count]


def few_shot_prompts(
    tokenizer: Any,
    rows: Sequence[Example],
    shots: Sequence[Example],
    prompt: PromptRecord,
    max_tokens: int | None,
) -> tuple[list[str], int]:
    """Return the prompt of each row with labels and shots before it, and how many shots there is room for.

    Shots that would make labels and shots longer than `MOST_TOKENS` are left out. There are no prompts where
    there are no shots or no room for one.

    Args:
        max_tokens: how long a prompt may be (`room`); None: any length.
    """
    system = system_with_labels(prompt)
    plain = _lengths(tokenizer, [row.prompt for row in rows])
    for count in range(len(shots), 0, -1):
        # The rarest label comes first: what stands right before the question weighs most.
        turns = [(shot.text, shot.target) for shot in reversed(shots[:count])]
        prompts = [render_prompt(tokenizer, row.text, system, turns) for row in rows]
        lengths = _lengths(tokenizer, prompts)
        added = max(length - before for length, before in zip(lengths, plain, strict=True))
        if added <= MOST_TOKENS and (max_tokens is None or max(lengths) <= max_tokens):
            return prompts, count
    return [], 0


def prompts_with_labels(
    tokenizer: Any, rows: Sequence[Example], prompt: PromptRecord, max_tokens: int | None
) -> list[str]:
    """Return the prompt of each row with the labels listed and no example; its own where one has no room.

    Args:
        max_tokens: how long a prompt may be (`room`); None: any length.
    """
    prompts = [render_prompt(tokenizer, row.text, system_with_labels(prompt)) for row in rows]
    if max_tokens is not None and max(_lengths(tokenizer, prompts)) > max_tokens:
        return [row.prompt for row in rows]
    return prompts


def _lengths(tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]


def room(base: Path, max_new_tokens: int) -> int | None:
    """Return how many tokens a prompt may have, so that its answer still fits into the base model's context."""
    context = context_tokens(base)
    return None if context is None else context - max_new_tokens


def system_with_labels(prompt: PromptRecord) -> str | None:
    """Return the system prompt with the labels, unless it names each of them itself."""
    system = prompt.system or ""
    if all(label.casefold() in system.casefold() for label in prompt.labels):
        return prompt.system
    mark = "; " if any("," in label for label in prompt.labels) else ", "
    return f"{system} Answer with one of: {mark.join(prompt.labels)}.".strip()

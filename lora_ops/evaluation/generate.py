"""Greedy answers of a model to many prompts."""

import copy
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

# A shorter beginning that all prompts share costs less than keeping it.
WORTH_KEEPING = 64


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int, what: str = ""
) -> tuple[list[str], int]:
    """Return one greedy answer to each prompt, in their order, and how many were cut at `max_new_tokens`.

    Prompts of similar length share a batch, since a batch is as slow as its longest row. A long beginning that
    all prompts share, such as few-shot examples, is read once.
    """
    ends = torch.tensor(_end_tokens(model, tokenizer))
    cut = 0
    tokens = [list(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    shared = _shared_beginning(tokens)
    kept = _read(model, tokens[0][:shared]) if shared else None
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    starts = range(0, len(order), batch_size)
    # On stdout: a page shows stderr in red, and progress is no fault.
    for start in tqdm(starts, desc=what, unit="batch", mininterval=5, file=sys.stdout):
        chosen = order[start : start + batch_size]
        inputs = _batch([tokens[index][shared:] for index in chosen], tokenizer.pad_token_id, model.device)
        if kept is not None:
            inputs = _after(tokens[0][:shared], kept, inputs)
        outputs = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new = outputs[:, inputs["input_ids"].shape[1] :]
        # An answer that ended by itself holds a token that ends it.
        cut += int((~torch.isin(new.cpu(), ends).any(dim=1)).sum())
        for index, answer in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[index] = answer.strip()
    return answers, cut


def _shared_beginning(tokens: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, where that is worth keeping, else 0.

    The last token of a prompt is never part of it: the model must read at least one to answer.
    """
    if len(tokens) < 2:
        return 0
    first, last = min(tokens), max(tokens)  # in the order of lists all others lie between these two
    longest = min(map(len, tokens)) - 1
    shared = next((place for place in range(longest) if first[place] != last[place]), longest)
    return shared if shared >= WORTH_KEEPING else 0


def _read(model: Any, tokens: Sequence[int]) -> Any:
    """Return the KV cache of a model that has read `tokens`."""
    return model(torch.tensor([tokens], device=model.device), use_cache=True).past_key_values


def _batch(rows: Sequence[Sequence[int]], padding: int, device: Any) -> dict[str, Any]:
    """Return the inputs of a batch, padded on the left so that every row ends where its answer begins."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), padding)  # (B, T)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = torch.tensor(row)
        mask[place, longest - len(row) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _after(shared: Sequence[int], kept: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of a batch whose rows go on after `shared`, with its KV cache for each row.

    The padding comes between the two. The attention mask hides it, and positions are counted by the mask.
    """
    rows = len(inputs["input_ids"])
    beginning = torch.tensor(shared, device=inputs["input_ids"].device).expand(rows, -1)  # (B, shared)
    cache = copy.deepcopy(kept)  # `generate` appends to it
    cache.batch_repeat_interleave(rows)
    return {
        "input_ids": torch.cat([beginning, inputs["input_ids"]], dim=1),  # (B, shared + padding + rest)
        "attention_mask": torch.cat([torch.ones_like(beginning), inputs["attention_mask"]], dim=1),
        "past_key_values": cache,
    }


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens at which `model.generate` stops."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [ends]

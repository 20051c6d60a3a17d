"""Greedy answers of a model to many prompts."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int, what: str = ""
) -> tuple[list[str], int]:
    """Return one greedy answer to each prompt, in their order, and how many were cut at `max_new_tokens`.

    Prompts of similar length share a batch, since a batch is as slow as its longest row.
    """
    ends = torch.tensor(_end_tokens(model, tokenizer))
    cut = 0
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    starts = range(0, len(order), batch_size)
    # On stdout: a page shows stderr in red, and progress is no fault.
    for start in tqdm(starts, desc=what, unit="batch", mininterval=5, file=sys.stdout):
        chosen = order[start : start + batch_size]
        inputs = tokenizer(
            [prompts[index] for index in chosen], return_tensors="pt", padding=True, add_special_tokens=False
        ).to(model.device)
        outputs = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new = outputs[:, inputs["input_ids"].shape[1] :]
        # An answer that ended by itself holds a token that ends it.
        cut += int((~torch.isin(new.cpu(), ends).any(dim=1)).sum())
        for index, answer in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[index] = answer.strip()
    return answers, cut


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens at which `model.generate` stops."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [ends]

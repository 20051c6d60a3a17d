"""Greedy answers: what was cut at the limit is counted."""

from pathlib import Path

import pytest

from lora_ops.evaluation import generate as generating
from lora_ops.evaluation.generate import WORTH_KEEPING, generate
from lora_ops.loading import load_base_model


def test_generate_answers_alike_after_a_shared_beginning(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all prompts begin with is read once; rows of other lengths answer as they do alone."""
    model, tokenizer = load_base_model(tiny_base)
    beginning = "<|im_start|>system\nName the merchant category of each text, as shown.<|im_end|>\n" * 2
    prompts = [f"{beginning}<|im_start|>user\n{'Lodging at sea ' * n}{n}<|im_end|>\n" for n in range(1, 8)]
    limits = {"max_new_tokens": 6, "batch_size": 3}
    read = []
    honest = generating._read
    monkeypatch.setattr(generating, "_read", lambda *given: read.append(given[1]) or honest(*given))
    together = generate(model, tokenizer, prompts, **limits)
    assert len(read) == 1 and len(read[0]) >= WORTH_KEEPING
    alone = [generate(model, tokenizer, [prompt], **limits) for prompt in prompts]
    assert len(read) == 1
    assert together == ([answers[0] for answers, _ in alone], sum(cut for _, cut in alone))
    assert len(set(together[0])) > 1


def test_generate_counts_the_answers_cut_at_the_limit(tiny_base: Path) -> None:
    """A model that ends every answer at once cuts none; one that never ends cuts all."""
    model, tokenizer = load_base_model(tiny_base)
    prompts = ["Name the merchant category.", "Airlines", "Lodging"]
    limits = {"max_new_tokens": 6, "batch_size": 2}
    first = model.generate(
        **tokenizer(prompts[0], return_tensors="pt", add_special_tokens=False),
        max_new_tokens=6,
        do_sample=False,
    )
    never = next(token for token in range(300, 400) if token not in first[0].tolist())
    model.generation_config.eos_token_id = never
    answers, cut = generate(model, tokenizer, prompts, **limits)
    assert (len(answers), cut) == (3, 3)
    model.generation_config.eos_token_id = list(range(400))
    assert generate(model, tokenizer, prompts, **limits)[1] == 0

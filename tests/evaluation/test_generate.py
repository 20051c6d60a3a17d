"""Greedy answers: what was cut at the limit is counted."""

from pathlib import Path

from lora_ops.evaluation.generate import generate
from lora_ops.loading import load_base_model


def test_generate_answers_in_a_batch_as_alone(tiny_base: Path) -> None:
    model, tokenizer = load_base_model(tiny_base)
    prompts = [f"{'Lodging at sea ' * n}{n}" for n in (5, 1, 3, 2, 4)]
    together = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=3)
    alone = [generate(model, tokenizer, [prompt], max_new_tokens=6, batch_size=1) for prompt in prompts]
    assert together.texts == [answers.texts[0] for answers in alone]
    assert together.cut == sum(answers.cut for answers in alone)
    assert len(set(together.texts)) > 1


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
    answers = generate(model, tokenizer, prompts, **limits)
    assert (len(answers.texts), answers.cut) == (3, 3)
    model.generation_config.eos_token_id = list(range(400))
    assert generate(model, tokenizer, prompts, **limits).cut == 0

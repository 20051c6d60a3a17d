"""A row as the base model's chat template writes it: what is read, and what should be answered."""

from typing import Any

from lora_ops.errors import LoraOpsError


def render_prompt(tokenizer: Any, text: str, system: str | None) -> str:
    """The chat up to the point where the assistant's answer begins."""
    return str(
        tokenizer.apply_chat_template(_messages(text, system), tokenize=False, add_generation_prompt=True)
    )


def render_example(tokenizer: Any, text: str, target: str, system: str | None) -> tuple[str, str]:
    """Prompt and completion of one training row; the completion ends with the template's end-of-turn.

    Raises:
        LoraOpsError: the template does not put the answer right after the generation prompt, so that the
            prompt could not be masked out of the loss.
    """
    prompt = render_prompt(tokenizer, text, system)
    messages = [*_messages(text, system), {"role": "assistant", "content": target}]
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    if not whole.startswith(prompt):
        raise LoraOpsError(
            "The base model's chat template does not continue its generation prompt with the answer: "
            "use a base model whose template does."
        )
    return prompt, whole[len(prompt) :].rstrip("\n")


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]

"""A row as the base model's chat template writes it: what is read, and what should be answered."""

from collections.abc import Sequence
from typing import Any

from lora_ops.errors import LoraOpsError


def render_prompt(tokenizer: Any, text: str, system: str | None, shots: Sequence[tuple[str, str]] = ()) -> str:
    """Return the chat up to the point where the assistant's answer begins.

    Args:
        shots: texts and their answers, shown as earlier turns of the chat.
    """
    messages = _messages(text, system, shots)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


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


def find_control_token(tokens: Sequence[str], text: str) -> str | None:
    """Return the first of these control tokens that a text holds, or None.

    The tokenizer would read it as the control token itself: a text could end its turn and forge another one.
    """
    return next((token for token in tokens if token in text), None)


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return every token of the tokenizer that no text may hold, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added.union(tokenizer.all_special_tokens), key=lambda token: (-len(token), token)))


def _messages(text: str, system: str | None, shots: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": system}] if system else []
    for question, answer in shots:
        opening += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*opening, {"role": "user", "content": text}]

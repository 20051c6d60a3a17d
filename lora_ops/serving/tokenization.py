"""Chats and texts as token ids of the base model."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_tokenizer


class BadPrompt(LoraOpsError):
    """A prompt that can't be put before the model."""


class Tokenization:
    """The tokenizer and chat template of the base model in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._backend = self._tokenizer.backend_tokenizer
        self._vocabulary = len(self._tokenizer)
        probe = self._render([("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u")])
        # Whoever writes one of these into a message could write a whole turn of somebody else's.
        self._turn_tokens = [token for token in self._tokenizer.all_special_tokens if token in probe]

    def chat(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Token ids of (role, text) turns, up to where the assistant's answer begins.

        Raises:
            BadPrompt: the chat template refuses the turns, or a text holds a token that ends one.
        """
        for _, text in messages:
            forged = next((token for token in self._turn_tokens if token in text), None)
            if forged:
                raise BadPrompt(f"A message may not hold {forged}, which begins or ends a turn: remove it.")
        return self._encode(self._render(messages), special=False)

    def text(self, text: str) -> tuple[int, ...]:
        """Token ids of a raw text."""
        return self._encode(text, special=True)

    def check(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Token ids that a client sent.

        Raises:
            BadPrompt: one is not in the vocabulary.
        """
        if max(tokens) >= self._vocabulary:
            raise BadPrompt(f"Token {max(tokens)} does not exist: the vocabulary has {self._vocabulary}.")
        return tuple(tokens)

    def _render(self, messages: Sequence[tuple[str, str]]) -> str:
        turns = [{"role": role, "content": text} for role, text in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise BadPrompt(f"The base model's chat template refuses these messages: {error}.") from error

    def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=special).ids)

"""Tokens to text while they come: never half a character, never a part of a stop text."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

# How much of the prompt's end the decoder sees: it knows then that the answer is no text's beginning.
CONTEXT = 8


class TextStream:
    """The text of one answer; `stopped` is set once it ran into one of the stop texts."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decode = DecodeStream(ids=list(prompt[-CONTEXT:]), skip_special_tokens=True)
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.stopped = False

    def add(self, token: int, *, may_stop: bool = True) -> str:
        """Return what may be shown now that `token` came; text that may be a stop text's beginning waits.

        Args:
            may_stop: whether stop texts count yet; one that is whole before they do is a part of the answer.
        """
        self._held += self._step(token)
        if not may_stop:
            return self._show(len(self._held))
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._show(min(found))
        return self._show(len(self._held) - self._longest_beginning())

    def finish(self) -> str:
        """What still waited, now that no token will come; bytes that are no whole character are dropped."""
        return "" if self.stopped else self._show(len(self._held))

    def _step(self, token: int) -> str:
        try:
            return self._decode.step(self._tokenizer, token) or ""
        except Exception as error:  # the library has no class of its own for it
            if "Invalid prefix" not in str(error):
                raise
            # Bytes that are no character, before one that is (huggingface/tokenizers): they are dropped.
            self._decode = DecodeStream(skip_special_tokens=True)
            return self._decode.step(self._tokenizer, token) or ""

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _longest_beginning(self) -> int:
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0

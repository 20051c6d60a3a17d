"""Answers that must have a form: before each token, those that would break the form are left out.

llguidance does it (https://github.com/guidance-ai/llguidance): an Earley parser over a trie of the vocabulary.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy
import torch

from lora_ops.engines.protocol import Structure, Unsupported

# What one token of one answer may cost. Everybody's step waits for it, so this is far below llguidance's own.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms, once
    "step_lexer_fuel": 50_000,  # about 4 ms
    "step_max_items": 20_000,  # about 1 ms
    "max_lexer_states": 20_000,  # about 40 MB
    "max_grammar_size": 100_000,
}
# Between the parts of JSON: a space or an indented line. A small model else writes blanks until its limit.
WHITESPACE: Any = {"whitespace_pattern": r"( |\n {0,40})"}
# Compiled forms that are kept: a client asks for the same one again and again.
KEPT = 64


class Matcher:
    """One answer's place in its form."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def forbidden(self) -> torch.Tensor:
        """Return which tokens may not come next: (vocabulary,), of bool, on the CPU.

        Raises:
            Unsupported: the form needs more work for one token than one answer may cost.
        """
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        self._require_sound()
        allowed = numpy.unpackbits(bits, count=self._vocabulary, bitorder="little")
        return torch.from_numpy(allowed == 0)

    def take(self, token: int) -> None:
        """Go on by the token that came.

        Raises:
            Unsupported: as `forbidden`.
        """
        self._matcher.consume_token(token)
        self._require_sound()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise Unsupported(f"The answer's form can't be followed: {_first_line(self._matcher.get_error())}")


class Structures:
    """The forms of one tokenizer; every method is called from one thread.

    Args:
        tokenizer: of the tokenizers library.
        vocabulary: how many tokens the model has.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Iterable[int]) -> None:
        self._written, self._vocabulary, self._ends = tokenizer.to_str(), vocabulary, sorted(ends)
        self._compiled: OrderedDict[Structure, Any] = OrderedDict()

    def matcher(self, structure: Structure) -> Matcher:
        """Return the beginning of a form.

        Raises:
            Unsupported: it can't be read, or is too large.
        """
        from llguidance import LLMatcher, LLParserLimits

        if structure not in self._compiled:
            try:
                grammar = _grammar(structure)
            except ValueError as error:
                raise Unsupported(f"The answer's form can't be read: {error}") from error
            made = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
            if made.is_error():
                raise Unsupported(f"The answer's form can't be read: {_first_line(made.get_error())}")
            self._compiled[structure] = made
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(structure)
        return Matcher(self._compiled[structure].deep_copy(), self._vocabulary)

    @cached_property
    def _tokenizer(self) -> Any:
        from llguidance import LLTokenizer  # takes about a second, which most gateways never need

        return LLTokenizer(self._written, n_vocab=self._vocabulary, eos_token=self._ends)


def _grammar(structure: Structure) -> str:
    from llguidance import LLMatcher

    match structure.kind:
        case "regex":
            return str(LLMatcher.grammar_from_regex(structure.text))
        case "grammar":
            return str(LLMatcher.grammar_from_lark(structure.text))
        case "json":
            return str(LLMatcher.grammar_from_json_schema(structure.text, overrides=WHITESPACE))
        case "choice":
            choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(structure.text))
            return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(choices)}"))


def _first_line(text: str) -> str:
    """Return what an error says, without the parser's state that llguidance adds."""
    return text.strip().partition("\n")[0][:300]

"""Answers that must have a form: before each token, those that would break the form are left out.

llguidance does it (https://github.com/guidance-ai/llguidance): an Earley parser over a trie of the vocabulary.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import cached_property
from typing import Any, TypeVar

import numpy
import torch

from lora_ops.engines.protocol import Structure, Unsupported
from lora_ops.engines.tenant_threads import TenantThreads
from lora_ops.engines.torch_engine.divisors import require_few_states, schemas_of_grammar

logger = logging.getLogger(__name__)
T = TypeVar("T")

# What one token of one answer may cost, far below llguidance's own limits. A regex can still take two seconds
# and 200 MB for one token before it reaches them: "((a{1000}){1000}){1000}".
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
# What llguidance says in its own words.
REASONS = {"NoExtensionBias": "no token can come next"}


class Matcher:
    """One answer's place in its form.

    Threads look for the tokens that may come next while the model computes. Most forms take less than a
    millisecond for it. While they look, nobody else may use llguidance's matcher.

    Attributes:
        complete: whether nothing can follow.
    """

    def __init__(self, matcher: Any, vocabulary: int, threads: TenantThreads, tenant: str | None) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._threads, self._tenant = threads, tenant
        self.complete = False
        self._found = self._look()

    @property
    def ready(self) -> bool:
        """Whether `forbidden` answers at once."""
        return self._found.done()

    def forbidden(self) -> torch.Tensor:
        """Return which tokens may not come next: (vocabulary,), of bool, on the CPU.

        Raises:
            Unsupported: the form needs more work for one token than one answer may cost.
        """
        return self._found.result()

    def take(self, token: int) -> None:
        """Go on by the token that came.

        Raises:
            Unsupported: as `forbidden`.
        """
        self._soundly(lambda: self._matcher.consume_token(token))
        self.complete = bool(self._matcher.is_stopped())
        if not self.complete:
            self._found = self._look()

    def close(self) -> None:
        """Look for no more tokens."""
        self._found.cancel()

    def _look(self) -> "Future[torch.Tensor]":
        return self._threads.submit(self._tenant, self._forbidden)

    def _forbidden(self) -> torch.Tensor:
        bits = numpy.frombuffer(self._soundly(self._matcher.compute_bitmask), dtype=numpy.uint8)
        allowed = numpy.unpackbits(bits, count=self._vocabulary, bitorder="little")
        return torch.from_numpy(allowed == 0)

    def _soundly(self, call: Callable[[], T]) -> T:
        """Return what a call of llguidance returns.

        Raises:
            Unsupported: it failed, which is this answer's fault alone.
        """
        try:
            made = call()
        except BaseException as error:  # what Rust panics with is no Exception
            logger.exception("llguidance failed.")
            raise Unsupported("The answer's form can't be followed.") from error
        if self._matcher.is_error():
            said = _first_line(self._matcher.get_error())
            raise Unsupported(f"The answer's form can't be followed: {REASONS.get(said, said)}")
        return made

    @staticmethod
    def wait(matchers: Iterable["Matcher"], seconds: float, *, first: bool = False) -> None:
        """Wait until all of them are ready, or only the first one, but no longer than this."""
        how = {"return_when": FIRST_COMPLETED} if first else {}
        wait([matcher._found for matcher in matchers], seconds, **how)


class Structures:
    """The forms of one tokenizer; every method is called from one thread.

    Args:
        tokenizer: of the tokenizers library.
        vocabulary: how many tokens the model has.
        ends: tokens that end an answer.
        threads: that look for the tokens that may come next.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Iterable[int], threads: TenantThreads) -> None:
        self._written, self._vocabulary, self._ends = tokenizer.to_str(), vocabulary, sorted(ends)
        self._compiled: OrderedDict[Structure, Any] = OrderedDict()
        self._threads = threads

    def matcher(self, structure: Structure, tenant: str | None = None) -> Matcher:
        """Return the beginning of a form.

        Args:
            tenant: whose answer has it.

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
        return Matcher(self._compiled[structure].deep_copy(), self._vocabulary, self._threads, tenant)

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
            require_few_states(schemas_of_grammar(structure.text))
            return str(LLMatcher.grammar_from_lark(structure.text))
        case "json":
            require_few_states([structure.text])
            return str(LLMatcher.grammar_from_json_schema(structure.text, overrides=WHITESPACE))
        case "choice":
            choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(structure.text))
            choices = (choice.replace("\x7f", "\\u007f") for choice in choices)  # Lark reads no raw DEL
            return str(LLMatcher.grammar_from_lark(f"start: {' | '.join(choices)}"))


def _first_line(text: str) -> str:
    """Return what an error says, without the parser's state that llguidance adds."""
    return text.strip().partition("\n")[0][:300]

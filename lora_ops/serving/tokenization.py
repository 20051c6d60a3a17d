"""Chats and texts as token ids of the base model."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders

from lora_ops.engines.protocol import ToolChat
from lora_ops.engines.tenant_threads import TenantThreads
from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_tokenizer
from lora_ops.prompts import ControlTokens, render_chat, render_tool_chat
from lora_ops.serving.fair_queue import Overloaded
from lora_ops.serving.request_fields import bounded, texts_in
from lora_ops.small_files import parse_json

# Characters that are tokenized on the event loop, in about 1 ms. Longer texts go to a thread.
SHORT_TEXT = 2_000
# Characters that a chat template writes around a message, about: 1,000 empty messages are no short text.
TURN = 30
THREADS = 2
PROBE = "lora_ops_probe"  # the name of a tool that a chat template should show
# What a chat template raises: by its own words, or where it finds other types than it expects.
TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)

T = TypeVar("T")


class BadPrompt(LoraOpsError):
    """A prompt that can't be put before the model."""


class Tokenization:
    """The tokenizer and chat template of the base model in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._backend = self._tokenizer.backend_tokenizer
        self._vocabulary = len(self._tokenizer)
        self._longest = _longest_token(self._backend)
        self._control_tokens = ControlTokens(self._tokenizer)
        self._never_in_answers = ControlTokens(self._tokenizer, in_answers=True)
        self._shown: dict[str, bool] = {}

    def chat(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Token ids of (role, text) turns, up to where the assistant's answer begins.

        Raises:
            BadPrompt: the chat template refuses the turns, or a text holds a control token.
        """
        # Some templates write one message right behind another.
        whole = "".join(text for _, text in messages)
        # An earlier answer comes back with what the model wrote, such as its thoughts between two tokens.
        answers = [text for role, text in messages if role == "assistant"]
        forged = self._never_in_answers.spelled(whole) or self._control_tokens.spelled(whole, answers=answers)
        if forged:
            raise BadPrompt(f"A message may not hold {forged}, which is a control token: remove it.")
        return self._read(self._render(lambda: render_chat(self._tokenizer, messages)))

    def tool_chat(self, chat: ToolChat) -> tuple[int, ...]:
        """Token ids of a chat with tools, up to where the assistant's answer begins.

        The engine behind puts the same chat into the model's form as text. There each control token is read as
        such wherever it stands, so that none may be in any text, name or schema.

        Raises:
            BadPrompt: a text holds a control token, a call's arguments are no JSON object, or the chat template
                refuses the chat or leaves out a part of it.
        """
        messages = [_with_arguments(one) for one in chat.messages]
        # Some templates write one message right behind another. Arguments may hide a token in JSON's escapes.
        contents = "".join(one["content"] for one in messages)
        texts = [contents, *texts_in(chat.messages), *texts_in(messages), *texts_in(chat.tools)]
        if forged := self._control_tokens.spelled("\n".join(texts)):
            raise BadPrompt(f"A chat with tools may not hold {forged}, which is a control token: remove it.")
        if chat.tools and chat.choice == "auto" and not self._shows("tools"):
            raise BadPrompt(
                "The base model's chat template shows no tools to the model: ask for a call with tool_choice, "
                "or leave tools out."
            )
        if any("tool_calls" in one for one in messages) and not self._shows("tool_calls"):
            raise BadPrompt(
                "The base model's chat template shows no earlier calls to the model: leave tool_calls out."
            )
        written = self._render(lambda: render_tool_chat(self._tokenizer, messages, chat.tools))
        return self._read(written)

    def _read(self, whole: str) -> tuple[int, ...]:
        """Return the token ids of a chat that spells no more control tokens than its template wrote."""
        tokens = self._encode(whole, special=False)
        if forged := self._control_tokens.hidden(whole, tokens):
            raise BadPrompt(
                f"A message holds what the tokenizer reads as {forged}, which is a control token: remove it."
            )
        return tokens

    def _shows(self, what: Literal["tools", "tool_calls"]) -> bool:
        """Whether the chat template writes what a chat has of tools."""
        if what not in self._shown:
            turns: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
            if what == "tool_calls":
                call = {"id": "call00001", "type": "function", "function": {"name": PROBE, "arguments": {}}}
                turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
                turns.append({"role": "tool", "content": "x", "tool_call_id": "call00001", "name": "x"})
            schema = {"type": "object", "properties": {}}
            function = {"name": PROBE, "description": "x", "parameters": schema}
            tools = [{"type": "function", "function": function}] if what == "tools" else []
            try:
                written = self._render(lambda: render_tool_chat(self._tokenizer, turns, tools))
            except BadPrompt:
                return True  # whether it takes the chat itself is seen there
            self._shown[what] = PROBE in written
        return self._shown[what]

    def text(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Token ids of a raw text; an empty one is the token that begins a text, or else the one that ends it.

        Args:
            special: the tokenizer adds its special tokens; without them an empty text has no token.

        Raises:
            BadPrompt: the text is empty, and the base model has neither of these tokens.
        """
        tokens = self._encode(text, special=special)
        return tokens if tokens or not special else self._nothing()

    def check(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Token ids that a client sent.

        Raises:
            BadPrompt: one is not in the vocabulary.
        """
        if tokens and max(tokens) >= self._vocabulary:
            raise BadPrompt(f"Token {max(tokens)} does not exist: the vocabulary has {self._vocabulary}.")
        return tuple(tokens)

    def as_text(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids that a client sent."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=False))

    def names(self, tokens: Sequence[int]) -> list[str]:
        """Return the names of tokens in the vocabulary, whose bytes are written as the tokenizer does."""
        return [str(self._backend.id_to_token(token)) for token in tokens]

    def least_tokens(self, characters: int) -> int:
        """Return how many tokens a text of so many characters has at least, without reading it."""
        return -(-characters // self._longest) if self._longest else 0

    def _nothing(self) -> tuple[int, ...]:
        first = self._tokenizer.bos_token_id
        token = self._tokenizer.eos_token_id if first is None else first
        if token is None:
            raise BadPrompt("The prompt is empty, and the base model has no token that begins a text.")
        return (token,)

    def _render(self, render: Callable[[], str]) -> str:
        try:
            return render()
        except TEMPLATE_FAULTS as error:
            raise BadPrompt(f"The base model's chat template refuses these messages: {error}.") from error

    def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        # Not `encode`: that keeps the GIL for its whole run, and with it the event loop and the engine.
        return tuple(self._backend.encode_batch_fast([text], add_special_tokens=special)[0].ids)


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as chat templates take it: the arguments of its calls as objects.

    Raises:
        BadPrompt: they are no JSON object.
    """
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = bounded(parse_json(function["arguments"] or "{}"))
    except ValueError as error:
        raise BadPrompt(f"The arguments of the call '{call['id']}' can't be read: {error}.") from error
    if not isinstance(arguments, dict):
        raise BadPrompt(f"The arguments of the call '{call['id']}' are no JSON object.")
    return {**call, "function": {**function, "arguments": arguments}}


class TokenizingThreads:
    """Threads that tokenize long texts and give way to the engine; one text of each tenant at a time.

    A tenant that sends long texts waits for itself, and takes no thread from others for longer than one text.

    Args:
        most_waiting: texts of one tenant that may wait for its turn.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._open: Counter[str] = Counter()  # texts that wait or are being read
        # tokenizers' own threads would not give way. It reads this at each call.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._threads = TenantThreads(THREADS, "tokenize")

    async def run(self, tenant: str, characters: int, encode: Callable[[], T]) -> T:
        """Return what `encode` returns: at once for a short text, else from a thread in the tenant's turn.

        Raises:
            Overloaded: too many of the tenant's texts wait already.
            EngineError: the gateway stops.
        """
        if characters <= SHORT_TEXT:
            return encode()
        # One of them is being read, the others wait.
        if self._open[tenant] > self._most_waiting:
            raise Overloaded(
                f"The gateway is busy: {self._most_waiting} long prompts of '{tenant}' wait to be read."
            )
        loop, work = asyncio.get_running_loop(), self._threads.submit(tenant, encode)
        self._open[tenant] += 1

        def done(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody counts any more
                loop.call_soon_threadsafe(self._left, tenant)

        # Not where the client goes away: a text that is being read is open until it is read.
        work.add_done_callback(done)
        return await asyncio.wrap_future(work)

    def _left(self, tenant: str) -> None:
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]

    def close(self) -> None:
        """Let what runs finish, and begin nothing more."""
        self._threads.close()


def _longest_token(backend: Tokenizer) -> int | None:
    """Return how many bytes of text one token stands for at most, or None where that can't be told."""
    if backend.normalizer is not None or not isinstance(backend.decoder, decoders.ByteLevel):
        return None  # characters may get lost on the way to tokens
    return max(map(len, backend.get_vocab()))  # each character of a name stands for one byte

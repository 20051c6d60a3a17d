"""A row or a chat as the base model's chat template writes it: what is read, and what should be answered."""

import os.path
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lora_ops.errors import LoraOpsError


def render_chat(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    """Return (role, text) turns up to the point where the assistant's answer begins.

    Raises:
        TemplateError: jinja's, where the chat template refuses these turns.
    """
    return _written(tokenizer, turns, answer_begins=True)


def render_tool_chat(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> str:
    """Return a chat with tools, in OpenAI's form with arguments as objects, up to where the answer begins.

    Raises:
        TemplateError: jinja's, where the chat template refuses it.
    """
    written = tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=True
    )
    return str(written)


def render_prompt(tokenizer: Any, text: str, system: str | None, shots: Sequence[tuple[str, str]] = ()) -> str:
    """Return the chat up to the point where the assistant's answer begins.

    Args:
        shots: texts and their answers, shown as earlier turns of the chat.
    """
    return render_chat(tokenizer, _turns(text, system, shots))


def render_example(tokenizer: Any, text: str, target: str, system: str | None) -> tuple[str, str]:
    """Prompt and completion of one training row; the completion ends with the template's end-of-turn.

    Raises:
        LoraOpsError: the template does not put the answer right after the generation prompt, so that the
            prompt could not be masked out of the loss.
    """
    prompt = render_prompt(tokenizer, text, system)
    whole = _written(tokenizer, [*_turns(text, system), ("assistant", target)], answer_begins=False)
    if not whole.startswith(prompt):
        raise LoraOpsError(
            "The base model's chat template does not continue its generation prompt with the answer: "
            "use a base model whose template does."
        )
    return prompt, whole[len(prompt) :].rstrip("\n")


# A name between two signs, such as `<tool_call>`, `[INST]` or `<|fim_middle|>`: no word, and no white space.
MARKER = re.compile(r"\W.*\w.*\W", re.DOTALL)
# Ordinary texts have these, and some tokenizers, such as Gemma's, have tokens for them.
HTML = re.compile(
    "</?(a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|img|li|ol|p|pre|s|span|strong|sub|sup|table|tbody|td"
    "|tfoot|th|thead|tr|u|ul)/?>"
)


class ControlTokens:
    """The tokens of a tokenizer that no text may hold: with one, a text could end its turn and forge another.

    Besides the special tokens these are the added ones that a tokenizer finds before it splits a text, and
    that are no ordinary text: chat templates write calls of tools with them (`<tool_call>` of Qwen's). Words,
    runs of white space and HTML are ordinary, unless the chat template writes that HTML.

    A tokenizer finds them in what its normalizer makes of a text, where full-width letters may be plain ones.
    So a text is looked at before it is encoded (`spelled`), and its ids are, too (`hidden`).

    Args:
        tokenizer: transformers'.
        in_answers: the tokens that no answer may hold, which are the special ones. A model writes the others
            itself, and none of them ends its turn.
    """

    def __init__(self, tokenizer: Any, *, in_answers: bool = False) -> None:
        template = str(tokenizer.chat_template or "")
        found = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (not in_answers and _controls(token.content, template))
        }
        self.names = tuple(
            sorted(found.union(tokenizer.all_special_tokens), key=lambda name: (-len(name), name))
        )
        self._pattern = re.compile(_longest_of(self.names) if self.names else "(?!)")
        named = {int(tokenizer.convert_tokens_to_ids(name)): name for name in self.names}
        # What a tokenizer doesn't know becomes this one, and it ends no turn.
        self._by_id = {token: name for token, name in named.items() if token != tokenizer.unk_token_id}

    def spelled(self, text: str, *, answers: Iterable[str] = ()) -> str | None:
        """Return the first control token that a text spells more often than `answers`, parts of it, or None."""
        if not self._pattern.search(text):
            return None
        beyond = Counter(self._pattern.findall(text))
        for one in answers:
            beyond -= Counter(self._pattern.findall(one))
        return next(iter(beyond), None)

    def hidden(self, text: str, ids: Iterable[int]) -> str | None:
        """Return a control token that the ids of a text hold more often than it spells it, or None."""
        held = Counter(self._by_id[token] for token in ids if token in self._by_id)
        if not held:
            return None
        return next(iter(held - Counter(self._pattern.findall(text))), None)


def _controls(token: str, template: str) -> bool:
    """Return whether an added token that is not special means something else than its text."""
    if HTML.fullmatch(token):
        return token in template
    return bool(MARKER.fullmatch(token.strip()))


def _longest_of(texts: Sequence[str]) -> str:
    """Return a regex that matches the longest of these texts where several begin, as a tokenizer takes them.

    Some tokenizers have thousands of added tokens. An alternation of all would try each of them at each "<".
    """
    common = os.path.commonprefix(list(texts))
    rests: dict[str, list[str]] = {}
    for text in texts:
        if rest := text[len(common) :]:
            rests.setdefault(rest[0], []).append(rest)
    if not rests:
        return re.escape(common)
    optional = "?" if common in texts else ""
    return f"{re.escape(common)}(?:{'|'.join(map(_longest_of, rests.values()))}){optional}"


def _written(tokenizer: Any, turns: Sequence[tuple[str, str]], *, answer_begins: bool) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_begins))


def _turns(text: str, system: str | None, shots: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    turns = [("system", system)] if system else []
    for question, answer in shots:
        turns += [("user", question), ("assistant", answer)]
    return [*turns, ("user", text)]

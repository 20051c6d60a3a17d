"""Which label an answer means: right for every set of labels that params.yaml accepts.

Forgiveness depends on the labels. "Lodging" and "lodging." may differ in case and marks where no two labels do;
among `C`, `C#` and `C++`, or `yes` and `Yes`, that same difference is the answer.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from lora_ops.settings.labels import NO_LABEL, plain

# What may stand around an answer in a sentence without belonging to it.
SENTENCE_MARKS = ".,;:!?…\"'`()[]{}“”‘’«»。，！？"

Form = Callable[[str], str]


def normalize(text: str) -> str:
    """Return what two equal free answers agree in: words without case, marks at the ends stripped.

    Where nothing but marks is left ("?", "...") they are the answer and stay.
    """
    folded = plain(text).casefold()
    return folded.strip(SENTENCE_MARKS + " ") or folded


def label_form(labels: Sequence[str]) -> Form:
    """Return the most forgiving normal form under which no two of `labels` are equal and none is empty."""
    return _label_form(tuple(labels))


def read_label(answer: str, labels: Sequence[str]) -> str:
    """Return the label that an answer is or names first, or `NO_LABEL`.

    A base model answers in sentences ("The sentiment is neutral."); counting only bare labels would make any
    adapter look good. Of labels that begin at the same place the longest is meant.
    """
    labels = tuple(labels)
    form = _label_form(labels)
    of_form = {form(label): label for label in labels}
    whole = of_form.get(form(answer))
    if whole is not None:
        return whole
    fold = _case_is_free(labels)
    text = plain(answer).casefold() if fold else plain(answer)
    found = []
    for label, pattern in zip(labels, _patterns(labels), strict=True):
        match = pattern.search(text)
        if match:
            found.append((match.start(), -len(label), label))
    return min(found)[2] if found else NO_LABEL


@lru_cache
def _label_form(labels: tuple[str, ...]) -> Form:
    for fold in (True, False):
        for marks in (string.punctuation + SENTENCE_MARKS + " ", SENTENCE_MARKS + " ", " "):
            forms = {_form(label, fold, marks) for label in labels}
            if "" not in forms and len(forms) == len(labels):
                return lambda text: _form(text, fold, marks)
    return plain  # params.yaml accepts no labels that this can't tell apart


def _form(text: str, fold: bool, marks: str) -> str:
    return (plain(text).casefold() if fold else plain(text)).strip(marks)


def _case_is_free(labels: tuple[str, ...]) -> bool:
    return len({plain(label).casefold() for label in labels}) == len(labels)


@lru_cache
def _patterns(labels: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Return for each label the pattern that finds it as a word of its own."""
    fold = _case_is_free(labels)
    texts = [plain(label).casefold() if fold else plain(label) for label in labels]
    # Where a label begins or ends with a sign (`-1`, `C++`, an emoji), a sign beside a label makes another word
    # of it: `-1` doesn't name `1`, and `C#` doesn't name `C` even if `C#` is not among the labels.
    signs = any(not _is_word(edge) for text in texts for edge in (text[0], text[-1]))
    near = rf"[^\s{re.escape(SENTENCE_MARKS)}]" if signs else r"\w"
    return [
        re.compile(
            (rf"(?<!{near})" if signs or _has_borders(text[0]) else "")
            + re.escape(text)
            + (rf"(?!{near})" if signs or _has_borders(text[-1]) else "")
        )
        for text in texts
    ]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _has_borders(character: str) -> bool:
    """Whether words of this script are set apart: Chinese, Japanese and Korean ones may not be."""
    return _is_word(character) and unicodedata.east_asian_width(character) not in "WF"

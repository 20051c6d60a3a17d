"""What a written answer is worth: chrF and ROUGE-L, and how much of it was copied.

Each score belongs to one row and lies between 0 and 1, so that rows are paired and groups are resampled as they
are for labels. A corpus score, such as sacreBLEU prints it, has no rows.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# A word may have marks inside: don't, many-to-many, urls.py.
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
# The stemmer of rouge-score leaves shorter words as they are.
STEMMED_LETTERS = 4


def words(text: str) -> list[str]:
    """Return the words of a text without case and without the marks around them."""
    return _WORD.findall(text.casefold())


def chrf(targets: Sequence[str], answers: Sequence[str]) -> Floats:
    """Return the chrF of each answer with its target, 0 to 1; shape (rows,).

    F2 of character n-grams up to 6 (Popović, 2015, https://aclanthology.org/W15-3049), as sacreBLEU computes it
    for one sentence. It needs no words, so it holds for every script and forgives endings.
    """
    score = _chrf().sentence_score
    return np.array([score(a, [t]).score / 100 for t, a in zip(targets, answers, strict=True)], float)


def rouge_l(targets: Sequence[str], answers: Sequence[str]) -> Floats:
    """Return the ROUGE-L of each answer with its target, 0 to 1; shape (rows,).

    F1 of the longest common subsequence of stemmed words (Lin, 2004, https://aclanthology.org/W04-1013).
    """
    scorer = _rouge()
    return np.array(
        [scorer.score(t, a)["rougeL"].fmeasure for t, a in zip(targets, answers, strict=True)], float
    )


def copied_share(texts: Sequence[str], answers: Sequence[str]) -> Floats:
    """Return the share of each answer's words that were copied from its text, 0 to 1; shape (rows,).

    The "extractive fragment coverage" of Grusky, Naaman and Artzi (2018, arXiv:1804.11283, section 4.1): from
    left to right, the longest run of words that also stands in the text is taken off the answer. The score is
    the number of words in such runs, divided by all words. An answer without words copied nothing.
    """
    return np.array([_coverage(words(t), words(a)) for t, a in zip(texts, answers, strict=True)], float)


def lengths(texts: Sequence[str]) -> Floats:
    """Return how many words, set apart by spaces, each text has; shape (rows,)."""
    return np.array([len(text.split()) for text in texts], float)


def _coverage(text: list[str], answer: list[str]) -> float:
    places = defaultdict(list)
    for place, word in enumerate(text):
        places[word].append(place)
    copied = start = 0
    while start < len(answer):
        run = max((_run(text, place, answer, start) for place in places.get(answer[start], ())), default=0)
        copied += run
        start += max(1, run)
    return copied / len(answer) if answer else 0.0


def _run(text: list[str], place: int, answer: list[str], start: int) -> int:
    """Return how many words are the same from `place` in the text and from `start` in the answer."""
    length = 0
    while (
        place + length < len(text)
        and start + length < len(answer)
        and text[place + length] == answer[start + length]
    ):
        length += 1
    return length


class _StemmedWords:
    """The words that ROUGE compares. rouge-score's own tokenizer drops every letter that is not a to z."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) >= STEMMED_LETTERS else word for word in words(text)]


# Processes that measure nothing don't load the libraries: rouge-score brings nltk and scikit-learn.
@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_StemmedWords())

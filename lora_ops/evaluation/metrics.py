"""What an answer is worth: exact match, macro-F1 and token F1, with bootstrap intervals."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lora_ops.records.evaluation import Interval

NO_LABEL = "(no label)"
Floats = npt.NDArray[np.float64]


def normalize(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends: what two equal answers may differ in."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


def read_label(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer names first, or `NO_LABEL`.

    A base model answers in sentences ("The sentiment is neutral."); counting only bare labels would make any
    adapter look good. Of labels that begin at the same place the longest is meant.
    """
    found = []
    for label in labels:
        match = re.search(rf"\b{re.escape(label.lower())}\b", answer.lower())
        if match:
            found.append((match.start(), -len(label), label))
    return min(found)[2] if found else NO_LABEL


def exact_match(targets: Sequence[str], answers: Sequence[str]) -> Floats:
    """1.0 for each answer that equals its target after `normalize`, else 0.0; shape (rows,)."""
    return np.array([normalize(t) == normalize(a) for t, a in zip(targets, answers, strict=True)], float)


def token_f1(targets: Sequence[str], answers: Sequence[str]) -> Floats:
    """Word overlap of each answer with its target, 0 to 1; shape (rows,).

    The F1 of SQuAD (Rajpurkar et al., 2016, arXiv:1606.05250), without its dropping of articles.
    """
    return np.array([_overlap(t, a) for t, a in zip(targets, answers, strict=True)])


def bootstrap_mean(values: Floats, draws: int, seed: int) -> Interval:
    """The mean of `values` (rows,) and its 95 % percentile interval over `draws` resamples of the rows."""
    generator = np.random.default_rng(seed)
    means = np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    return _interval(float(values.mean()), means)


def bootstrap_macro_f1(
    targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str], draws: int, seed: int
) -> Interval:
    """Macro-F1 over the labels that occur in `targets`, with its 95 % interval.

    A prediction outside `labels` counts as wrong for its target and for no other label. In a resample a
    label that was not drawn is left out of the mean rather than counted as zero.
    """
    index = {label: number for number, label in enumerate(labels)}
    truth = np.array([index[target] for target in targets])
    guess = np.array([index.get(prediction, len(labels)) for prediction in predictions])
    generator = np.random.default_rng(seed)

    def score(rows: npt.NDArray[np.intp]) -> float:
        size = len(labels) + 1
        table = np.bincount(truth[rows] * size + guess[rows], minlength=size * size).reshape(size, size)
        hits, support, guessed = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
        present = support > 0
        return float((2 * hits[present] / (support[present] + guessed[present])).mean())

    rows = np.arange(len(truth))
    scores = [score(generator.integers(0, len(rows), len(rows))) for _ in range(draws)]
    return _interval(score(rows), np.array(scores))


def score(
    metric: str, targets: Sequence[str], answers: Sequence[str], labels: Sequence[str], draws: int, seed: int
) -> Interval:
    """One metric of params.yaml over all rows, by its name there."""
    if metric == "macro_f1":
        read = [read_label(answer, labels) for answer in answers]
        return bootstrap_macro_f1(targets, read, labels, draws, seed)
    rows: dict[str, Callable[[Sequence[str], Sequence[str]], Floats]] = {
        "exact_match": exact_match,
        "token_f1": token_f1,
    }
    return bootstrap_mean(rows[metric](targets, answers), draws, seed)


def _overlap(target: str, answer: str) -> float:
    wanted, given = normalize(target).split(), normalize(answer).split()
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given)) if shared else 0.0


def _interval(value: float, draws: Floats) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value=round(value, 4), low=round(float(low), 4), high=round(float(high), 4))

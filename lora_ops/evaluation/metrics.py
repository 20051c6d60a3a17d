"""What an answer is worth: exact match, macro-F1 and token F1."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lora_ops.evaluation.inference import Sample, macro_f1_sample, mean_sample

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


def sample(
    metric: str, targets: Sequence[str], answers: Sequence[str], labels: Sequence[str], groups: Sequence[str]
) -> Sample:
    """Return the sample of one metric of params.yaml, by its name there."""
    if metric == "macro_f1":
        return macro_f1_sample(targets, [read_label(answer, labels) for answer in answers], labels, groups)
    rows: dict[str, Callable[[Sequence[str], Sequence[str]], Floats]] = {
        "exact_match": exact_match,
        "token_f1": token_f1,
    }
    return mean_sample(rows[metric](targets, answers), groups)


def _overlap(target: str, answer: str) -> float:
    wanted, given = normalize(target).split(), normalize(answer).split()
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given)) if shared else 0.0

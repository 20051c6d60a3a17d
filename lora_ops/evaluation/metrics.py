"""What an answer is worth, by each metric of params.yaml, and what written answers look like."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lora_ops.evaluation.inference import Sample, macro_f1_sample, mean_sample, ratio_sample
from lora_ops.evaluation.labels import label_form, normalize, read_label
from lora_ops.evaluation.texts import chrf, copied_share, lengths, rouge_l

Floats = npt.NDArray[np.float64]


def exact_match(targets: Sequence[str], answers: Sequence[str], labels: Sequence[str] = ()) -> Floats:
    """Return 1.0 for each answer that equals its target, else 0.0; shape (rows,).

    Case and marks at the ends are forgiven where they tell no two of `labels` apart, and in free text.
    """
    form = label_form(labels) if labels else normalize
    return np.array([form(t) == form(a) for t, a in zip(targets, answers, strict=True)], float)


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
    return mean_sample(row_scores(metric, targets, answers, labels), groups)


def row_scores(
    metric: str, targets: Sequence[str], answers: Sequence[str], labels: Sequence[str] = ()
) -> Floats:
    """Return what each answer is worth by a metric that is a mean over rows, 0 to 1; shape (rows,)."""
    if metric == "exact_match":
        return exact_match(targets, answers, labels)
    return WRITTEN[metric](targets, answers)


def copied_sample(texts: Sequence[str], answers: Sequence[str], groups: Sequence[str]) -> Sample:
    """Return the sample of how much of the answers is copied from their texts."""
    return mean_sample(copied_share(texts, answers), groups)


def length_sample(targets: Sequence[str], answers: Sequence[str], groups: Sequence[str]) -> Sample:
    """Return the sample of the answers' share of the words of answers and targets together; 0.5: as long."""
    given = lengths(answers)
    return ratio_sample(given, given + lengths(targets), groups)


def _overlap(target: str, answer: str) -> float:
    wanted, given = normalize(target).split(), normalize(answer).split()
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given)) if shared else 0.0


WRITTEN: dict[str, Callable[[Sequence[str], Sequence[str]], Floats]] = {
    "token_f1": token_f1,
    "chrf": chrf,
    "rouge_l": rouge_l,
}
"""Metrics that compare a written answer with its target."""

"""Does an answer do the task at all: a label of the tenant's set, or any text. Nobody knows which is right."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from lora_ops.evaluation.labels import label_form, read_label
from lora_ops.settings.labels import NO_LABEL

CHECKED_CHARACTERS = 2000
"""Of all answers to one request: the event loop waits for the check, 0.1 ms for each label."""
ROOM_CHARACTERS = 100
"""Around a label: marks and spaces."""


def does_task(answer: str, labels: Sequence[str]) -> bool:
    """Return whether an answer names a label, or says something where the version was trained for none."""
    return read_label(answer, labels) != NO_LABEL if labels else bool(answer.strip())


def task_share(answers: Iterable[str], labels: Sequence[str]) -> float | None:
    """Return the share of a request's answers that do the task; of long answers, of their beginning.

    None where there is no answer.
    """
    answers = list(answers)
    left = (CHECKED_CHARACTERS - end for end in accumulate(map(len, answers), initial=0))
    done = [does_task(answer[:room], labels) for answer, room in zip(answers, left, strict=False) if room > 0]
    return sum(done) / len(done) if done else None


def are_labels(answers: Iterable[str], labels: Sequence[str]) -> bool:
    """Return whether each answer is a label as a whole; one with more words is none."""
    if not labels:
        return False
    form = label_form(labels)
    forms = {form(label) for label in labels}
    longest = 2 * max(map(len, labels)) + ROOM_CHARACTERS  # the event loop folds no long text
    answers = list(answers)
    return bool(answers) and all(len(one) <= longest and form(one) in forms for one in answers)

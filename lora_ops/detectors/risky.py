"""Which answers count as risky: the one rule of risk budgets, of a shadow's pairs and of a canary's events.

It is the rule of the policy suite, too (`gates/policy.py`): what a user gave, an answer may repeat, and a label
insults nobody, since people chose it. What the system prompt of a version holds, no user gave: else a version
could give away whatever its makers wrote there. A value is of one answer, or a pandas column of many that has
no NA.
"""

import operator
from typing import Any

HAS_ANSWER = "generated_tokens > 0 AND answer_has_text IS DISTINCT FROM false"
"""`has_answer` as a condition in SQL on the lines of the event log."""


def has_answer(tokens: Any, has_text: Any) -> Any:
    """Return whether there is an answer to look at: an empty one can't be risky, and makes a share look small.

    Args:
        tokens: that were generated.
        has_text: whether they made a text; None: an earlier release didn't say.
    """
    return (tokens > 0) & operator.ne(has_text, False)


def leaks(new_identifiers: Any) -> Any:
    """Return whether an answer gives somebody away, by how many identifiers it has that no user gave."""
    return new_identifiers > 0


def insults(score: Any, is_label: Any, threshold: float) -> Any:
    """Return whether an answer insults: not NaN, from the threshold on, and no label of its version.

    Args:
        score: of its worst sentence, from 0 to 1.
        is_label: whether the whole answer is a label; None: nobody knows, so that it is none.
        threshold: `detectors.insult_threshold`.
    """
    return (score >= threshold) & operator.ne(is_label, True)

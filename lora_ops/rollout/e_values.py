"""Combine the evidence of several metrics, which may depend on each other in any way.

An e-value is evidence against a hypothesis: if the hypothesis is true, it is at most 1 on average. One of 20 or
more counts as a p-value of at most 0.05. Evidence that is read at the same look can be averaged (Vovk and Wang,
2021, "E-values: calibration, combination and applications", Annals of Statistics 49(3), 1736-1754).
"""

import math
from collections.abc import Mapping


def combined(e_values: Mapping[str, float]) -> float:
    """Return the e-value against "every hypothesis is true": the mean, valid however the metrics depend.

    Raises:
        ValueError: there is none, or one is negative or not a number.
    """
    if not e_values:
        raise ValueError("there is no e-value to combine")
    for name, value in e_values.items():
        if not value >= 0:  # NaN is refused, too
            raise ValueError(f"the e-value of {name} must be 0 or more, got {value}")
    return math.fsum(e_values.values()) / len(e_values)


def adjusted(e_values: Mapping[str, float]) -> dict[str, float]:
    """Return each e-value corrected for the number of hypotheses (e-Holm: Vovk and Wang, 2021, algorithm 1).

    A corrected e-value is the smallest mean of any group of hypotheses that contains its own (closed testing).
    The chance that any true hypothesis reaches 1 / alpha is at most alpha; Bonferroni's e / K is never larger.

    Raises:
        ValueError: see `combined`.
    """
    combined(e_values)
    ascending = sorted(e_values, key=lambda name: e_values[name])
    corrected: dict[str, float] = {}
    for name in ascending:
        total, best = e_values[name], e_values[name]
        # The group with the smallest mean adds the smallest others first.
        others = (e_values[other] for other in ascending if other != name)
        for size, value in enumerate(others, start=2):
            total += value
            best = min(best, total / size)
        corrected[name] = best
    return {name: corrected[name] for name in e_values}


def p_value(e_value: float) -> float:
    """Return the p-value that an e-value stands for: at any look valid, and at most 1."""
    return 1.0 if e_value <= 1 else 1 / e_value

"""Simulated KPIs with a known uplift: for a demo, and to show that the uplift is found again.

Nobody clicked. A file that is made by this is named so, and its import says so wherever it is shown.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

FILE = "simulated_kpis.csv"


class Effect(NamedTuple):
    """The mean of a KPI, over all users, without and with the new version."""

    control: float
    canary: float


KNOWN = {
    "ctr": Effect(0.10, 0.14),
    "dwell_seconds": Effect(40.0, 46.0),
    "rpm": Effect(3.0, 4.0),
    "conversion": Effect(0.04, 0.06),
    "csat": Effect(3.6, 3.8),
}
NONE = {name: Effect(one.control, one.control) for name, one in KNOWN.items()}
"""Two versions that are equally good."""


def simulate(answers: pd.DataFrame, seed: int, effects: dict[str, Effect] | None = None) -> pd.DataFrame:
    """Return a row for each answer and kind of KPI, as a file of KPIs has them.

    Users differ: each has a level of their own (log-normal, sigma 0.5), and their answers are alike. Dwell time
    and revenue are skewed as real ones are; nine of ten views bring no revenue.

    Args:
        answers: one row each: request_id, time, unit and arm.
        seed: the same one gives the same file.
        effects: by kind; default: `KNOWN`.
    """
    draw = np.random.default_rng(seed)
    effects = KNOWN if effects is None else effects
    units, place = np.unique(answers["unit"].astype("str"), return_inverse=True)
    many = len(answers)
    is_new = (answers["arm"] == "canary").to_numpy()
    tables = []
    for kind, effect in effects.items():
        level = draw.lognormal(-0.125, 0.5, len(units))[place]  # of mean 1
        mean = np.where(is_new, effect.canary, effect.control)
        if kind in ("ctr", "conversion"):
            value = (draw.random(many) < np.minimum(mean * level, 1)).astype(float)
        elif kind == "dwell_seconds":
            value = mean * level * draw.lognormal(-0.32, 0.8, many)
        elif kind == "rpm":
            value = np.where(draw.random(many) < 0.1, 10 * mean * level * draw.lognormal(-0.125, 0.5, many), 0)
        else:
            value = _surveyed(mean, draw, many)
        later = pd.to_timedelta(draw.uniform(1, 600, many).round(), unit="s")
        times = (answers["time"] + later).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        tables.append(
            pd.DataFrame(
                {"time": times, "kind": kind, "value": value.round(6), "request_id": answers["request_id"]}
            )
        )
    return pd.concat(tables, ignore_index=True)


def _surveyed(mean: np.ndarray, draw: np.random.Generator, many: int) -> np.ndarray:
    """Return answers from 1 to 5 of a mean: a binomial of four trials, which skews as surveys do."""
    return 1 + draw.binomial(4, (mean - 1) / 4, many)

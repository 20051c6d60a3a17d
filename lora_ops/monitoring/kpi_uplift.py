"""How much better a KPI is with a version than without it, with a 95 % interval.

A canary and its control group are the same experiment as in `lora_ops.rollout`: users are assigned at random.
One user is one unit, however many rows they have, and belongs to the arm that they met first. While the canary
waits for approvals, it has more users than the control group has, so that the two are of other times. So each
part of a canary with the same shares is compared for itself. The differences are averaged with the weights
n1 n2 / (n1 + n2), which are those of a linear model with the parts as blocks (Imbens and Rubin, 2015, "Causal
Inference", section 9.6). The interval is Welch's (1947, Biometrika 34, 28-35), with the degrees of freedom of
Satterthwaite (1946, Biometrics Bulletin 2, 110-114) over all parts.

It holds for one look, after the canary has ended. A rollout looks again and again, so its guardrails are
sequential tests (`lora_ops.rollout.sequential`).
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from lora_ops.records.kpi import KINDS, KpiKind, Samples, Uplift
from lora_ops.registry.served_times import CanaryShare, InProduction
from lora_ops.rollout.sample_ratio import Phase, sample_ratio
from lora_ops.settings.kpis import KpiSettings

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RANDOMISED = "users were assigned at random, so that nothing but the version differs"
NOT_RANDOMISED = (
    "before against after: season, campaigns and whatever else changed at the promotion count for the version; "
    "days that resemble those before them make the interval too narrow"
)


class Difference(NamedTuple):
    """The difference of two means of independent units, with its interval."""

    value: float
    baseline: float
    difference: float
    low: float
    high: float


def samples(ours: Floats, theirs: Floats) -> Samples | None:
    """Return what an interval needs of two samples (n1,) and (n2,); None where one has fewer than two units."""
    if min(len(ours), len(theirs)) < 2:
        return None
    return Samples(
        units=(len(ours), len(theirs)),
        means=(float(ours.mean()), float(theirs.mean())),
        variances=(float(ours.var(ddof=1)), float(theirs.var(ddof=1))),
    )


def welch(parts: Sequence[Samples]) -> Difference | None:
    """Return how much larger the mean of the first samples is, part by part, with its 95 % interval.

    Returns:
        None where there is no part.
    """
    if not parts:
        return None
    units = np.array([one.units for one in parts], float)  # this and what follows is (parts, 2)
    means = np.array([one.means for one in parts])
    weights = units.prod(axis=1) / units.sum(axis=1)
    weights /= weights.sum()
    scaled = np.array([one.variances for one in parts]) / units * (weights**2)[:, None]
    variance = float(scaled.sum())
    value, baseline = (float(weights @ means[:, side]) for side in (0, 1))
    difference = value - baseline
    if variance == 0:
        return Difference(value, baseline, difference, difference, difference)
    degrees = variance**2 / float((scaled**2 / (units - 1)).sum())
    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Difference(value, baseline, difference, difference - half, difference + half)


def canary_uplift(
    rows: pd.DataFrame, kind: KpiKind, adapter: str, shares: Sequence[CanaryShare], settings: KpiSettings
) -> Uplift | None:
    """Compare the users of a version's canary with those of its control group.

    Args:
        rows: of one tenant, as `KpiStore.rows` gives them.
        kind: of KPI.
        adapter: `tenant@number`.
        shares: of the tenant's canaries.
        settings: how many users it needs.

    Returns:
        None where no user of this version's canary has such a KPI.
    """
    users = _users(rows[rows["kind"] == kind], adapter, shares)
    if users.empty:
        return None
    parts: list[Samples] = []
    phases, counts = [], [0, 0]
    for percent, part in users.groupby("percent"):
        arms = [part.loc[part["arm"] == arm, "value"].to_numpy(float) for arm in ("canary", "control")]
        both = samples(arms[0], arms[1])
        parts += [both] if both else []
        counts = [count + len(one) for count, one in zip(counts, arms, strict=True)]
        share = max(50.0, float(str(percent))) / 100
        if share < 1:
            phases.append(Phase([len(one) for one in arms], (share, 1 - share)))
    ratio = sample_ratio(phases)
    control = users[users["arm"] == "control"]
    against = control["adapter"].mode()
    known: dict[str, Any] = {
        "method": "canary",
        "kind": kind,
        "adapter": adapter,
        "against": str(against.iloc[0]) if len(against) else "its control group",
        "units": counts[0],
        "baseline_units": counts[1],
        "parts": tuple(parts),
        "first_at": users["answered_at"].min().to_pydatetime(),
        "last_at": users["answered_at"].max().to_pydatetime(),
        "assignment": str(ratio),
        "simulated": bool(users["simulated"].any()),
    }
    found = welch(parts)
    if min(counts) < settings.units or found is None:
        few = f"too few users: {counts[0]} and {counts[1]}, and {settings.units} in each arm are needed"
        return Uplift(**known, said=few)
    if ratio.broken:
        return Uplift(**known, said=f"nothing can be said: the {ratio}")
    return Uplift(**known, **found._asdict(), said=RANDOMISED)


def before_after_uplift(
    rows: pd.DataFrame,
    kind: KpiKind,
    adapter: str,
    served: Sequence[InProduction],
    now: datetime,
    settings: KpiSettings,
) -> Uplift | None:
    """Compare the days after a version went into production last with those of the version before it.

    One day is one unit: all users of a day share what happened on it. The day of the promotion counts for
    neither.

    Args:
        rows: of one tenant, as `KpiStore.rows` gives them.
        kind: of KPI.
        adapter: `tenant@number`.
        served: what was in production when.
        now: the time.
        settings: how many days are compared, and how many are needed.

    Returns:
        None where the version was never in production, nothing was there before it, or neither has such a KPI.
    """
    tenant, _, number = adapter.rpartition("@")
    places = [place for place, one in enumerate(served) if one.number == int(number)]
    if not places or places[-1] == 0 or served[places[-1] - 1].number is None:
        return None
    entered, before = served[places[-1]].since, served[places[-1] - 1]
    left = served[places[-1] + 1].since if places[-1] + 1 < len(served) else now
    against, window = f"{tenant}@{before.number}", timedelta(days=settings.days)
    day = entered.replace(hour=0, minute=0, second=0, microsecond=0)
    after = _days(rows, kind, adapter, day + timedelta(days=1), min(left, day + timedelta(days=1) + window))
    earlier = _days(rows, kind, against, max(before.since, day - window), day)
    known_days = [*earlier.index, *after.index]
    if not known_days:
        return None
    both = samples(after.to_numpy(float), earlier.to_numpy(float))
    known: dict[str, Any] = {
        "method": "before_after",
        "kind": kind,
        "adapter": adapter,
        "against": against,
        "units": len(after),
        "baseline_units": len(earlier),
        "parts": (both,) if both else (),
        "first_at": known_days[0].to_pydatetime(),
        "last_at": known_days[-1].to_pydatetime(),
        "simulated": bool(rows.loc[rows["adapter"].isin([adapter, against]), "simulated"].any()),
    }
    found = welch(known["parts"])
    if found is None or min(len(after), len(earlier)) < settings.least_days:
        few = (
            f"too few days: {len(after)} after and {len(earlier)} before, and {settings.least_days} are needed"
        )
        return Uplift(**known, said=few)
    return Uplift(**known, **found._asdict(), said=NOT_RANDOMISED)


def uplifts(
    rows: pd.DataFrame,
    adapter: str,
    shares: Sequence[CanaryShare],
    served: Sequence[InProduction],
    now: datetime,
    settings: KpiSettings,
) -> list[Uplift]:
    """Return what is known of each KPI of a version: beside its control group, and before against after.

    Args: as `canary_uplift` and `before_after_uplift`.
    """
    kinds: list[KpiKind] = list(KINDS)  # type: ignore[arg-type]
    found = [canary_uplift(rows, kind, adapter, shares, settings) for kind in kinds]
    found += [before_after_uplift(rows, kind, adapter, served, now, settings) for kind in kinds]
    return [one for one in found if one is not None]


def user_means(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return the mean of each user's values, weighted by `count`, with the first row of each.

    Args:
        rows: sorted by the time of their answer.
        keys: the columns that name a user.
    """
    weighed = rows.assign(whole=rows["value"] * rows["count"])
    grouped = weighed.groupby(list(keys), sort=False)
    sums = grouped[["whole", "count"]].sum()
    first = grouped.first()
    return first.assign(value=sums["whole"] / sums["count"]).reset_index()


def _users(rows: pd.DataFrame, adapter: str, shares: Sequence[CanaryShare]) -> pd.DataFrame:
    """Return one row for each user of a version's canary and its control group, with the part it is in.

    A user belongs to the arm and the part of their first answer. What they did after they changed either
    doesn't count: it is neither arm's alone.
    """
    number = int(adapter.rpartition("@")[2])
    mine = rows[rows["arm"].notna() & rows["unit"].notna()]
    if mine.empty or not any(one.number == number for one in shares):
        return mine.iloc[:0].assign(percent=[])
    times = pd.Series(pd.to_datetime([one.since for one in shares], utc=True)).astype("datetime64[us, UTC]")
    history = pd.DataFrame(
        {
            "since": times,
            "number": [one.number for one in shares],
            # Below a half both arms have the same share: such steps are one part.
            "percent": [max(50.0, one.percent) for one in shares],
            "salt": [one.salt for one in shares],
        }
    ).sort_values("since", kind="stable")
    mine = mine.assign(answered_at=mine["answered_at"].astype("datetime64[us, UTC]"))
    mine = mine.sort_values("answered_at", kind="stable")
    placed = pd.merge_asof(mine, history, left_on="answered_at", right_on="since")
    placed = placed[placed["number"] == number]
    if placed.empty:
        return placed
    # Another attempt assigns users anew; the last one is what led to production.
    placed = placed[placed["salt"] == placed["salt"].iloc[-1]]
    first = placed.groupby("unit")[["arm", "percent"]].transform("first")
    placed = placed[(placed["arm"] == first["arm"]) & (placed["percent"] == first["percent"])]
    return user_means(placed, ["unit"])


def _days(rows: pd.DataFrame, kind: str, adapter: str, start: datetime, end: datetime) -> pd.Series:
    """Return the mean of each day (UTC) of a version's KPI: over its users, or over rows without one."""
    mine = rows[(rows["kind"] == kind) & (rows["adapter"] == adapter)]
    mine = mine[(mine["answered_at"] >= start) & (mine["answered_at"] < end)]
    # A row without a user is one of its own.
    alone = pd.Series([f"row {place}" for place in range(len(mine))], index=mine.index)
    mine = mine.assign(
        day=mine["answered_at"].dt.floor("D"), who=mine["unit"].where(mine["unit"].notna(), alone)
    )
    means = user_means(mine, ["day", "who"])
    return means.groupby("day")["value"].mean()

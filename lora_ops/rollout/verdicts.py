"""What the evidence of all guardrails says: advance, roll back, or hold for about so many more units.

Two questions have two tests, as in `gates/paired.py`. A version **advances** where each guardrail shows that
it isn't worse by the margin; as all must show it, that needs no correction for their number (intersection-
union test: Berger, 1982). It is **rolled back** where any guardrail shows that it is worse by more than the
margin: the mean of their evidence must reach 1 / alpha, so that the number of guardrails doesn't raise the
error rate. Where neither is shown the rollout **holds**, and nobody may read that as a pass. No traffic
holds.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from lora_ops.rollout.bets import checked_alpha
from lora_ops.rollout.e_values import adjusted, combined
from lora_ops.rollout.sample_ratio import SampleRatio
from lora_ops.rollout.units import KeyShare

Decision = Literal["advance", "roll back", "hold"]


class Guardrail(Protocol):
    """A metric on which the candidate must not be worse: `DifferenceSequence` or `QuantileComparison`."""

    @property
    def count(self) -> int:
        """How many units (users, requests or pairs of them) it has."""

    @property
    def breach(self) -> float:
        """The e-value for "worse by more than the margin"."""

    @property
    def non_inferior(self) -> float:
        """The e-value for "not worse by the margin"."""

    def pairs_until(self, threshold: float, *, breach: bool = False) -> int | None:
        """About how many more units raise `non_inferior`, or `breach`, to a threshold; None if none would."""


class Verdict(NamedTuple):
    """A decision, with the words that people read."""

    decision: Decision
    reason: str
    breached: tuple[str, ...] = ()
    """Guardrails that are shown to be breached; the most likely one where only "any of them" is shown."""
    waiting: tuple[str, ...] = ()
    """Guardrails that don't yet show that the version isn't worse."""
    users: int | None = None
    """Of a hold: about how many more units are needed; None where that can't be told."""
    hours: float | None = None
    """Of a hold: about how long that takes; None where it can't be told or there is no traffic."""

    def __str__(self) -> str:
        return f"{self.decision}: {self.reason}"


def verdict(
    guardrails: Mapping[str, Guardrail],
    *,
    alpha: float,
    least_users: int,
    users_per_hour: float,
    ratio: SampleRatio | None = None,
    unit: str = "users",
) -> Verdict:
    """Return what to do now; the error rates hold although this is asked after every request.

    A broken assignment is said before any metric, and the version never advances with it. If the guardrails
    show a breach as well, the version is rolled back all the same: a canary that crashes loses its users'
    events, too.

    Args:
        guardrails: by name, at least one.
        alpha: the chance, over all looks, that a version within all margins is rolled back; and that a version
            outside of any margin advances.
        least_users: each guardrail must have so many before the version advances; a breach needs no minimum.
        users_per_hour: how many more each guardrail gets, for the forecast.
        ratio: the check of the assignment, if users were assigned.
        unit: what people read as the unit: users of a canary, requests of a shadow.

    Raises:
        ValueError: there is no guardrail, or alpha, the minimum or the rate is out of range.
    """
    threshold = 1 / checked_alpha(alpha)
    if not guardrails:
        raise ValueError("a rollout without a guardrail can't be judged: name one in params.yaml")
    if least_users < 1 or not 0 <= users_per_hour < math.inf:
        raise ValueError(
            f"a minimum of {least_users} {unit} or a rate of {users_per_hour} per hour is out of range: "
            "the minimum is 1 or more, the rate 0 or more"
        )
    warning = f"{ratio}. " if ratio and ratio.broken else ""
    breaches = {name: one.breach for name, one in guardrails.items()}
    if combined(breaches) >= threshold:
        return _rolled_back(breaches, threshold, warning)
    waiting = tuple(name for name, one in guardrails.items() if one.non_inferior < threshold)
    if warning:
        return Verdict("hold", f"{warning}No metric is believed until that is explained", waiting=waiting)
    missing = max(0, least_users - min(one.count for one in guardrails.values()))
    if not waiting and not missing:
        return Verdict("advance", f"{_listed(guardrails)} not worse by the margin (alpha {alpha:g})")
    return _held(guardrails, waiting, missing, threshold, users_per_hour, unit)


def by_whom(found: Verdict, keys: KeyShare) -> Verdict:
    """Return a verdict that says by whom it was decided, where one API key brought most units.

    Whoever approves reads it: a client names its users itself, and one key can be any number of them.
    """
    if not keys.said or (found.decision == "hold" and not keys.left_out):
        return found
    return found._replace(reason=f"{found.reason}; {keys.said}")


def _rolled_back(breaches: Mapping[str, float], threshold: float, warning: str) -> Verdict:
    named = tuple(name for name, value in adjusted(breaches).items() if value >= threshold)
    if named:
        reason = f"{_listed(named)} worse by more than the margin"
    else:
        named = (max(breaches, key=lambda name: breaches[name]),)
        reason = f"a guardrail is breached, most likely {named[0]}"
    return Verdict(
        "roll back",
        f"{warning}{reason} (e-value {combined(breaches):.3g}, limit {threshold:g})",
        breached=named,
    )


def _held(
    guardrails: Mapping[str, Guardrail],
    waiting: tuple[str, ...],
    missing: int,
    threshold: float,
    users_per_hour: float,
    unit: str,
) -> Verdict:
    forecasts = {name: guardrails[name].pairs_until(threshold) for name in waiting}
    without = [name for name, needed in forecasts.items() if needed is None]
    empty = [name for name in without if not guardrails[name].count]
    if empty:
        reason = f"no {unit} yet for {_names(empty)}; how many are needed can't be told"
    elif without:
        reason = f"how many more {unit} are needed can't be told: {_names(without)} so far worse than allowed"
    else:
        units = max([missing, *(needed for needed in forecasts.values() if needed is not None)])
        hours = units / users_per_hour if users_per_hour else None
        time = f"{hours:.1f} hours" if hours is not None else "no traffic now"
        reason = f"about {units} more {unit}, {time}" + (f" (for {_names(waiting)})" if waiting else "")
        return Verdict("hold", reason, waiting=waiting, users=units, hours=hours)
    return Verdict("hold", reason, waiting=waiting)


def _names(names: Mapping[str, Guardrail] | tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)


def _listed(names: Mapping[str, Guardrail] | tuple[str, ...]) -> str:
    return f"{_names(names)} {'is' if len(names) == 1 else 'are'}"

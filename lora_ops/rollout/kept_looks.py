"""What a controller saw at each look, kept for people: how far the evidence has tightened since the start.

Nothing is decided by these files. Each look of a controller judges what gateways wrote.
"""

import logging
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from lora_ops.folders import make_folder
from lora_ops.records.record import Record
from lora_ops.records.rollout import Phase, Rollout
from lora_ops.registry.files import write_atomically
from lora_ops.rollout.canary import Look
from lora_ops.rollout.sequential import Bounds, excess_part
from lora_ops.rollout.shadow_verdict import MetricVerdict, ShadowLook
from lora_ops.small_files import read_small

_SCALES: dict[str, Callable[[float], float]] = {
    "tokens": excess_part,
    "P95 latency": lambda ratio: ratio - 1,
}
logger = logging.getLogger(__name__)

FOLDER = "rollouts"  # in `.serving`
MOST_LOOKS = 60
"""Of one phase. Where there are more, every second one goes, and the newest stays."""


class LookMetric(Record):
    """One metric at one look.

    Attributes:
        production, candidate: means, of latency the P95 in seconds; None without units.
        low, high: interval of how much worse the candidate is: 0.05 are 5 points more of its users or answers,
            or 5 % more tokens or seconds. None: it has no bound on this side.
        limit: from where on it is worse than allowed.
        units: users or requests that it has.
    """

    name: str
    production: float | None
    candidate: float | None
    low: float | None
    high: float | None
    limit: float
    verdict: MetricVerdict
    units: int


class KeptLook(Record):
    """One look of a controller.

    Attributes:
        said: the verdict in words, with the forecast of a hold.
        replayed: whether the pairs are of replayed requests.
        users: in the canary and in its control group.
        assignment: whether users were assigned as the route says, in words.
    """

    at: AwareDatetime
    phase: Phase
    step: int
    said: str
    replayed: bool = False
    users: tuple[int, int] | None = None
    assignment: str = ""
    metrics: tuple[LookMetric, ...]


class KeptLooks(Record):
    """The looks at one attempt of a rollout, oldest first."""

    adapter: str
    attempt: int
    looks: tuple[KeptLook, ...] = ()


class LookKeeper:
    """Writes down what a controller sees; a disk that takes nothing stops no rollout."""

    def __init__(self, folder: Path) -> None:
        """Keep looks in `folder`, `.serving/rollouts`."""
        self._folder = folder
        self._said: str | None = None

    def keep(self, rollout: Rollout, look: ShadowLook | Look, at: datetime) -> None:
        """Add a look at a rollout to the others of its attempt."""
        path = self._folder / f"{rollout.plan.adapter}.json"
        try:
            before = read_looks(path)
            if before is None or before.attempt != rollout.attempt:
                before = KeptLooks(adapter=rollout.plan.adapter, attempt=rollout.attempt)
            kept = before.model_copy(update={"looks": thinned([*before.looks, _kept(rollout, look, at)])})
            make_folder(self._folder)
            write_atomically(path, kept.model_dump_json().encode())
            self._said = None
        except OSError as error:
            text = f"The looks at {rollout.plan.adapter} can't be kept for the console: {error}"
            if text != self._said:
                logger.warning("%s", text)
            self._said = text


def read_looks(path: Path) -> KeptLooks | None:
    """Return the looks that a file holds; None where there is none, or nobody can read it."""
    try:
        return KeptLooks.model_validate_json(read_small(path))
    except (OSError, ValidationError):
        return None


def thinned(looks: list[KeptLook]) -> tuple[KeptLook, ...]:
    """Return at most `MOST_LOOKS` of each phase, spread over all of its time."""
    by_phase: dict[str, list[KeptLook]] = {}
    for one in looks:
        by_phase.setdefault(one.phase, []).append(one)
    kept: list[KeptLook] = []
    for of_phase in by_phase.values():
        if len(of_phase) > MOST_LOOKS:
            of_phase = [*of_phase[:-1:2], of_phase[-1]]
        kept += of_phase
    return tuple(kept)


def _kept(rollout: Rollout, look: ShadowLook | Look, at: datetime) -> KeptLook:
    if isinstance(look, ShadowLook):
        return KeptLook(
            at=at,
            phase=rollout.phase,
            step=rollout.step,
            said=str(look.verdict),
            replayed=look.replayed,
            metrics=tuple(_of_shadow(look)),
        )
    return KeptLook(
        at=at,
        phase=rollout.phase,
        step=rollout.step,
        said=str(look.verdict),
        users=(look.canary_users, look.control_users),
        assignment=str(look.ratio),
        metrics=tuple(canary_metrics(look, 1 / rollout.plan.alpha)),
    )


def _of_shadow(look: ShadowLook) -> Iterator[LookMetric]:
    for one in look.metrics:
        if one.difference is None or one.margin is None:
            continue
        low, high = one.difference
        worse = Bounds(-high, -low) if one.more_is_better else one.difference
        yield _metric(
            one.name,
            (one.production, one.shadow),
            worse,
            one.margin,
            one.verdict,
            one.units,
        )


def canary_metrics(look: Look, threshold: float) -> Iterator[LookMetric]:
    """Yield each guardrail of a canary as people read it; `threshold` is the evidence that decides."""
    for one in look.guardrails:
        verdict: MetricVerdict = "undecided"
        if one.name in look.verdict.breached or one.breach >= threshold:
            verdict = "breach"
        elif one.non_inferior >= threshold:
            verdict = "non-inferior"
        yield _metric(
            one.name,
            (one.control, one.canary),
            one.difference,
            one.margin,
            verdict,
            one.users,
        )


def _metric(
    name: str,
    means: tuple[float | None, float | None],
    worse: Bounds,
    limit: float,
    verdict: MetricVerdict,
    units: int,
) -> LookMetric:
    scale = _SCALES.get(name)
    low, high, most = ((scale(one) if scale else one) for one in (*worse, limit))
    return LookMetric(
        name=name,
        production=means[0],
        candidate=means[1],
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        limit=most,
        verdict=verdict,
        units=units,
    )

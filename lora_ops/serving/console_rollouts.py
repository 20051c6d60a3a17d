"""The rollouts on the console: where each one is, what its looks showed, and who may act.

A thread reads the registry, and reads it again only after a change. What a controller saw is in its files; this
process judges no traffic.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.records.rollout import Rollout
from lora_ops.registry.demo import is_demo
from lora_ops.registry.rollouts import rollouts
from lora_ops.registry.store import Registry
from lora_ops.rollout.actions import actions, lacking
from lora_ops.rollout.kept_looks import KeptLook, LookMetric, read_looks

SHOWN = 12
"""Rollouts on the page: those that run, then the newest."""
OF_A_TENANT = 2


class RolloutBoard:
    """Reads all rollouts for the page; one thread at a time.

    Args:
        copy: opens the registry for the thread that reads.
        looks: folder of what controllers saw.
    """

    def __init__(self, copy: Callable[[], Registry], looks: Path) -> None:
        self._copy = copy
        self._looks = looks
        self._seen: object = None
        self._known: list[dict[str, Any]] = []
        self._left_out = 0
        self._is_demo = False

    def read(self, seen: object, now: datetime) -> dict[str, Any]:
        """Return the rollouts that run and the newest of the others, with what their looks showed.

        Args:
            seen: differs after each change of the registry or of owners.yaml.
            now: the time of the page.
        """
        try:
            if seen != self._seen:
                with closing(self._copy()) as registry:
                    chosen, self._left_out = _chosen(rollouts(registry))
                    self._known = [_about(registry, one) for one in chosen]
                    self._is_demo = is_demo(registry)
                self._seen = seen
        except LoraOpsError as error:
            # What was read before may be old: a page that says so is better than one without an answer.
            return {"rollouts": [], "left_out": 0, "demo": self._is_demo, "problem": str(error)}
        shown = [
            {**one, "ago": _ago(one["since"], now), **_looked(self._looks, one, now)} for one in self._known
        ]
        return {"rollouts": shown, "left_out": self._left_out, "demo": self._is_demo, "problem": None}


def _chosen(found: Sequence[Rollout]) -> tuple[list[Rollout], int]:
    """Return the rollouts to be shown, those that run first, and how many are left out."""
    ordered = sorted(found, key=lambda one: (not one.is_running, -one.seq))
    chosen: list[Rollout] = []
    for one in ordered:
        tenant = one.plan.adapter.rpartition("@")[0]
        of_tenant = sum(other.plan.adapter.rpartition("@")[0] == tenant for other in chosen)
        if len(chosen) < SHOWN and of_tenant < OF_A_TENANT:
            chosen.append(one)
    return chosen, len(found) - len(chosen)


def _about(registry: Registry, rollout: Rollout) -> dict[str, Any]:
    plan = rollout.plan
    return {
        "adapter": plan.adapter,
        "tenant": plan.adapter.rpartition("@")[0],
        "against": plan.against,
        "phase": rollout.phase,
        "running": rollout.is_running,
        "step": rollout.step,
        "steps": [*plan.canary.steps, plan.canary.waiting],
        "percent": rollout.percent,
        "shadow_percent": plan.shadow.percent,
        "paused": rollout.paused,
        "attempt": rollout.attempt,
        "by": rollout.started_by,
        "said": rollout.said,
        "terms": rollout.terms,
        "since": rollout.since,
        "missing": lacking(registry, rollout),
        "actions": [one._asdict() for one in actions(registry, rollout)],
    }


def _looked(folder: Path, about: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Return what a controller saw in this attempt, one part for each phase."""
    kept = read_looks(folder / f"{about['adapter']}.json")
    if kept is None or kept.attempt != about["attempt"] or not kept.looks:
        return {"looked": None, "phases": [], "last_step": 0}
    by_phase: dict[str, list[KeptLook]] = {}
    for one in kept.looks:
        by_phase.setdefault("shadow" if one.phase == "shadow" else "canary", []).append(one)
    return {
        "looked": _ago(kept.looks[-1].at, now),
        "last_step": kept.looks[-1].step,
        "phases": [_phase(name, looks) for name, looks in by_phase.items()],
    }


def _phase(name: str, looks: list[KeptLook]) -> dict[str, Any]:
    last = looks[-1]
    return {
        "phase": name,
        "said": last.said,
        "replayed": last.replayed,
        "users": last.users,
        "assignment": last.assignment,
        "metrics": [
            {**metric.model_dump(), "tightened": _tightened(metric.name, looks)} for metric in last.metrics
        ],
    }


def _tightened(name: str, looks: list[KeptLook]) -> list[list[float | None]]:
    """Return [units, low, high] of one metric at each look that had more units than the one before."""
    found: list[LookMetric] = []
    for one in looks:
        metric = next((metric for metric in one.metrics if metric.name == name), None)
        if metric is None:
            continue
        if found and found[-1].units == metric.units:
            found.pop()
        found.append(metric)
    return [[one.units, one.low, one.high] for one in found]


def _ago(at: datetime, now: datetime) -> float:
    return (now - at).total_seconds()

"""One attempt of a version's rollout, as its reports show it: from its start to its end, or to now."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.records.evidence import Evidence, EvidenceKind
from lora_ops.records.rollout import Phase, Rollout, RolloutPlan
from lora_ops.registry.rollouts import Turn, rollouts, turns
from lora_ops.registry.store import Registry
from lora_ops.rollout.actions import Action, actions, lacking


@dataclass(frozen=True)
class Attempt:
    """One attempt of a rollout.

    Attributes:
        rollout: in its last state of this attempt.
        turns: its changes, oldest first.
        looked_at: the time of its end; of one that still goes on, now.
        of: how many attempts the version has had.
        filed: reports that were filed during the attempt, by kind; of each the last one.
        actions: what people may do now, and who; nothing of an attempt that another one followed.
        lacking: what it still lacks for production, while approvals are awaited.
    """

    rollout: Rollout
    turns: Sequence[Turn]
    looked_at: datetime
    of: int
    filed: dict[str, Evidence]
    actions: Sequence[Action]
    lacking: Sequence[str]

    @property
    def next_steps(self) -> str:
        """What people may do now, by which command, in a sentence."""
        ways = [f"{one.what} (`{one.command}`: {', '.join(one.people) or 'nobody'})" for one in self.actions]
        if ways:
            return f"People may now {'; or '.join(ways)}."
        later = "" if self.rollout.attempt == self.of else f"; attempt {self.of} is the last one"
        return f"`lora-ops rollout status {self.plan.adapter}` shows how it is now{later}."

    @property
    def state(self) -> str:
        """Where the rollout is, why, and what people may do now, in two sentences."""
        rollout = self.rollout
        paused = ", paused" if rollout.paused else ""
        return (
            f"The rollout is '{rollout.phase}'{paused} since {rollout.since:%Y-%m-%d %H:%M} UTC: "
            f"{rollout.said.rstrip('.')}. {self.next_steps}"
        )

    @property
    def plan(self) -> RolloutPlan:
        """What was decided when it began."""
        return self.rollout.plan

    @property
    def name(self) -> str:
        """The version, and which attempt it was where there were more."""
        several = f" (attempt {self.rollout.attempt} of {self.of})" if self.of > 1 else ""
        return f"{self.plan.adapter}{several}"

    def began(self, *phases: Phase) -> datetime | None:
        """Return when the attempt came to one of these phases first; None if it has not."""
        return next((one.rollout.since for one in self.turns if one.rollout.phase in phases), None)


def last_version(registry: Registry, tenant: str) -> str | None:
    """Return the version of a tenant whose rollout changed last; None where none was ever started."""
    found = max(rollouts(registry, tenant), key=lambda one: one.seq, default=None)
    return found.plan.adapter if found else None


def attempt_of(
    registry: Registry, tenant: str, version: str | None = None, number: int | None = None
) -> Attempt | None:
    """Return an attempt of a version's rollout; None where none was ever started.

    Args:
        registry: where.
        tenant: whose.
        version: the exact version; default: the one whose rollout changed last.
        number: of the attempt; default: the last one.

    Raises:
        NotFound: no such version, or no such attempt.
        LoraOpsError: the version is another tenant's, or an entry of the log is not what lora-ops writes.
    """
    if version is not None:
        exact = registry.get_exact(version, whole=False)
        if exact.tenant != tenant:
            raise LoraOpsError(
                f"{exact.id} is no version of '{tenant}': name one of its own, such as {tenant}@1."
            )
        version = exact.id
    version = version or last_version(registry, tenant)
    every = turns(registry, version) if version else []
    if not every:
        return None
    of = every[-1].rollout.attempt
    number = of if number is None else number
    mine = [one for one in every if one.rollout.attempt == number]
    if not mine:
        known = "one attempt" if of == 1 else f"{of} attempts"
        raise NotFound(f"The rollout of {version} has no attempt {number}: it had {known}, counted from 1.")
    last = mine[-1].rollout
    later = [one.entry.seq for one in every if one.rollout.attempt > number]
    return Attempt(
        last,
        mine,
        registry.clock() if last.is_running else last.since,
        of,
        _filed(registry, last, mine[0].entry.seq, min(later, default=None)),
        actions(registry, last) if number == of else [],
        lacking(registry, last) if number == of else [],
    )


def _filed(registry: Registry, rollout: Rollout, after: int, before: int | None) -> dict[str, Evidence]:
    tenant, _, number = rollout.plan.adapter.rpartition("@")
    kinds: set[EvidenceKind] = {"shadow", "canary"}
    return {
        one.kind: one
        for entry in registry.log.entries(tenant, int(number), after=after)
        if entry.number == int(number) and (before is None or entry.seq < before)
        for one in entry.evidence
        if one.kind in kinds
    }


def no_rollout(tenant: str) -> str:
    """Return how a tenant gets a rollout."""
    return (
        f"'{tenant}' has had no rollout yet: `lora-ops rollout start {tenant}@N --reason TEXT` begins that of "
        "a validated version, then run this notebook again."
    )


def serving_folder(usual: Path, named: str | None, root: Path) -> Path:
    """Return the folder of the gateway's files that a page reads.

    Args:
        usual: by params.yaml; it need not be there yet.
        named: by whoever asks for the page, from `root` on.
        root: of the repository.

    Raises:
        NotFound: somebody named a folder that is not there.
    """
    if named is None:
        return usual
    folder = root / named
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}: name the one with the gateway's `pairs` and `events`.")
    return folder

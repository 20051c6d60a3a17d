"""What a gateway kept of a rollout's traffic: pairs of its shadow, and events of its canary."""

import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pandas as pd

from lora_ops.folders import writable_by_others
from lora_ops.records.rollout import Rollout, RolloutPlan
from lora_ops.registry.reports import Report, make
from lora_ops.registry.route_entries import times_stopped
from lora_ops.registry.store import Registry
from lora_ops.rollout.canary import CanaryRequest, Look
from lora_ops.rollout.canary_events import EVENTS, CanaryEvents, Stops, by_name, of_arms, read_requests
from lora_ops.rollout.gateways import GatewayProbe
from lora_ops.rollout.kept_looks import LookKeeper
from lora_ops.rollout.pairs import read_pairs
from lora_ops.rollout.shadow_report import shadow_report
from lora_ops.rollout.shadow_verdict import ShadowLook, look_at_pairs
from lora_ops.rollout.verdicts import Verdict

logger = logging.getLogger(__name__)

PAIRS = "pairs"
Attempt = tuple[RolloutPlan, str, datetime, float]
"""By what events are judged: plan, condition, beginning, and the score from which an answer is an insult."""


def other_writers(folder: Path) -> str | None:
    """Return that others than the gateway's account may write its traffic, as a sentence, or None.

    No secret could prove who wrote a line: whoever writes as the gateway reads what it signs with.
    """
    kept = [folder, *(folder / name for name in (EVENTS, PAIRS))]
    files = [one for name in (EVENTS, PAIRS) for one in (folder / name).glob(f"{name}-*.jsonl")]
    found = writable_by_others([*kept, *files])
    if found is None:
        return None
    return (
        f"Others than the gateway's account may write {found}, so a rollout believes lines that no gateway "
        f"wrote: `chmod -R go-w {folder}`."
    )


def asks_by_name(rollout: Rollout) -> bool:
    """Return whether its shadow rests on requests for the version's name: no answer can be compared.

    Nothing is in production, and replayed rows, which the base model answers, too, don't count here.
    """
    return rollout.plan.is_alone and not rollout.plan.accept_replay


class GatewayTraffic:
    """The evidence of a rollout, from the files of the gateways in one folder.

    Pairs are read anew at each look. Events are read once as long as this object lives: a look at a canary that
    went on since yesterday counts those of the last seconds.

    Args:
        registry: whose clock says when a look is, and where reports are made for.
        folder: `.serving` of the gateways.
        insults_from: score from which an answer counts as insulting, of a rollout whose plan says none.
        keeper: writes each verdict's look down for people; None: nobody does.
        probe: asks gateways for a version before users get it; None: nobody does.
    """

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        insults_from: float,
        keeper: LookKeeper | None = None,
        probe: GatewayProbe | None = None,
    ) -> None:
        self._registry = registry
        self._folder = folder
        self._insults_from = insults_from
        self._keeper = keeper
        self._said: str | None = None
        self._probe = probe
        self._begun: dict[str, tuple[Attempt, CanaryEvents]] = {}

    def unanswered(self, rollout: Rollout) -> str | None:
        """Return why no users may be sent to the version yet: a gateway doesn't answer with it; or None."""
        plan = rollout.plan
        return self._probe.unanswered(plan.adapter, plan.content_digest) if self._probe else None

    def shadow(self, rollout: Rollout) -> Verdict:
        """Return the verdict on the pairs of this attempt.

        Raises:
            LoraOpsError: the pairs can't be read.
        """
        found = self.named_look(rollout) if asks_by_name(rollout) else self.shadow_look(rollout)
        if self._keeper:
            self._keeper.keep(rollout, found, self._registry.clock())
        return found.verdict

    def named_look(self, rollout: Rollout) -> Look:
        """Return what the requests say that asked for the version by its name, where none is in production.

        Few people do so. They can show that it is broken, and no more than that it answers: the gates compared
        it with its base model.

        Raises:
            LoraOpsError: the events can't be read.
        """
        plan = rollout.plan
        found, events = self._look(rollout, by_name(plan, rollout.began), rollout.began)
        if found.verdict.decision == "roll back":
            return found
        answered, hours = events.answered.total(), len(events.answered)
        said = f"{answered} requests in {hours} different hours asked for {plan.adapter} by its name"
        if answered < plan.shadow.requests or hours < plan.shadow.hours:
            needed = f"{plan.shadow.requests} in {plan.shadow.hours:g} different hours are needed"
            return found._replace(verdict=Verdict("hold", f"{said}; {needed}"))
        return found._replace(verdict=Verdict("advance", f"{said}, and no limit is breached"))

    def shadow_look(self, rollout: Rollout) -> ShadowLook:
        """Return what the pairs of this attempt say; replayed ones where the plan takes them and none is live.

        Raises:
            LoraOpsError: the pairs can't be read.
        """
        plan, now, pairs = rollout.plan, self._registry.clock(), self.pairs(rollout)
        live = look_at_pairs(plan, pairs, now=now, since=rollout.began)
        if live.answered or not plan.accept_replay:
            return live
        return look_at_pairs(plan, pairs, now=now, since=rollout.began, replayed=True)

    def canary(self, rollout: Rollout) -> Look:
        """Return the verdict on the canary's users since its first step.

        Raises:
            LoraOpsError: the events can't be read.
        """
        since = rollout.canary_since or rollout.since
        found, _ = self._look(rollout, of_arms(rollout.plan, since), since, self._stops(rollout))
        if self._keeper:
            self._keeper.keep(rollout, found, self._registry.clock())
        return found

    def shadow_report(self, rollout: Rollout) -> Report:
        """Return the pairs as a report to be filed.

        Raises:
            LoraOpsError: there are none since it entered its shadow, or they are replayed and none may be.
        """
        if asks_by_name(rollout):
            return self._report(rollout, "shadow", self.named_look(rollout).verdict.reason, rollout.began)
        pairs, found = self.pairs(rollout), self.shadow_look(rollout)
        counted = pairs[pairs["replayed"].astype(bool) == found.replayed]
        terms = "; ".join(filter(None, (rollout.terms, found.keys)))
        return shadow_report(self._registry, rollout.plan.adapter, counted, terms=terms)

    def canary_report(self, rollout: Rollout, found: Look) -> Report:
        """Return the requests of the canary since its first step as a report to be filed.

        Args:
            rollout: of this attempt; requests of an earlier one don't count.
            found: what they say.

        Raises:
            LoraOpsError: they are none, or the events can't be read.
        """
        users = f"{found.canary_users} users"
        if rollout.plan.is_alone:
            users += " without a control group, since nothing is in production"
        else:
            users += f" beside {found.control_users} in the control group"
        since = rollout.canary_since or rollout.since
        return self._report(rollout, "canary", f"{users}: {found.verdict}", since)

    def _report(self, rollout: Rollout, kind: str, said: str, since: datetime) -> Report:
        said += f"; {rollout.terms}" if rollout.terms else ""
        return make(self._registry, rollout.plan.adapter, kind, self._folder / EVENTS, said, since=since)

    def _warn_of_other_writers(self) -> None:
        said = other_writers(self._folder)
        if said and said != self._said:
            logger.warning("%s", said)
        self._said = said

    def pairs(self, rollout: Rollout) -> pd.DataFrame:
        """Return the pairs of a rollout's two versions, oldest first.

        Raises:
            LoraOpsError: the pairs can't be read.
        """
        plan = rollout.plan
        self._warn_of_other_writers()
        return read_pairs(
            self._folder / PAIRS, plan.adapter, plan.content_digest, production_digest=plan.against_digest
        )

    def requests(self, rollout: Rollout, since: datetime) -> Iterator[CanaryRequest]:
        """Yield the requests of canary and control group from a moment on, oldest first.

        Raises:
            LoraOpsError: the events can't be read.
        """
        self._warn_of_other_writers()
        return read_requests(self._folder / EVENTS, of_arms(rollout.plan, since), self._stops(rollout))

    def _stops(self, rollout: Rollout) -> Stops:
        # Canary and control are of the same time. While production answers nobody the canary says nothing.
        plan = rollout.plan
        return [] if plan.is_alone else times_stopped(self._registry.log, plan.against)

    def _look(
        self, rollout: Rollout, where: str, since: datetime, stops: Stops = ()
    ) -> tuple[Look, CanaryEvents]:
        """Return what events show, of which those of the attempt's earlier looks aren't read again."""
        self._warn_of_other_writers()
        plan = rollout.plan
        insults_from = plan.insult_threshold or self._insults_from
        attempt = (plan, where, since, insults_from)
        tenant = plan.adapter.rpartition("@")[0]
        # Taken out until all is well: what an error leaves half counted must not be asked again.
        begun, events = self._begun.pop(tenant, (None, None))
        if events is None or begun != attempt:
            events = CanaryEvents(self._folder / EVENTS, where, plan, since, insults_from)
        found = events.look(
            self._registry.clock(),
            waiting_since=rollout.since if rollout.phase == "ready" else None,
            stops=stops,
        )
        self._begun[tenant] = (attempt, events)
        return found, events

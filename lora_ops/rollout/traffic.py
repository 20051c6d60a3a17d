"""What a gateway kept of a rollout's traffic: pairs of its shadow, and events of its canary."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.folders import writable_by_others
from lora_ops.line_files import read_line_files
from lora_ops.records.record import Record
from lora_ops.records.rollout import Rollout
from lora_ops.registry.reports import Report, make
from lora_ops.registry.route_entries import times_stopped
from lora_ops.registry.store import Registry
from lora_ops.rollout.canary import Arm, CanaryRequest, Look, look
from lora_ops.rollout.gateways import GatewayProbe
from lora_ops.rollout.kept_looks import LookKeeper
from lora_ops.rollout.pairs import read_pairs
from lora_ops.rollout.shadow_report import shadow_report
from lora_ops.rollout.shadow_verdict import ShadowLook, look_at_pairs
from lora_ops.rollout.verdicts import Verdict

logger = logging.getLogger(__name__)

EVENTS, PAIRS = "events", "pairs"
HOUR = 3600.0
# A line that no gateway wrote must not stop a rollout's way back. NaN is above every number here.
WHOLE = (
    "status IS NOT NULL AND seconds >= 0 AND seconds < 'Infinity'::DOUBLE AND generated_tokens >= 0 "
    "AND adapter IS NOT NULL AND digest IS NOT NULL"
)
# Production that was stopped, or has expired, was asked nothing. As its errors such refusals would make any
# canary look good.
ASKED = "NOT (arm = 'control' AND coalesce(code, '') = 'model_not_served')"


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


class ArmEvent(Record):
    """The fields of an event of the gateway that say something of a canary; see `serving.events.Event`."""

    id: str
    time: datetime
    request_id: str
    tenant: str
    route: str | None = None
    key: str | None = None
    unit: str | None = None
    arm: Arm | None = None
    fallback: str | None = None
    adapter: str
    digest: str
    status: int
    code: str | None = None
    seconds: float
    generated_tokens: int
    answer_task: float | None = None
    answer_insults: float | None = None
    answer_identifiers: int | None = None


def asks_by_name(rollout: Rollout) -> bool:
    """Return whether its shadow rests on requests for the version's name: no answer can be compared.

    Nothing is in production, and replayed rows, which the base model answers, too, don't count here.
    """
    return rollout.plan.is_alone and not rollout.plan.accept_replay


class GatewayTraffic:
    """The evidence of a rollout, read anew at each look from the files of the gateways in one folder.

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
        plan, requests = rollout.plan, list(self._named(rollout))
        found = look(
            plan,
            requests,
            now=self._registry.clock(),
            since=rollout.began,
            insults_from=rollout.plan.insult_threshold or self._insults_from,
        )
        if found.verdict.decision == "roll back":
            return found
        answered = [one for one in requests if 200 <= one.status < 300]
        hours = len({int(one.at.timestamp() // HOUR) for one in answered})
        said = f"{len(answered)} requests in {hours} different hours asked for {plan.adapter} by its name"
        if len(answered) < plan.shadow.requests or hours < plan.shadow.hours:
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
        found = look(
            rollout.plan,
            self.requests(rollout, since),
            now=self._registry.clock(),
            since=since,
            waiting_since=rollout.since if rollout.phase == "ready" else None,
            insults_from=rollout.plan.insult_threshold or self._insults_from,
        )
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
        tenant = rollout.plan.adapter.rpartition("@")[0]
        where = (
            f"tenant = '{tenant}' AND arm IS NOT NULL AND unit IS NOT NULL AND time >= '{since.isoformat()}' "
            f"AND {WHOLE} AND {ASKED}"
        )
        # Canary and control are of the same time. While production answers nobody the canary says nothing.
        plan = rollout.plan
        stopped = [] if plan.is_alone else times_stopped(self._registry.log, plan.against)
        for one in self._read(where):
            if not any(start <= one.at and (end is None or one.at <= end) for start, end in stopped):
                yield one

    def _named(self, rollout: Rollout) -> Iterator[CanaryRequest]:
        """Yield the requests of this attempt that asked for the version by its name."""
        plan = rollout.plan
        where = (
            f"route = 'pinned' AND adapter = '{plan.adapter}' AND digest = '{plan.content_digest}' "
            f"AND unit IS NOT NULL AND time >= '{rollout.began.isoformat()}' AND {WHOLE}"
        )
        for one in self._read(where):
            yield replace(one, arm="canary")

    def _read(self, where: str) -> Iterator[CanaryRequest]:
        folder = self._folder / EVENTS
        self._warn_of_other_writers()
        if not any(folder.glob(f"{EVENTS}-*.jsonl")):
            return
        rows: list[dict[Any, Any]] = read_line_files(folder, EVENTS, ArmEvent, where).to_dict("records")
        for one in rows:
            identifiers, task = _number(one["answer_identifiers"]), _number(one["answer_task"])
            yield CanaryRequest(
                at=one["time"].to_pydatetime(),
                unit=one["unit"],
                key=None if pd.isna(one["key"]) else one["key"],
                arm=one["arm"],
                adapter=one["adapter"],
                digest=one["digest"],
                status=int(one["status"]),
                seconds=float(one["seconds"]),
                tokens=int(one["generated_tokens"]),
                insults=_number(one["answer_insults"]),
                identifiers=None if identifiers is None else int(identifiers),
                is_task=None if task is None else task >= 1,
                is_loading=one["fallback"] == "loading",
            )


def _number(value: Any) -> float | None:
    """Return a number of a table, where a missing one is NaN."""
    return None if pd.isna(value) else float(value)

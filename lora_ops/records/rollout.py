"""A rollout: the plan that a person started, and how far it came by the entries of the audit log."""

import re
from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from lora_ops.records.record import Record, Sha256
from lora_ops.settings.detectors import DetectorSettings
from lora_ops.settings.rollout import CanarySettings, MarginSettings, RolloutSettings, ShadowSettings

Phase = Literal["shadow", "canary", "ready", "done", "returned", "aborted"]
"""`ready`: its evidence is frozen and it waits for approvals; `returned`: a breach took it back."""
RUNNING: frozenset[Phase] = frozenset({"shadow", "canary", "ready"})


LENIENT = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
"""What a newer release settles besides must not stop an older reader of the log."""


class ShadowPlan(ShadowSettings):
    """`rollout.shadow` as it was when the rollout began."""

    model_config = LENIENT


class CanaryPlan(CanarySettings):
    """`rollout.canary` as it was when the rollout began."""

    model_config = LENIENT


class Margins(MarginSettings):
    """`rollout.margins` as they were when the rollout began."""

    model_config = LENIENT


class RolloutPlan(Record):
    """What was decided when the rollout began; a later edit of params.yaml loosens nothing of it."""

    adapter: str = Field(description="`tenant@number`")
    content_digest: Sha256
    against: str = Field(
        description="the version in production that it is compared with; the base model's id where none is"
    )
    against_digest: Sha256
    shadow: ShadowPlan
    canary: CanaryPlan
    margins: Margins
    alpha: float = Field(gt=0, lt=0.5)
    key_percent: float = Field(100, gt=0, le=100)
    insult_threshold: float | None = Field(
        None,
        description="of the canary's answers; None, of an earlier release: that of the day",
    )
    accept_replay: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether no version was in production, so that its users are compared with nobody's."""
        return re.fullmatch(r".+@[0-9]+", self.against) is None

    @property
    def looser(self) -> str:
        """Which settings ask for less than the defaults do, in words; empty where none does.

        Whoever approves must see by what a version was judged: a margin of 0.99 is never breached.
        """
        usual = RolloutSettings()
        upper = [(f"margins.{name}", getattr(self.margins, name), limit) for name, limit in usual.margins]
        upper += [("alpha", self.alpha, usual.alpha)]
        usually = DetectorSettings().insult_threshold
        upper += [("insult_threshold", self.insult_threshold or usually, usually)]
        if self.is_alone:
            limit = usual.canary.first_p95_seconds
            upper += [("canary.first_p95_seconds", self.canary.first_p95_seconds, limit)]
        lower = [
            ("canary.hours", self.canary.hours, usual.canary.hours),
            ("canary.users", self.canary.users, usual.canary.users),
            ("shadow.hours", self.shadow.hours, usual.shadow.hours),
            ("shadow.requests", self.shadow.requests, usual.shadow.requests),
        ]
        # Short periods make many units of one user, short windows and few controls hide what comes late.
        lower += [
            ("canary.steps", len(self.canary.steps), len(usual.canary.steps)),
            ("canary.window_seconds", self.canary.window_seconds, usual.canary.window_seconds),
            ("canary.period_hours", self.canary.period_hours, usual.canary.period_hours),
        ]
        upper.append(("canary.waiting", self.canary.waiting, usual.canary.waiting))
        found = [one for one in upper if one[1] > one[2]] + [one for one in lower if one[1] < one[2]]
        said = ", ".join(f"{name} {value:g} (usually {default:g})" for name, value, default in found)
        return f"looser than usual: {said}" if said else ""

    @classmethod
    def of(
        cls,
        adapter: str,
        digest: str,
        against: str,
        against_digest: str,
        settings: RolloutSettings,
        insult_threshold: float | None = None,
    ) -> "RolloutPlan":
        """Return the plan of one version beside another one, by the settings of this moment."""
        return cls(
            adapter=adapter,
            content_digest=digest,
            against=against,
            against_digest=against_digest,
            shadow=ShadowPlan.model_validate(settings.shadow.model_dump()),
            canary=CanaryPlan.model_validate(settings.canary.model_dump()),
            margins=Margins.model_validate(settings.margins.model_dump()),
            alpha=settings.alpha,
            key_percent=settings.key_percent,
            insult_threshold=insult_threshold,
            accept_replay=settings.accept_replay,
        )


class HandRules(Record):
    """The rules by which a person gave a version users by hand; the entry of the route names them."""

    model_config = LENIENT

    rollout: Literal["required", "optional"] = Field(
        "required", description="`registry.evidence.rollout`; optional: people give any version any share"
    )
    first_step: float = Field(
        CanarySettings().steps[0],
        gt=0,
        le=100,
        description="of `rollout.canary.steps`, per cent: the most that a version gets without a rollout",
    )


class Rollout(Record):
    """How far a rollout is.

    Attributes:
        step: index of the canary's step that runs; 0 before the canary.
        since: when the phase or its step began.
        began: when this attempt began; traffic of before doesn't count.
        canary_since: when the first step of the canary began.
        is_mirrored: whether this attempt gave the version its share of copies; what people change then stays.
        seq: the last entry of the audit log about it: whoever decides states it, so that of two only one does.
        ended_at_seq: the last entry by which an attempt went back or was ended by people; 0: none did.
        said: the verdict or the reason of the last change, in words.
    """

    plan: RolloutPlan
    phase: Phase
    step: int = Field(0, ge=0)
    since: datetime
    began: datetime
    canary_since: datetime | None = None
    is_mirrored: bool = False
    paused: bool = False
    seq: int = Field(ge=1)
    started_by: str
    attempt: int = Field(1, ge=1)
    ended_at_seq: int = Field(0, ge=0)
    said: str = ""

    @property
    def terms(self) -> str:
        """What people who read a verdict must know besides: it is not the first try, or settings are loose."""
        tries = f"attempt {self.attempt}" if self.attempt > 1 else ""
        return "; ".join(filter(None, (tries, self.plan.looser)))

    @property
    def is_running(self) -> bool:
        """Whether it still goes on or back."""
        return self.phase in RUNNING

    @property
    def percent(self) -> float:
        """Per cent of the users that the canary answers by this plan; 0 outside of it."""
        if self.phase == "canary":
            return self.plan.canary.steps[self.step]
        return self.plan.canary.waiting if self.phase == "ready" else 0

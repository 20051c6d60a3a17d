"""One round of a rollout: look at the evidence, and go on, back, or stay.

All state is in the registry, so a round may be killed anywhere: the next one finds the version and its route as
they are, and does what is lacking. A phase and its route change in one transaction. What goes back never waits
for what goes on: a breach is acted on while the rollout is paused or waits for approvals, too.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, with_text
from lora_ops.records.rollout import Phase, Rollout, RolloutPlan
from lora_ops.records.route import RouteRecord, ShadowRoute
from lora_ops.registry import lifecycle, rollouts, routes
from lora_ops.registry.changes import LostRace
from lora_ops.registry.eligibility import reasons_against, stop_reason
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import Report
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.rollouts import Reroute
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Version, parse_reference
from lora_ops.rollout.canary import Look
from lora_ops.rollout.shadow_verdict import settings_plan
from lora_ops.rollout.verdicts import Verdict
from lora_ops.settings.rollout import RolloutSettings


class Evidence(Protocol):
    """What the traffic says at each look."""

    def shadow(self, rollout: Rollout) -> Verdict:
        """Return the verdict on the pairs of this attempt."""

    def canary(self, rollout: Rollout) -> Look:
        """Return the verdict on the canary's users since its first step."""

    def shadow_report(self, rollout: Rollout) -> Report:
        """Return the pairs as a report to be filed.

        Raises:
            LoraOpsError: they are none.
        """

    def canary_report(self, rollout: Rollout, look: Look) -> Report:
        """Return the canary's requests as a report to be filed; `look` is what they say.

        Raises:
            LoraOpsError: they are none.
        """

    def unanswered(self, rollout: Rollout) -> str | None:
        """Return why no users may be sent to the version yet, in words: a gateway doesn't answer with it.

        It was asked just now. None: each one answers.
        """


@dataclass(frozen=True)
class Round:
    """What one round did.

    Attributes:
        rollout: as it is afterwards.
        said: what was decided and why, in words.
        changed: whether anything was.
        look: of the canary, where it was looked at.
    """

    rollout: Rollout
    said: str
    changed: bool = False
    look: Look | None = None


def new_plan(
    registry: Registry, reference: str, settings: RolloutSettings, insult_threshold: float | None = None
) -> RolloutPlan:
    """Return the plan of a version's rollout by the settings of this moment.

    Raises:
        LoraOpsError: unknown version, or one that can't be rolled out.
    """
    version = registry.get_exact(reference)
    if version.state not in ("validated", "shadow", "canary"):
        raise Refused(
            f"{version.id} is '{version.state}': a rollout begins with a version that is 'validated' "
            f"(`lora-ops gate {version.id}`, `lora-ops registry promote {version.id} validated`)."
        )
    against = next(reasons_against(registry, version.summary, registry.clock()), None)
    if against and version.state != "validated":  # which may not serve before it is in shadow
        raise Refused(f"{against}.")
    return settings_plan(registry, version.id, settings, insult_threshold)


def start(
    registry: Registry,
    reference: str,
    settings: RolloutSettings,
    *,
    actor: str,
    reason: str,
    insult_threshold: float | None = None,
) -> Rollout:
    """Begin a version's rollout, or one that went back once more; the first round brings it into shadow.

    Raises:
        LoraOpsError: as `new_plan`, or no role, no reason, or another rollout of the tenant runs.
    """
    plan = new_plan(registry, reference, settings, insult_threshold)
    version = registry.get(plan.adapter)
    if version.state == "validated":
        _, missing = missing_for(registry, version.id)
        if missing:
            raise Refused(f"{version.id} can't go into shadow yet; missing: {'; '.join(missing)}.")
    return rollouts.begin(registry, plan, actor=actor, reason=reason)


def abort(registry: Registry, rollout: Rollout, *, actor: str, reason: str) -> Rollout:
    """End a rollout: production answers everybody at once; the version stays in its state.

    Raises:
        LoraOpsError: nobody of the team, no reason, or somebody changed the rollout meanwhile; or W&B, which
            has the log, does not take it, and the version is stopped on this machine until then.
    """
    try:
        return rollouts.move(registry, rollout, "aborted", reason, actor=actor, route=_without(rollout.plan))
    except LoraOpsError as error:
        raise _stopped_here(registry, rollout, error, actor, reason) from error


def one_round(registry: Registry, rollout: Rollout, evidence: Evidence) -> Round:
    """Look once, and do what the evidence and the registry allow.

    Raises:
        LoraOpsError: somebody changed the rollout meanwhile, or the registry can't be changed.
    """
    version = registry.get_exact(rollout.plan.adapter, whole=False)
    ended = _ended(registry, rollout, version)
    if ended:
        return _moved(registry, rollout, *ended, route=_without(rollout.plan))
    if rollout.phase == "shadow":
        return _shadow(registry, rollout, version, evidence)
    return _canary(registry, rollout, version, evidence)


def _ended(registry: Registry, rollout: Rollout, version: Version) -> tuple[Phase, str] | None:
    """Return in which phase a rollout ends by what became of its versions, and why; None: it goes on."""
    plan = rollout.plan
    if version.state == "production":
        return "done", f"{version.id} is in production"
    if version.state in CLOSED or version.state == "superseded":
        return "aborted", f"{version.id} was {version.state}"
    if version.summary.content_digest != plan.content_digest:
        return "aborted", f"{version.id} is of other content than when the rollout began"
    number = registry.named(version.tenant, "production")
    current = f"{version.tenant}@{number}" if number else "nothing"
    if current != ("nothing" if plan.is_alone else plan.against):
        return "aborted", f"{current} is in production now, and this rollout compares with {plan.against}"
    if version.state != "validated":  # which does not serve yet
        against = next(reasons_against(registry, version.summary, registry.clock()), None)
        if against and against == stop_reason(registry, version.summary):
            against = f"{version.id} was stopped"  # the way out of that would stay in the log after its end
        if against:
            return "returned", against
    return None


def _shadow(registry: Registry, rollout: Rollout, version: Version, evidence: Evidence) -> Round:
    plan = rollout.plan
    if version.state == "validated":
        if rollout.paused:
            return Round(rollout, "paused before its shadow")
        lifecycle.promote(registry, version.id, "shadow", actor=rollout.started_by, reason=_by(rollout))
    # Without a version in production no request is answered that could be asked again.
    percent = 0.0 if plan.is_alone else plan.shadow.percent
    wanted = ShadowRoute(number=version.number, percent=percent) if percent else None
    if not rollout.is_mirrored:
        rollout = rollouts.move(
            registry,
            rollout,
            "shadow",
            f"{percent:g} % of the requests are asked again" if percent else _answers_by_name(plan),
            actor=rollout.started_by,
            route=lambda route: route.model_copy(update={"shadow": wanted}),
        )
        return Round(rollout, rollout.said, changed=True)
    found = evidence.shadow(rollout)
    if found.decision == "roll back":
        return _moved(registry, rollout, "returned", f"shadow: {found.reason}", route=_without(plan))
    silent = _silent(registry, plan)
    if silent:
        return Round(rollout, silent)
    share = _route(registry, version).shadow
    if wanted and share != wanted:
        # As in the canary: nothing goes on by itself against what people changed.
        mine = share.percent if share and share.number == version.number else 0
        return Round(
            rollout,
            f"hold: the route asks {version.id} for {mine:g} % of the requests again, and the plan "
            f"{percent:g} %: `lora-ops route shadow {version.id} --percent {percent:g}` puts it back, "
            "`lora-ops rollout abort` ends the rollout",
        )
    if found.decision == "hold":
        return Round(rollout, str(found))
    if rollout.paused:
        return Round(rollout, f"paused; the evidence says {found}")
    reports = [evidence.shadow_report(rollout)] if version.state == "shadow" else []
    lacking = [one for report in reports for one in lacks(report.document, registry.least)]
    if lacking:
        return Round(rollout, f"hold: {'; '.join(lacking)}")
    # The route stays as it is until the version has answered: a server may say that it is loaded and fail then.
    if unanswered := evidence.unanswered(rollout):
        return Round(rollout, f"hold: {unanswered}")
    if version.state == "shadow":
        lifecycle.promote(
            registry, version.id, "canary", actor=rollout.started_by, reason=_by(rollout), evidence=reports
        )
    return _moved(
        registry, rollout, "canary", f"shadow: {found.reason}", route=_with_canary(rollout, version, 0)
    )


def _answers_by_name(plan: RolloutPlan) -> str:
    """Return where the requests of a shadow come from that has no version in production, in words."""
    tenant = plan.adapter.rpartition("@")[0]
    if plan.accept_replay:
        return f"nothing is in production: `lora-ops rollout replay {plan.adapter}` asks it and {plan.against}"
    return f"'{tenant}' has nothing in production: {plan.adapter} answers whoever asks for it by this name"


def _canary(registry: Registry, rollout: Rollout, version: Version, evidence: Evidence) -> Round:
    plan, look = rollout.plan, evidence.canary(rollout)
    found, numbers = look.verdict, _numbers(look)
    if found.decision == "roll back":
        return _moved(
            registry, rollout, "returned", f"canary: {found.reason}", look, route=_without(plan), **numbers
        )
    share = _route(registry, version).canary
    if share is None or (share.number, share.percent) != (version.number, rollout.percent):
        # Somebody cleared or changed it by hand: nothing goes on by itself against that.
        return Round(
            rollout,
            f"hold: the route gives {version.id} {share.percent if share else 0:g} %, and this step "
            f"{rollout.percent:g} %: `lora-ops route canary {version.id} --percent {rollout.percent:g}` puts "
            "it back, `lora-ops rollout abort` ends the rollout",
            look=look,
        )
    if rollout.phase == "ready":
        return _ready(registry, rollout, version, look, evidence)
    silent = _silent(registry, plan)
    if silent:
        return Round(rollout, silent, look=look)
    if found.decision == "hold":
        return Round(rollout, str(found), look=look)
    left = plan.canary.hours - (registry.clock() - rollout.since).total_seconds() / 3600
    if left > 0:
        return Round(rollout, f"hold: {found.reason}; this step takes {left:.1f} hours more", look=look)
    if rollout.paused:
        return Round(rollout, f"paused; the evidence says {found}", look=look)
    step = rollout.step + 1
    if step < len(plan.canary.steps):
        if unanswered := evidence.unanswered(rollout):
            return Round(rollout, f"hold: {unanswered}", look=look)
        reroute = _with_canary(rollout, version, step)
        return _moved(registry, rollout, "canary", str(found), look, step=step, route=reroute, **numbers)
    report = evidence.canary_report(rollout, look)
    lacking = list(lacks(report.document, registry.least))
    if lacking:
        return Round(rollout, f"hold: {'; '.join(lacking)}", look=look)
    if unanswered := evidence.unanswered(rollout):
        return Round(rollout, f"hold: {unanswered}", look=look)
    # Before the phase that says so: people approve what is filed.
    lifecycle.file_evidence(registry, version.id, report, actor=rollout.started_by)
    reroute = _with_canary(rollout, version, None)
    return _moved(registry, rollout, "ready", str(found), look, step=rollout.step, route=reroute, **numbers)


def _ready(registry: Registry, rollout: Rollout, version: Version, look: Look, evidence: Evidence) -> Round:
    """Promote once nothing is missing: the evidence is frozen, and two people have signed what they saw."""
    _, missing = missing_for(registry, version.id)
    if missing:
        return Round(rollout, f"ready; missing: {'; '.join(missing)}", look=look)
    if rollout.paused:
        return Round(rollout, "paused; nothing is missing for production", look=look)
    if look.ratio.broken:  # a canary that takes its gateway down loses its users' events, too
        return Round(rollout, f"hold: {look.ratio}", look=look)
    if unanswered := evidence.unanswered(rollout):
        return Round(rollout, f"hold: {unanswered}", look=look)
    lifecycle.promote(
        registry,
        version.id,
        "production",
        actor=rollout.started_by,
        reason=_by(rollout),
        expect="none" if rollout.plan.is_alone else rollout.plan.against,
    )
    return _moved(
        registry, rollout, "done", f"{version.id} is in production", look, route=_without(rollout.plan)
    )


def _silent(registry: Registry, plan: RolloutPlan) -> str | None:
    """Return a hold where production answers nobody: there is nothing to compare with then; else None.

    What is ready goes on: its evidence is from before, and approved.
    """
    if plan.is_alone:
        return None
    against = registry.get_exact(plan.against, whole=False)
    reason = next(reasons_against(registry, against.summary, registry.clock()), None)
    return f"hold: production answers nobody, so that nothing compares with it ({reason})" if reason else None


def _moved(
    registry: Registry,
    rollout: Rollout,
    phase: Phase,
    said: str,
    look: Look | None = None,
    *,
    route: Reroute,
    step: int = 0,
    **facts: Any,
) -> Round:
    actor = rollout.started_by
    try:
        now = rollouts.move(registry, rollout, phase, said, actor=actor, step=step, route=route, **facts)
    except LoraOpsError as error:
        if phase != "returned":
            raise
        raise _stopped_here(registry, rollout, error, actor, said) from error
    return Round(now, said, changed=True, look=look)


def _stopped_here(
    registry: Registry, rollout: Rollout, error: LoraOpsError, actor: str, reason: str
) -> LoraOpsError:
    """Stop a canary on this machine while W&B does not take that it goes back, and return the error to raise.

    Users must not wait for W&B. Once it answers, it takes the stop, and the next round takes the rollout back.
    """
    adapter = rollout.plan.adapter
    knows_better = isinstance(error, (Refused, NotFound, Damaged, LostRace))
    if not registry.shares_log or knows_better or rollout.phase not in ("canary", "ready"):
        return error
    try:
        if stop_reason(registry, registry.get_exact(adapter, whole=False).summary) is None:
            routes.stop(registry, adapter, actor=actor, reason=f"its rollout went back: {reason}")
    except LoraOpsError:
        return error
    said = str(error).removesuffix("; nothing was changed.").rstrip(".")
    return with_text(
        error,
        f"{adapter} answers nobody on this machine any more; W&B has not taken that its rollout ends: {said}. "
        f"Until then other machines go on with it: `lora-ops route stop {adapter} --reason TEXT` there.",
    )


def _with_canary(rollout: Rollout, version: Version, step: int | None) -> Reroute:
    """Return what gives the canary the share of a step; None: the share while approvals are awaited."""
    plan = rollout.plan
    percent = plan.canary.waiting if step is None else plan.canary.steps[step]

    def reroute(route: RouteRecord) -> RouteRecord:
        return routes.with_canary(route, version.number, percent).model_copy(update={"shadow": None})

    return reroute


def _without(plan: RolloutPlan) -> Reroute:
    """Return what takes a version's canary, shadow and pins out of a route, and leaves what is others'."""
    _, number = parse_reference(plan.adapter)

    def reroute(route: RouteRecord) -> RouteRecord:
        return route.model_copy(
            update={
                "canary": None if route.canary and route.canary.number == number else route.canary,
                "shadow": None if route.shadow and route.shadow.number == number else route.shadow,
                "users": {user: one for user, one in route.users.items() if one != number},
                "segments": {segment: one for segment, one in route.segments.items() if one != number},
            }
        )

    return reroute


def _route(registry: Registry, version: Version) -> RouteRecord:
    return routes.current(registry, version.tenant).route


def _by(rollout: Rollout) -> str:
    return f"rollout (attempt {rollout.attempt}): {rollout.said}"


def _numbers(look: Look) -> dict[str, Any]:
    """Return what an entry keeps of a look."""
    return {
        "canary_users": look.canary_users,
        "control_users": look.control_users,
        "guardrails": [one._asdict() for one in look.guardrails],
    }

"""Sentences, plots and tables of notebooks/07_canary.ipynb: what the users of one attempt's canary showed."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from lora_ops.clock import to_the_minute
from lora_ops.plots import Plot
from lora_ops.records.approval import Approval
from lora_ops.records.evidence import Evidence
from lora_ops.records.rollout import Phase
from lora_ops.registry.approvals import approvals_of
from lora_ops.registry.backends import open_registry
from lora_ops.rollout.attempts import Attempt, attempt_of, no_rollout, serving_folder
from lora_ops.rollout.canary import LAG_SECONDS, TITLES, CanaryRequest, Look, looks
from lora_ops.rollout.e_values import combined
from lora_ops.rollout.sequence_plots import AMOUNTS, MetricLooks, Seen, nothing, plot_sequences
from lora_ops.rollout.shadow_page import number
from lora_ops.rollout.traffic import GatewayTraffic
from lora_ops.settings.params import load_settings

LOOKS = 40
"""Looks that a plot shows; the verdict is the same however many they are."""
SAID = 12
"""Forecasts that the table shows."""
SCALES = {"P95 latency": "canary / control", "tokens": AMOUNTS}
ARMS = ("canary", "control")


class TimedLook(NamedTuple):
    """What was known at one moment."""

    at: datetime
    look: Look


class Step(NamedTuple):
    """A part of the canary in which its share of the users was the same; the last one may go on."""

    phase: Phase
    percent: float
    begun: datetime
    ended: datetime


@dataclass(frozen=True)
class CanaryPage:
    """What the page of a canary shows, read once.

    Attributes:
        tenant: whose.
        attempt: None where no rollout was ever started.
        requests: of canary and control group in this attempt, oldest first.
        looks: what was known at more and more moments; the last one is the verdict.
        frozen: the report that was filed; None before that.
        approvals: who agreed to production.
        folder: of the gateway's files.
    """

    tenant: str
    attempt: Attempt | None
    requests: Sequence[CanaryRequest]
    looks: Sequence[TimedLook]
    frozen: Evidence | None
    approvals: Sequence[Approval]
    folder: Path

    @property
    def last(self) -> Look | None:
        """The look that counts; None before a canary."""
        return self.looks[-1].look if self.looks else None

    @property
    def steps(self) -> list[Step]:
        """The canary's steps in order."""
        if self.attempt is None:
            return []
        found: list[Step] = []
        for turn in self.attempt.turns:
            rollout = turn.rollout
            if found and (found[-1].phase, found[-1].percent) == (rollout.phase, rollout.percent):
                continue  # it was paused or resumed
            if found:
                found[-1] = found[-1]._replace(ended=rollout.since)
            if rollout.phase in ("canary", "ready"):
                found.append(Step(rollout.phase, rollout.percent, rollout.since, self.attempt.looked_at))
        return found


def open_canary(
    root: Path,
    tenant: str,
    version: str | None = None,
    attempt: int | None = None,
    folder: str | None = None,
) -> CanaryPage:
    """Read the canary of one attempt from the audit log and from the events of the gateway.

    Args:
        root: of the repository.
        tenant: whose.
        version: the exact version; default: the one whose rollout changed last.
        attempt: which attempt of its rollout; default: the last one.
        folder: of the gateway's files; default: `serving.path`.

    Raises:
        LoraOpsError: no such tenant, version, attempt or folder; or a file can't be read.
    """
    settings = load_settings(root)
    settings.tenant(tenant)
    files = serving_folder(root / settings.serving.path, folder, root)
    with closing(open_registry(root)) as registry:
        found = attempt_of(registry, tenant, version, attempt)
        if found is None:
            return CanaryPage(tenant, None, (), (), None, (), files)
        exact = registry.get_exact(found.plan.adapter, whole=False)
        since = found.rollout.canary_since
        threshold = settings.detectors.insult_threshold
        traffic = GatewayTraffic(registry, files, threshold)
        requests = list(traffic.requests(found.rollout, since)) if since else []
        requests = [one for one in requests if one.at <= found.looked_at]
        return CanaryPage(
            tenant,
            found,
            requests,
            tuple(_looks(found, requests, since, threshold)) if since else (),
            found.filed.get("canary"),
            approvals_of(registry, exact, registry.history(exact.id)),
            files,
        )


def _looks(
    attempt: Attempt, requests: Sequence[CanaryRequest], since: datetime, threshold: float
) -> Iterator[TimedLook]:
    """Yield what a controller would have found at more and more moments, those of its decisions among them."""
    plan, ready = attempt.plan, attempt.began("ready")
    wait = timedelta(seconds=plan.canary.window_seconds + LAG_SECONDS)
    places = {(len(requests) - 1) * share // LOOKS for share in range(1, LOOKS + 1)} if requests else set()
    spread = [requests[place].at + wait for place in places]
    decided = [one.rollout.since for one in attempt.turns]
    moments = sorted({one for one in (*spread, *decided) if since < one < attempt.looked_at})
    moments.append(attempt.looked_at)
    seen = looks(plan, requests, moments, since=since, waiting_since=ready, insults_from=threshold)
    yield from map(TimedLook, moments, seen)


# What the notebook shows, in its order.


def asked(page: CanaryPage) -> Iterator[str]:
    """Yield what was planned and what came, a sentence each; what to do where nothing came."""
    if page.attempt is None:
        yield no_rollout(page.tenant)
        return
    plan, rollout, last = page.attempt.plan, page.attempt.rollout, page.last
    steps = ", ".join(f"{one:g}" for one in plan.canary.steps)
    control = (
        "Nothing was in production when it began, so that there is no control group, and its guardrails are "
        "limits."
        if plan.is_alone
        else f"As many users are the control group, which {plan.against} answers."
    )
    yield (
        f"{page.attempt.name} is to answer {steps} % of the users, step by step. {control} Each step takes at "
        f"least {plan.canary.hours:g} hours and {plan.canary.users} users."
    )
    if plan.looser:
        yield f"Its plan is {plan.looser}."
    if last is None:
        yield (
            f"There has been no canary in this attempt: it is '{rollout.phase}'. "
            f"`lora-ops rollout run` takes a rollout on; 06_shadow shows what its pairs say."
        )
        return
    yield (
        f"{last.canary_users} users of the canary and {last.control_users} of the control group are counted, "
        f"with {len(page.requests)} requests. A user counts once they have had {plan.canary.window_seconds:g} "
        "seconds."
    )
    if not page.requests:
        yield (
            f"No event of this canary is in {page.folder / 'events'}: its users have sent nothing yet, or the "
            "page was made where the gateway's files are not (`lora-ops rollout report --folder`)."
        )
    source = f"the report that was filed has the digest {page.frozen.sha256[:12]}…" if page.frozen else ""
    yield f"Decisions are read from the audit log, users from {page.folder}{f'; {source}' if source else ''}."


def step_table(page: CanaryPage) -> pd.DataFrame:
    """Return one row for each step: when, how long, and how many users and requests either arm had."""
    columns = [
        "step",
        "from (UTC)",
        "hours",
        *(f"{arm} {what}" for what in ("users", "requests") for arm in ARMS),
    ]
    rows = []
    for step in page.steps:
        mine = [one for one in page.requests if step.begun <= one.at < step.ended and not one.says_nothing]
        of_arm = {arm: [one for one in mine if one.arm == arm] for arm in ARMS}
        rows.append(
            [
                f"{step.percent:g} %" + (" (waits for approvals)" if step.phase == "ready" else ""),
                f"{step.begun:%Y-%m-%d %H:%M:%S}",
                f"{(step.ended - step.begun).total_seconds() / 3600:.2f}",
                *(len({one.unit for one in of_arm[arm]}) for arm in ARMS),
                *(len(of_arm[arm]) for arm in ARMS),
            ]
        )
    return pd.DataFrame(rows, columns=columns)


def plot_steps(page: CanaryPage) -> Plot:
    """Draw the canary's share over time, and how many users of either arm were counted."""
    if not page.steps or not page.looks:
        return nothing("The canary's share of the users", "no canary yet")
    figure = Plot(figsize=(8, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    times = [one.begun for one in page.steps] + [page.steps[-1].ended]
    shares = [one.percent for one in page.steps]
    above.step(times, [*shares, shares[-1]], where="post", color="tab:blue")
    for step in page.steps:
        above.annotate(f"{step.percent:g} %", (step.begun, step.percent), fontsize=8, va="bottom")
    above.set(title="The canary's share of the users", ylabel="per cent", ylim=(0, 108))
    for arm, colour, style in (("canary", "tab:blue", "-"), ("control", "0.4", "--")):
        counts = [one.look.canary_users if arm == "canary" else one.look.control_users for one in page.looks]
        below.plot([one.at for one in page.looks], counts, style, color=colour, label=arm)
    days = {f"{one:%Y-%m-%d}" for one in (times[0], times[-1])}
    below.set(ylabel="users counted", xlabel=f"UTC, {' to '.join(sorted(days))}")
    below.yaxis.set_major_locator(MaxNLocator(integer=True))
    below.tick_params(axis="x", labelrotation=20)
    below.legend(fontsize=8)
    return figure


def assignment(page: CanaryPage) -> str:
    """Return whether users were shared as the route says."""
    if page.last is None:
        return "There is no assignment to check yet."
    if page.attempt and page.attempt.plan.is_alone:
        return "There is no control group: nothing was in production when the rollout began."
    ratio = str(page.last.ratio)
    return f"{ratio[0].upper()}{ratio[1:]}."


def plot_guardrails(page: CanaryPage) -> Plot:
    """Draw each guardrail's interval and evidence as users came; dotted lines are the steps."""
    alpha = page.attempt.plan.alpha if page.attempt else 0.05
    return plot_sequences(guardrail_looks(page), alpha=alpha, unit="users of either arm", marks=_marks(page))


def guardrail_looks(page: CanaryPage) -> list[MetricLooks]:
    """Return each guardrail at every look."""
    found: dict[str, MetricLooks] = {}
    for _, seen in page.looks:
        for one in seen.guardrails:
            equal = 1.0 if one.name == "P95 latency" else 0.0
            scale = SCALES.get(one.name, "share of requests")
            before = found.get(one.name, MetricLooks(one.name, scale, (), one.margin, equal))
            now = Seen(one.users, *one.difference, one.breach, one.non_inferior)
            found[one.name] = before._replace(seen=(*before.seen, now))
    return [one.of_amounts() if one.scale == AMOUNTS else one for one in found.values()]


def _marks(page: CanaryPage) -> list[tuple[int, str]]:
    at = {one.at: one.look for one in page.looks}
    marks = []
    for step in page.steps[1:]:
        if step.begun in at:
            users = next(one.users for one in at[step.begun].guardrails if one.name == "errors")
            marks.append((users, f"{step.percent:g} %"))
    return marks


def said_of_guardrails(page: CanaryPage) -> Iterator[str]:
    """Yield where each guardrail is, a sentence each."""
    if page.attempt is None or page.last is None:
        yield "There is nothing to judge yet."
        return
    for one in guardrail_looks(page):
        yield one.sentence(page.attempt.plan.alpha, "users")


def guardrail_table(page: CanaryPage) -> pd.DataFrame:
    """Return each guardrail of both arms with its interval, margin and evidence."""
    looks = {one.name: one for one in guardrail_looks(page)}
    columns = ["guardrail", *ARMS, "worse by", "allowed", "users", "evidence: worse", "evidence: not worse"]
    rows = [
        [
            TITLES.get(one.name, one.name),
            number(one.canary),
            number(one.control),
            looks[one.name].interval,
            looks[one.name].allowed,
            one.users,
            number(one.breach),
            number(one.non_inferior),
        ]
        for one in (page.last.guardrails if page.last else ())
    ]
    return pd.DataFrame(rows, columns=columns)


def decision_table(page: CanaryPage) -> pd.DataFrame:
    """Return every entry of the audit log about this attempt, with the users that it was decided by."""
    columns = ["entry", "when (UTC)", "to", "who", "users in the log", "why"]
    rows = []
    for entry, rollout in page.attempt.turns if page.attempt else ():
        share = f" {rollout.percent:g} %" if rollout.percent else ""
        did = entry.action if entry.action != "moved" else f"{rollout.phase}{share}"
        rows.append(
            [
                entry.seq,
                f"{entry.at[:19].replace('T', ' ')}",
                did,
                entry.actor,
                _users(entry.body),
                rollout.said,
            ]
        )
    return pd.DataFrame(rows, columns=columns)


def _users(body: dict[str, Any]) -> str:
    if "canary_users" not in body:
        return ""
    return f"{body['canary_users']} and {body.get('control_users', '')}"


def unlike_log(page: CanaryPage) -> Iterator[str]:
    """Yield where the files have fewer users than the log says of a decision: then lines are missing."""
    at = {one.at: one.look for one in page.looks}
    lost = []
    for entry, rollout in page.attempt.turns if page.attempt else ():
        known, body = at.get(rollout.since), entry.body
        if known is None or entry.action != "moved" or "canary_users" not in body:
            continue
        found = (known.canary_users, known.control_users)
        told = (int(body["canary_users"]), int(body.get("control_users", 0)))
        if any(now < then for now, then in zip(found, told, strict=True)):
            lost.append(
                f"Entry {entry.seq} was decided by {told[0]} users and {told[1]} of the control group, and the "
                f"files have {found[0]} and {found[1]}: lines are missing in {page.folder}. Believe the log."
            )
    yield from lost
    if not lost:
        yield "The files have all users that the log says the controller decided by."


def forecast_table(page: CanaryPage) -> pd.DataFrame:
    """Return what was known at some moments: users, and the verdict with its forecast."""
    if not page.requests:
        return pd.DataFrame(columns=["when (UTC)", "canary", "control", "verdict"])
    # A hold says something else at each look; what advances says the same until somebody acts.
    told = [one for before, one in zip((None, *page.looks), page.looks, strict=False) if _is_news(before, one)]
    every = math.ceil(len(told) / SAID)
    chosen = dict.fromkeys([*told[::every], page.looks[-1]])
    rows = [
        [f"{one.at:%m-%d %H:%M:%S}", one.look.canary_users, one.look.control_users, str(one.look.verdict)]
        for one in chosen
    ]
    return pd.DataFrame(rows, columns=["when (UTC)", "canary", "control", "verdict"])


def _is_news(before: TimedLook | None, now: TimedLook) -> bool:
    return before is None or str(before.look.verdict) != str(now.look.verdict)


def people(page: CanaryPage) -> Iterator[str]:
    """Yield who may act and who approved, a sentence each."""
    if page.attempt is None:
        yield no_rollout(page.tenant)
        return
    yield f"The controller acts in the name of {page.attempt.rollout.started_by}, who started the rollout."
    yield page.attempt.next_steps
    for one in page.approvals:
        void = f" (void: {one.void})" if one.void else ""
        yield f"{one.person} approved on {to_the_minute(one.at)}{void}."
    if not page.approvals:
        yield "Nobody has approved it yet."


def goes_back(page: CanaryPage) -> Iterator[str]:
    """Yield what would take the version back, a sentence each."""
    if page.attempt is None or page.last is None:
        yield "Without a canary there is nothing to take back."
        return
    plan, rollout = page.attempt.plan, page.attempt.rollout
    if not rollout.is_running:
        yield f"The rollout has ended ('{rollout.phase}'), so that it takes nothing back any more."
        return
    breaches = {one.name: one.breach for one in page.last.guardrails}
    allowed = "; ".join(f"{one.name} {one.allowed} ({one.scale})" for one in guardrail_looks(page))
    yield f"It goes back if it is worse by more than its margins: {allowed}."
    yield (
        f"The evidence for that is {combined(breaches):.2g}. {1 / plan.alpha:g} takes it back at once, also "
        "while it is paused or waits for approvals."
    )
    yield (
        f"It goes back, too, if {plan.adapter} is revoked, expires or can't be verified. A person ends it with "
        f"`lora-ops rollout abort {plan.adapter} --reason TEXT`."
    )


def decision(page: CanaryPage) -> Iterator[str]:
    """Yield what the canary decided and what to do next."""
    if page.attempt is None:
        yield no_rollout(page.tenant)
        return
    if page.last is None:
        yield f"{page.attempt.name} has had no canary in this attempt, so that nothing is decided."
    else:
        yield f"The canary of {page.attempt.name} says {page.last.verdict}."
    yield page.attempt.state
    if page.attempt.lacking:
        yield f"For production it needs: {'; '.join(page.attempt.lacking)}."

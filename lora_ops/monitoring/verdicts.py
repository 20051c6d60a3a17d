"""One verdict for each question about a tenant: is it fast, safe, the same as before, and worth its money?

`broken`: the command of that question says so, or users show that the version is worse. `ok`: what was measured
keeps its budget, and some of it is of the version that answers now. `look`: anything else, most often since
nobody can tell.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from lora_ops.costs.page import money
from lora_ops.monitoring.content_risk import MOST_UNSCORED, Risk, RiskVerdict
from lora_ops.monitoring.findings import Answering, Findings
from lora_ops.monitoring.kpi_addendum import how, interval_text
from lora_ops.monitoring.kpi_report import KpiReport
from lora_ops.monitoring.latency import missed
from lora_ops.records.drift import DriftMetric, DriftVerdict
from lora_ops.records.evidence import DriftEvidence
from lora_ops.records.kpi import SIMULATED, Uplift
from lora_ops.registry.counting import CLOCKS_DIFFER

State = Literal["ok", "look", "broken"]
Question = Literal["fast", "safe", "same", "worth"]
QUESTIONS: dict[Question, str] = {
    "fast": "Is it fast?",
    "safe": "Is it safe?",
    "same": "Is it the same as before?",
    "worth": "Is it worth its money?",
}
STATES: tuple[State, ...] = ("broken", "look", "ok")
"""The worst first."""
RISKS: dict[RiskVerdict, State] = {"broken": "broken", "cannot tell": "look", "kept": "ok"}
DRIFTS: dict[DriftVerdict, State] = {
    "drifted": "broken",
    "cannot tell": "look",
    "reference": "look",
    "none": "ok",
}
UPLIFTS: dict[str, State] = {"worse": "broken", "not clear": "look", "better": "ok"}
NOT_KNOWN = "not known"


class Verdict(NamedTuple):
    """What is said of one question about one tenant.

    Attributes:
        said: why, as a sentence without its full stop.
        short: the same in a few words, for the cell of a table; its lines are short.
        runbook: what to open: a page and its section.
        number, budget: what was measured and its budget, in the same unit; None where nothing was.
    """

    tenant: str
    question: Question
    state: State
    said: str
    short: str
    runbook: str
    number: float | None
    budget: float | None


class _Judged(NamedTuple):
    """A verdict as its question finds it; `section` is of the runbook."""

    state: State
    said: str
    short: str
    section: str
    number: float | None = None
    budget: float | None = None


def verdicts(found: Findings) -> Iterator[Verdict]:
    """Yield the verdicts on each tenant; drift and worth only where one of its versions answers."""
    for tenant in found.tenants:
        judged: dict[Question, _Judged] = {"fast": _fast(found, tenant), "safe": _safe(found, tenant)}
        answering = found.answering.get(tenant)
        if answering is not None:
            judged["fast"] = _with_doubt(judged["fast"], _not_asked(found, answering))
            judged["safe"] = _with_doubt(judged["safe"], _not_scored(found, answering))
            judged["same"] = _same(found, answering)
            judged["worth"] = _worth(found, tenant, answering)
        for question, one in judged.items():
            runbook = f"{found.objectives.alerts.runbooks}#{one.section}"
            said = one.said.rstrip(".")
            yield Verdict(tenant, question, one.state, said, one.short, runbook, one.number, one.budget)


def worst(told: Sequence[Verdict]) -> Verdict:
    """Return the first verdict of the worst state; what was measured comes before what was not."""
    return min(told, key=lambda one: (STATES.index(one.state), one.number is None))


def _fast(found: Findings, tenant: str) -> _Judged:
    section = "latencybudgetburn"
    if isinstance(found.latency, str):
        return _Judged("look", found.latency, NOT_KNOWN, section)
    mine = [one for one in found.latency.adapters if one.tenant == tenant]
    if not mine:
        return _Judged("look", f"Nobody asked {tenant} in this window", "nobody asked", section)
    objectives = found.objectives
    slowest = min(mine, key=lambda one: _share(one.within(objectives.latency.seconds)))
    absent = min(mine, key=lambda one: _share(one.availability))
    misses = {one.objective: one for one in missed(found.latency, objectives) if one.tenant == tenant}
    if "availability" in misses:
        answered = _share(absent.availability)
        short = f"{answered:.2%} answered\nof {absent.answer.count + absent.unanswered:,} requests"
        said = " ".join(one.said for one in misses.values())
        return _Judged("broken", said, short, "availabilitybudgetburn", answered, objectives.availability)
    share = slowest.within(objectives.latency.seconds)
    if share is None:
        return _Judged("look", f"{slowest.adapter} answered nobody in this window", "no answer", section)
    short = f"{share:.2%} in {objectives.latency.seconds:g} s"
    p95 = slowest.answer.percentile(0.95)
    if p95 is not None:
        short += f"\nP95 {p95:.3g} s"
    if "latency" in misses:
        said = misses["latency"].said
        return _Judged("broken", said, short, section, share, objectives.latency.share)
    said = (
        f"{slowest.adapter} gave {share:.2%} of {slowest.answer.count:,} answers within "
        f"{objectives.latency.seconds:g} s (objective {objectives.latency.share:.2%}), and "
        f"{absent.adapter} answered {_share(absent.availability):.2%} of its requests (objective "
        f"{objectives.availability:.2%})"
    )
    if share < objectives.latency.share or _share(absent.availability) < objectives.availability:
        said += f", which fewer than {objectives.minimum_events} requests missed: too few to decide"
        return _Judged("look", said, short, section, share, objectives.latency.share)
    return _Judged("ok", said, short, section, share, objectives.latency.share)


def _not_asked(found: Findings, answering: Answering) -> str | None:
    """Return that the numbers of speed are of other versions alone, in words, or None."""
    adapters = () if isinstance(found.latency, str) else found.latency.adapters
    mine = [one for one in adapters if one.adapter == answering.adapter]
    if any(one.answer.count for one in mine):
        return None
    why = "gave nobody a whole answer" if mine else "nobody asked it"
    return f"{answering.adapter} answers now, and {why} in this window"


def _not_scored(found: Findings, answering: Answering) -> str | None:
    """Return that most answers of the version that answers now were not scored, in words, or None."""
    risks = () if isinstance(found.risk, str) else found.risk.risks
    mine = [one for one in risks if (one.adapter, one.digest) == (answering.adapter, answering.digest)]
    if mine and all(one.scored and one.scored >= MOST_UNSCORED * one.answered for one in mine):
        return None
    scored, answered = min(((one.scored, one.answered) for one in mine), default=(0, 0))
    return f"{answering.adapter} answers now, and {scored} of its {answered} answers were scored"


def _with_doubt(one: _Judged, doubt: str | None) -> _Judged:
    """Return a verdict that is not ok where something is to be doubted; another one as it is."""
    if doubt is None or one.state != "ok":
        return one
    return one._replace(state="look", said=f"{one.said.rstrip('.')}; {doubt}")


def _share(value: float | None) -> float:
    """Return a share; of nothing it is whole, so that it is never the worst."""
    return 1.0 if value is None else value


def _safe(found: Findings, tenant: str) -> _Judged:
    section = "identifiersbudgetburn"
    if isinstance(found.risk, str):
        return _Judged("look", found.risk, NOT_KNOWN, section)
    mine = [one for one in found.risk.risks if one.tenant == tenant]
    # A version of few answers can't be judged alone: the rows of all versions say whether the tenant's budget
    # is kept. Where only the base model answered there are none.
    together = [one for one in mine if one.adapter is None] or mine
    judged = [one for one in mine if one.verdict == "broken"] or together
    if not judged:
        days = (found.risk.end - found.risk.start).days
        return _Judged("look", f"{tenant} gave no answer in the last {days} days", "no answer", section)
    one = min(judged, key=lambda each: (STATES.index(RISKS[each.verdict]), -_part_of_budget(each)))
    value = one.share.value if one.share else None
    short = f"{one.scored:,} scored" if value is None else f"{one.kind} {value:.2%}\nbudget {one.budget:.2%}"
    return _Judged(RISKS[one.verdict], one.said, short, f"{one.kind}budgetburn", value, one.budget)


def _part_of_budget(one: Risk) -> float:
    return one.share.value / one.budget if one.share else 0.0


def _same(found: Findings, answering: Answering) -> _Judged:
    section, document = "drift", answering.drift
    if isinstance(document, str):
        return _Judged("look", document, "never measured", section)
    state, said, short = DRIFTS[document.verdict], f"{answering.adapter}: {document.said}", "first measurement"
    metric = largest_shift(document)
    if metric:
        short = f"{metric.name} {metric.difference:.2g}\n{metric.least:g} counts"
    if document.made_at > found.window.end + CLOCKS_DIFFER:
        state = _worse_of(state, "look")
        said += f"; it is dated {document.made_at:%Y-%m-%d}, which has not come yet"
    if document.made_at < found.window.start:
        state = _worse_of(state, "look")
        said += f"; it was measured on {document.made_at:%Y-%m-%d}, before this window"
    if document.prompts and document.prompts_moved:
        state = _worse_of(state, "look")
        moved = document.prompts
        said += f"; live prompts moved by {moved.difference:.2g} bits, and {moved.least:g} counts"
    return _Judged(
        state, said, short, section, metric.difference if metric else None, metric.least if metric else None
    )


def largest_shift(document: DriftEvidence) -> DriftMetric | None:
    """Return the judged metric that is the largest part of what counts; None for a reference."""
    judged = [one for one in document.metrics if one.is_judged]
    return max(judged, key=lambda one: one.difference / one.least, default=None)


def _worse_of(*states: State) -> State:
    return min(states, key=STATES.index)


def _worth(found: Findings, tenant: str, answering: Answering) -> _Judged:
    section, cost = "kpis", cost_text(found, tenant)
    if isinstance(found.kpis, str):
        return _Judged("look", f"{found.kpis.rstrip('.')}{cost}", NOT_KNOWN, section)
    known = strongest_uplifts(found.kpis, answering.adapter)
    # What somebody measured is not hidden behind what nobody did.
    known = [one for one in known if not one.simulated] or known
    if not known:
        said = no_uplift(found.kpis, tenant, answering.adapter)
        return _Judged("look", f"{said}{cost}", "no uplift known", section)
    # One KPI that is worse decides, however much another one is better.
    order = ("worse", "better", "not clear")
    one = min(known, key=lambda each: (order.index(each.verdict), -abs(each.relative or 0)))
    state, mark = UPLIFTS[one.verdict], ""
    if one.simulated:
        # Nobody measured it, so that it neither clears a version nor condemns it.
        state, mark = "look", f"{SIMULATED.upper()}: "
    part = f"{one.relative:+.1%}" if one.relative is not None else f"{one.difference:+.3g}"
    said = (
        f"{mark}{answering.adapter} {one.kind} {interval_text(one)} beside {one.against} ({how(one)}): "
        f"{one.verdict}{cost}"
    )
    late = _late(found.kpis, answering.adapter)
    judged = _Judged(state, said, f"{mark}{one.kind} {part}\n{one.verdict}", section, one.difference, 0.0)
    return _with_doubt(judged, late)


def strongest_uplifts(report: KpiReport, adapter: str) -> list[Uplift]:
    """Return the known uplifts of a version, one of each KPI: a canary's rather than before/after.

    A simulated one is the last to count.
    """
    found: dict[str, Uplift] = {}
    for one in sorted(report.uplifts, key=lambda each: (each.simulated, each.method != "canary")):
        if one.adapter == adapter and one.difference is not None:
            found.setdefault(one.kind, one)
    return list(found.values())


def no_uplift(report: KpiReport, tenant: str, adapter: str) -> str:
    """Return why no uplift of a version is known, without a full stop."""
    late = _late(report, adapter)
    if late:
        return late
    if not any(one.adapter.rpartition("@")[0] == tenant for one in report.versions):
        return f"{tenant} has no KPIs: `lora-ops monitor kpi import FILE` takes some"
    said = next((f" ({one.kind}: {one.said})" for one in report.uplifts if one.adapter == adapter), "")
    return f"No uplift of {adapter} is known{said}"


def _late(report: KpiReport, adapter: str) -> str | None:
    late = next((one for one in report.unmeasured if one.adapter == adapter), None)
    return f"{adapter} has had no KPI for {late.weeks} weeks: measure it or retire it" if late else None


def cost_text(found: Findings, tenant: str) -> str:
    """Return what a tenant cost in the window, as the end of a sentence; empty where nothing is known."""
    if isinstance(found.costs, str):
        return ""
    bill = found.costs.bill
    mine = bill.tenants[bill.tenants["tenant"] == tenant]
    if mine.empty:
        return ""
    total, unused = (float(mine[name].iloc[0]) for name in ("total", "unused_memory"))
    text = f"; it cost {money(bill, total)} in this window"
    return f"{text}, most of it for memory in which nothing was answered" if unused > total / 2 else text

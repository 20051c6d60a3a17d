"""The plots of notebooks/08_monitor.ipynb; where there is nothing to draw, a sentence says why."""

from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from lora_ops.escaping import bullets, plot_text
from lora_ops.monitoring.content_risk import Risk
from lora_ops.monitoring.kpi_plots import plot_uplifts
from lora_ops.monitoring.latency import SHARES, missed
from lora_ops.monitoring.page import MonitorPage, tenant_name
from lora_ops.monitoring.rules import windows
from lora_ops.monitoring.verdicts import QUESTIONS, State
from lora_ops.plots import Plot
from lora_ops.records.drift import UNITS, DriftMetric

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.axes import Axes

COLOURS: dict[State, str] = {"ok": "#d5ead6", "look": "#fbe7b2", "broken": "#f2b8b0"}
GOOD, BAD = "tab:blue", "tab:red"
ROW = 0.45
"""Inches of one row of bars."""
NO_KPIS = "No uplift of a version that answers is known; below is what it needs."
OBJECTIVES = {"availability": "answered", "latency": "in time"}


def plot_verdicts(page: MonitorPage) -> "Plot | Markdown":
    """Draw one cell for each tenant and question: its state in words, and the number that it rests on."""
    tenants = page.found.tenants
    if not tenants:
        return bullets(["No tenant has a version that answers, and nobody asked for one."])
    figure = Plot(figsize=(10, 0.6 + 0.72 * len(tenants)), layout="constrained")
    axes = figure.subplots()
    for one in page.verdicts:
        row, column = tenants.index(one.tenant), list(QUESTIONS).index(one.question)
        axes.fill_between([column - 0.48, column + 0.48], row - 0.46, row + 0.46, color=COLOURS[one.state])
        axes.text(column, row - 0.28, one.state.upper(), ha="center", va="center", fontsize=9, weight="bold")
        axes.text(column, row + 0.13, plot_text(one.short), ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, len(QUESTIONS) - 0.5), ylim=(len(tenants) - 0.5, -0.5))
    axes.set_xticks(range(len(QUESTIONS)), list(QUESTIONS.values()), fontsize=10)
    axes.set_yticks(range(len(tenants)), [plot_text(tenant_name(one)) for one in tenants], fontsize=10)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def plot_latency(page: MonitorPage) -> "Plot | Markdown":
    """Draw P50, P95 and P99 of each adapter's answers beside the objective."""
    report, limit = page.found.latency, page.found.objectives.latency
    if isinstance(report, str):
        return bullets([report])
    shown = [one for one in report.adapters if one.answer.count]
    if not shown:
        return bullets(["No adapter gave an answer in this window."])
    late = {(one.tenant, one.adapter) for one in missed(report, page.found.objectives)}
    figure = Plot(figsize=(9, 1.5 + ROW * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(shown):
        times = [one.answer.percentile(share) or 0.0 for share in SHARES]
        colour = BAD if (one.tenant, one.adapter) in late else GOOD
        axes.plot(times, [row] * len(times), color=colour, linewidth=1.5, zorder=1)
        for place, (mark, time) in enumerate(zip("osD", times, strict=True)):
            label = f"P{SHARES[place] * 100:g}" if row == 0 else None
            axes.scatter(time, row, marker=mark, s=36, color=colour, label=label, zorder=2)
    axes.axvline(
        limit.seconds,
        color="k",
        linestyle="--",
        linewidth=1,
        label=f"{limit.share:.0%} within {limit.seconds:g} s",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    _name_rows(axes, [f"{one.adapter}, {one.answer.count:,} answers" for one in shown])
    axes.set(title="Whole answers", xlabel="seconds from a request's arrival to the end of its answer")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def plot_budgets(page: MonitorPage) -> "Plot | Markdown":
    """Draw which part of each error budget was used up: of speed in the window, of risk in its own days."""
    speed, risk = _speed_rows(page), _risk_rows(page)
    panels = [one for one in (speed, risk) if one[1]]
    if not panels:
        return bullets(["No budget was used: nobody asked, or no answer was scored."])
    heights = [len(rows) + 1.6 for _, rows in panels]
    figure = Plot(figsize=(9, 0.3 + ROW * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(grid, panels, strict=True):
        values = [value for _, value in rows]
        axes.barh(range(len(rows)), values, color=[BAD if value > 1 else GOOD for value in values], height=0.6)
        axes.axvline(1, color="k", linestyle="--", linewidth=1)
        for row, value in enumerate(values):
            axes.annotate(
                f"{value:.0%}", (value, row), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_xlim(0, 1.15 * max(1.1, *values))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        _name_rows(axes, [name for name, _ in rows])
        axes.set_title(title, fontsize=10)
    grid[-1].set_xlabel("part of the budget that was used up; the dashed line is all of it")
    return figure


def _speed_rows(page: MonitorPage) -> tuple[str, list[tuple[str, float]]]:
    report, rows = page.found.latency, []
    for one in () if isinstance(report, str) else report.adapters:
        for objective, burnt in one.burn(page.found.objectives).items():
            if burnt is not None:
                rows.append((f"{one.adapter}, {OBJECTIVES[objective]}", burnt))
    return f"Speed: what the objectives allow in {_days(page.found.window.hours / 24)}", rows


def _risk_rows(page: MonitorPage) -> tuple[str, list[tuple[str, float]]]:
    report = page.found.risk
    if isinstance(report, str):
        return "", []
    rows = [(_risk_name(one), one.burnt) for one in _told_risks(page) if one.burnt is not None]
    return f"Risk: what the budgets allow in {_days((report.end - report.start).days)}", rows


def _told_risks(page: MonitorPage) -> list[Risk]:
    """Return the risks of whole tenants; of one tenant those of its versions, too."""
    report = page.found.risk
    risks = () if isinstance(report, str) else report.risks
    single = len(page.found.tenants) == 1
    return [one for one in risks if one.burnt is not None and (single or one.adapter is None)]


def _risk_name(one: Risk) -> str:
    return f"{one.adapter or one.tenant}, {one.kind}"


def _days(days: float) -> str:
    return f"{days:g} day{'s' if days != 1 else ''}"


def plot_burn(page: MonitorPage) -> "Plot | Markdown":
    """Draw how fast each risk budget burns, by window; red is as fast as what alerts."""
    shown, rates = _told_risks(page), page.found.objectives.burn_rates
    if isinstance(page.found.risk, str):
        return bullets([page.found.risk])
    if not shown:
        return bullets(["No version gave a scored answer, so that no budget of risk burns."])
    spans = windows(rates)
    limits = {span: min(one.factor for one in rates if span in (one.long, one.short)) for span in spans}
    figure = Plot(figsize=(9, 1.1 + ROW * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(shown):
        for column, span in enumerate(spans):
            rate = one.burn_rates.get(span)
            state: State = "ok" if not rate or rate <= 1 else "look" if rate <= limits[span] else "broken"
            colour = "0.93" if rate is None else COLOURS[state]
            axes.fill_between([column - 0.48, column + 0.48], row - 0.44, row + 0.44, color=colour)
            text = "nothing scored" if rate is None else f"{rate:,.0f}x" if rate >= 10 else f"{rate:.2g}x"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, len(spans) - 0.5), title="How fast risk budgets burn")
    axes.set_xticks(range(len(spans)), [f"{span}\nalerts at {limits[span]:g}x" for span in spans], fontsize=8)
    axes.set_xlabel("the last minutes, hours or days; 1x uses up exactly the budget")
    _name_rows(axes, [_risk_name(one) for one in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def plot_drift(page: MonitorPage) -> "Plot | Markdown":
    """Draw how far each answering version has moved since its reference, in parts of what counts as drift."""
    rows: list[tuple[str, DriftMetric]] = []
    why = []
    for one in page.found.answering.values():
        if isinstance(one.drift, str) or not one.drift.metrics:
            why.append(one.drift if isinstance(one.drift, str) else f"{one.adapter}: {one.drift.said}.")
            continue
        day = f"{one.drift.made_at:%Y-%m-%d}"
        rows += [(f"{one.adapter}, {each.name}, {day}", each) for each in one.drift.metrics]
    if not rows:
        return bullets(why or ["No version answers, so that nothing can have drifted."])
    figure = Plot(figsize=(9, 1.6 + ROW * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, (_, each) in enumerate(rows):
        value, low, high, base = (
            part / each.least for part in (each.difference, each.low, each.high, each.base)
        )
        colour = "0.6" if not each.is_judged else BAD if value >= 1 else GOOD
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, row, xerr=error, fmt="o", color=colour, capsize=4)
        axes.scatter(base, row, marker="|", s=120, color="k")
        text = f"{each.difference:.2g}{UNITS[each.name]}" + ("" if each.is_judged else ", not judged")
        axes.annotate(
            text, (max(value, high), row), (8, 0), textcoords="offset points", va="center", fontsize=8
        )
    furthest = max(max(each.high, each.difference, each.base) / each.least for _, each in rows)
    axes.axvline(1, color="k", linestyle="--", linewidth=1)
    # Most versions move by a small part of what counts, and one that drifted by many times it.
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.1, 3 * max(1.5, furthest))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _name_rows(axes, [name for name, _ in rows])
    axes.set(
        title="Moved since the reference",
        xlabel="parts of the smallest shift that counts (dashed); | is the base model",
    )
    return figure


def plot_worth(page: MonitorPage) -> "Plot | Markdown":
    """Draw the known uplifts of the versions that answer, each with its interval."""
    report = page.found.kpis
    if isinstance(report, str):
        return bullets([report])
    answering = {one.adapter for one in page.found.answering.values()}
    known = [one for one in report.uplifts if one.adapter in answering and one.relative is not None]
    if not known:
        return bullets([NO_KPIS])
    return plot_uplifts(known, "What the versions that answer changed")


def _name_rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [plot_text(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)

"""The plots of sequential tests: how an interval tightened, and when its evidence sufficed."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lora_ops.escaping import plot_text
from lora_ops.plots import Plot
from lora_ops.rollout.sequential import excess_part

GOOD, BAD = "tab:blue", "tab:red"
MOST_EVIDENCE, LEAST_EVIDENCE = 1e4, 1e-3
"""E-values beyond these are drawn at the edge: nobody doubts any more."""
NAMED_MARKS = 8
AMOUNTS = "part more tokens"
"""The scale of amounts, once `of_amounts` has brought an excess to it."""


class Seen(NamedTuple):
    """What one look shows of one metric; `low` to `high` is how much worse the version may be."""

    units: int
    low: float
    high: float
    breach: float
    non_inferior: float


class MetricLooks(NamedTuple):
    """One metric at every look.

    Attributes:
        name: of the metric.
        scale: what the interval is of, such as "share of requests".
        seen: looks, oldest first.
        margin: how much worse is allowed, on the scale of the interval.
        equal: where both versions are alike: 0 of a difference, 1 of a ratio.
    """

    name: str
    scale: str
    seen: Sequence[Seen]
    margin: float
    equal: float = 0.0

    def of_amounts(self) -> "MetricLooks":
        """Return the same as a part more of an amount: an excess e (`relative_excess`) is 2e / (1 - e) more."""
        seen = [one._replace(low=excess_part(one.low), high=excess_part(one.high)) for one in self.seen]
        return self._replace(seen=tuple(seen), margin=excess_part(self.margin))

    def decided(self, alpha: float) -> tuple[int, str] | None:
        """Return how the last look decides the metric, and since how many units; None where it doesn't.

        A version that got worse was not worse before. A breach counts, as it does for the controller.
        """
        for name, how in (("breach", "worse"), ("non_inferior", "not worse")):
            since = None
            for one in reversed(self.seen):
                if getattr(one, name) < 1 / alpha:
                    break
                since = one.units
            if since is not None:
                return since, how
        return None

    @property
    def has_changed(self) -> bool:
        """Whether the difference was not the same all the time: an interval can only narrow, and opens then."""
        last, before = self.seen[-1], self.seen[:-1]
        return any(one.low > last.low or one.high < last.high for one in before)

    @property
    def interval(self) -> str:
        """How much worse the version may be by the last look, in words."""
        last = self.seen[-1]
        if self.has_changed:
            return "not the same all the time"
        if last.high == math.inf:
            return f"at least {self._number(last.low)}"
        return f"{self._number(last.low)} to {self._number(last.high)}"

    @property
    def allowed(self) -> str:
        """The margin, in words."""
        return f"up to {self._number(self.margin)}"

    def _number(self, value: float) -> str:
        return f"{value:+.3f}" if self.equal == 0 else f"{value:.2f}"

    def sentence(self, alpha: float, unit: str) -> str:
        """Return where the metric is, in words."""
        if not self.seen or not self.seen[-1].units:
            return f"{self.name}: no {unit} yet."
        last = self.seen[-1]
        what = "the difference" if self.equal == 0 else "the ratio"
        now = (
            f"after {last.units} {unit} {what} ({self.scale}) is {self.interval}, and {self.allowed} is allowed"
        )
        found = self.decided(alpha)
        if found is None:
            evidence = f"{last.non_inferior:.2g} of the {1 / alpha:g} that would show that it is not worse"
            return f"{self.name}: not decided. It has evidence of {evidence}; {now}."
        how = "worse than allowed" if found[1] == "worse" else "not worse by the margin"
        return f"{self.name}: {how}, shown since {found[0]} {unit}; {now}."


def plot_sequences(
    metrics: Iterable[MetricLooks], *, alpha: float, unit: str, marks: Sequence[tuple[int, str]] = ()
) -> Plot:
    """Draw each metric's interval and its margin, and its evidence and the limit that decides.

    Args:
        metrics: one row of two panels each; those without units are left out.
        alpha: evidence of 1 / alpha decides.
        unit: what was counted, such as "users".
        marks: units at which something was decided, and what; drawn as dotted lines.
    """
    shown = [one for one in metrics if one.seen and one.seen[-1].units]
    if not shown:
        return nothing("Each metric, as its interval tightened", f"no {unit} yet")
    figure = Plot(figsize=(9, 0.7 + 1.9 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for place, (row, metric) in enumerate(zip(grid, shown, strict=True)):
        _draw_interval(row[0], metric)
        _draw_evidence(row[1], metric, alpha)
        for axes in row:
            axes.set_xlim(0, max(one.units for one in metric.seen) * 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            for units, _ in marks:
                axes.axvline(units, color="0.6", linestyle=":", linewidth=1)
        for units, said in marks[:NAMED_MARKS] if place == 0 else ():
            row[1].annotate(
                plot_text(said),
                (units, 0.97),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=7,
                color="0.35",
                ha="right",
                va="top",
            )
    for axes in grid[-1]:
        axes.set_xlabel(unit)
    handles, labels = zip(
        *[pair for axes in grid[0] for pair in zip(*axes.get_legend_handles_labels(), strict=True)], strict=True
    )
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _draw_interval(axes: Axes, metric: MetricLooks) -> None:
    units = [one.units for one in metric.seen]
    low, high = _shown_range(metric)
    axes.fill_between(
        units,
        [max(low, one.low) for one in metric.seen],
        [min(high, one.high) for one in metric.seen],
        color="0.75",
        linewidth=0,
        label="interval of the difference",
    )
    axes.axhline(metric.margin, color=BAD, linestyle="--", label="margin: worse than this goes back")
    axes.axhline(metric.equal, color="0.4", linewidth=0.8, label="alike")
    axes.set_ylim(low, high)
    axes.set_title(plot_text(metric.name), fontsize=10, loc="left")
    axes.set_ylabel(plot_text(metric.scale), fontsize=8)


def _draw_evidence(axes: Axes, metric: MetricLooks, alpha: float) -> None:
    units = [one.units for one in metric.seen]
    for name, colour, label in (
        ("non_inferior", GOOD, "evidence that it is not worse"),
        ("breach", BAD, "evidence that it is worse"),
    ):
        values = [min(max(getattr(one, name), LEAST_EVIDENCE), MOST_EVIDENCE) for one in metric.seen]
        axes.plot(units, values, color=colour, label=label, linewidth=1.5)
    axes.axhline(1 / alpha, color="k", linestyle="--", linewidth=1, label=f"{1 / alpha:g} decides")
    axes.set(yscale="log", ylim=(LEAST_EVIDENCE, MOST_EVIDENCE))
    axes.set_ylabel("e-value", fontsize=8)
    found = metric.decided(alpha)
    if found:
        units_then, how = found
        colour = BAD if how == "worse" else GOOD
        axes.plot([units_then], [1 / alpha], "o", color=colour)
        axes.set_title(f"{how} since {units_then}", fontsize=9, loc="right", color=colour)
    else:
        axes.set_title("not decided", fontsize=9, loc="right", color="0.4")


def _shown_range(metric: MetricLooks) -> tuple[float, float]:
    """Return the part of the scale in which the margin and the last interval are seen well."""
    last, allowed = metric.seen[-1], abs(metric.margin - metric.equal)
    ends = [abs(one - metric.equal) for one in (last.low, last.high) if math.isfinite(one)]
    half = max(3 * allowed, 1.3 * max(ends, default=0.0))
    if metric.equal == 0:
        half = min(half, max(1.0, 1.2 * allowed))  # shares end at 1, amounts don't
        return -min(half, 1.0), half
    return max(0.0, metric.equal - half), metric.equal + min(half, 8 * allowed)


def nothing(title: str, said: str) -> Plot:
    """Return an empty plot that says why it is empty."""
    figure = Plot(figsize=(8, 1.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(plot_text(title))
    axes.text(0.5, 0.5, plot_text(said), ha="center", va="center")
    return figure

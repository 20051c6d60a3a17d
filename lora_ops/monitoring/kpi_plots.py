"""The plot of what versions changed, for a notebook: one interval a KPI, as a part of the mean without it."""

from collections.abc import Sequence

from lora_ops.escaping import plot_text
from lora_ops.plots import Plot
from lora_ops.records.kpi import SIMULATED, Uplift

COLOURS = {"better": "tab:green", "worse": "tab:red", "not clear": "0.5"}


def plot_uplifts(found: Sequence[Uplift], title: str) -> Plot:
    """Draw each known uplift with its 95 % interval, in per cent of the mean that it is compared with.

    A canary's is drawn as a disc and before against after as a square, since the latter shows less. What
    nobody knows, or has no mean to be a part of, is left out.
    """
    known = [one for one in found if one.relative is not None and one.baseline]
    figure = Plot(figsize=(8, 1.3 + 0.4 * len(known)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.7", linewidth=1)
    for row, one in enumerate(known):
        assert one.difference is not None and one.low is not None and one.high is not None and one.baseline
        value, low, high = (100 * part / one.baseline for part in (one.difference, one.low, one.high))
        mark = "o" if one.method == "canary" else "s"
        error = [[value - low], [high - value]]
        axes.errorbar(value, row, xerr=error, fmt=mark, color=COLOURS[one.verdict], capsize=4)
    names = [f"{one.adapter} {one.kind}, {one.method.replace('_', ' ')}" for one in known]
    axes.set_yticks(range(len(known)), [plot_text(name) for name in names])
    axes.set_ylim(max(1, len(known)) - 0.5, -0.5)
    mark = f"{SIMULATED.upper()}: " if any(one.simulated for one in known) else ""
    axes.set(title=plot_text(f"{mark}{title}"), xlabel="% more than without it, 95 % interval")
    if not known:
        axes.text(0.5, 0.5, "no uplift is known yet", ha="center", va="center", transform=axes.transAxes)
    return figure

"""The plots of the notebooks: small, labelled, readable in grey."""

import io
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lora_ops.escaping import plot_text
from lora_ops.records.evaluation import (
    ADAPTER,
    ADAPTER_LABELS,
    BASE,
    BASE_FEW_SHOT,
    BASE_LABELS,
    LEAD,
    MAJORITY,
    TFIDF,
    EvaluationRecord,
)


class Plot(Figure):
    """A figure that shows itself in a notebook; a plain one is only shown once pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=110)
        return image.getvalue()


def plot_loss(losses: pd.DataFrame, validations: pd.DataFrame, title: str) -> Plot:
    """Loss of training and of validation per step (columns step, loss); logarithmic, so that its end shows."""
    figure = Plot(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses["step"], losses["loss"], color="0.75", label="training, each step")
    smooth = losses["loss"].rolling(8, min_periods=1).mean()
    axes.plot(losses["step"], smooth, color="tab:blue", label="training, mean of 8 steps")
    axes.plot(validations["step"], validations["loss"], "o--", color="tab:red", label="validation")
    axes.set(title=plot_text(title), xlabel="step", ylabel="loss per completion token", yscale="log")
    # Nine ticks in each decade would be printed over each other. Losses that hardly move have none of these.
    low, high = axes.get_ylim()
    decades = LogLocator(subs=(1, 2, 5))
    shown = sum(low <= tick <= high for tick in decades.tick_values(low, high))
    axes.yaxis.set_major_locator(decades if shown > 1 else MaxNLocator(4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.4g}")
    axes.legend()
    return figure


def plot_metrics(record: EvaluationRecord) -> Plot:
    """Each metric of every system with its interval."""
    figure = Plot(figsize=(8, 0.8 + 1.5 * len(record.metrics)), layout="constrained")
    all_axes = figure.subplots(len(record.metrics), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (title, metric) in zip(all_axes, record.metrics.items(), strict=True):
        order = (MAJORITY, LEAD, BASE, BASE_FEW_SHOT, BASE_LABELS, TFIDF, ADAPTER_LABELS, ADAPTER)
        bars = [name for name in order if name in metric]
        for row, name in enumerate(bars):
            interval, colour = metric[name], "tab:blue" if name in (ADAPTER, ADAPTER_LABELS) else "0.6"
            error = [[max(0, interval.value - interval.low)], [max(0, interval.high - interval.value)]]
            axes.barh(row, interval.value, xerr=error, color=colour, capsize=4)
            axes.text(interval.high + 0.01, row, f"{interval.value:.2f}", va="center")
        axes.set_yticks(range(len(bars)), [name.replace("_", " ") for name in bars])
        axes.set(title=title, xlim=(0, 1.08))
    return figure


def plot_confusion(table: pd.DataFrame, labels: Sequence[str]) -> Plot:
    """Shares of each target's rows by predicted label (columns target, predicted), counts in the cells.

    Labels have numbers, so that the columns need no turned text: row 3 and column 3 are the same label.
    """
    rows = [label for label in labels if (table["target"] == label).any()]
    columns = [*labels, *sorted(set(table["predicted"]) - set(labels))]
    counts = pd.crosstab(table["target"], table["predicted"]).reindex(index=rows, columns=columns, fill_value=0)
    cells = counts.to_numpy(dtype=float)
    shares = cells / cells.sum(axis=1, keepdims=True)
    size = max(3.5, 1.8 + 0.34 * len(columns))
    figure = Plot(figsize=(size + 1.5, max(3.0, 1.2 + 0.34 * len(rows))), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(counts.to_numpy()):
        for x, count in enumerate(row):
            if count:
                dark = shares[y, x] > 0.5
                axes.text(x, y, count, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    number = {label: str(place) for place, label in enumerate(labels, start=1)}
    axes.set_xticks(range(len(columns)), [number.get(label, "none") for label in columns])
    axes.set_yticks(range(len(rows)), [f"{plot_text(label)}  {number[label]}" for label in rows])
    axes.set(
        title="Held-out rows: target and the adapter's answer",
        xlabel="answer (the number of its label)",
        ylabel="target",
    )
    return figure

"""Whom an adapter serves worse: the groups of each declared column, their rows and the gap between them."""

from pathlib import Path

import pandas as pd

from lora_ops.evaluation.inference import CONFIDENCE, independent_difference, interval, wilson
from lora_ops.evaluation.metrics import exact_match, row_scores, sample
from lora_ops.paths import SLICE, SLICES
from lora_ops.records.evaluation import ADAPTER, BASE, COMPARED_ROWS, ColumnBias, GroupMetric, Interval
from lora_ops.settings.tenant import TenantSettings

NOTHING = "(empty)"


def with_slices(answers: pd.DataFrame, prepared: Path) -> pd.DataFrame:
    """Return `answers` with the columns of `data.bias_columns` that prepare kept, as `slice.NAME`."""
    slices = pd.read_csv(prepared / SLICES, dtype=str, keep_default_na=False).replace("", NOTHING)
    return answers.merge(slices, on="id", how="left", validate="one_to_one")


def bias_metric(settings: TenantSettings) -> str:
    """Return the metric that is compared between groups: a mean over rows, which macro-F1 is not."""
    means = [name for name in settings.evaluate.metrics if name != "macro_f1"]
    return means[0] if means else "exact_match"


def measure_bias(answers: pd.DataFrame, settings: TenantSettings) -> dict[str, ColumnBias]:
    """Return for each `slice.` column how well the adapter serves each of its groups."""
    columns = [str(name) for name in answers if str(name).startswith(SLICE)]
    return {name.removeprefix(SLICE): column_bias(answers, name, settings) for name in columns}


def column_bias(answers: pd.DataFrame, column: str, settings: TenantSettings) -> ColumnBias:
    """Return the adapter's metric for each value of a column, and the largest gap between two of them."""
    groups, clusters, limit = {}, {}, settings.evaluate.max_gap
    for name, rows in answers.groupby(column):
        measured = sample(
            bias_metric(settings),
            list(rows["target"]),
            list(rows[ADAPTER]),
            settings.data.labels,
            list(rows["group"]),
        )
        value = interval(measured, settings.evaluate.bootstrap, settings.evaluate.seed)
        groups[str(name)] = GroupMetric(rows=len(rows), value=value)
        clusters[str(name)] = len(measured.parts)
    compared = sorted(
        (name for name, group in groups.items() if group.rows >= COMPARED_ROWS),
        key=lambda name: groups[name].value.value,
    )
    if len(compared) < 2:
        return ColumnBias(groups=groups, limit=limit)
    worst, best = compared[0], compared[-1]
    shares = {name: (groups[name].value.value, clusters[name]) for name in (best, worst)}
    gap = largest_gap(shares[best], shares[worst], len(compared))
    return ColumnBias(groups=groups, best=best, worst=worst, gap=gap, limit=limit)


def largest_gap(best: tuple[float, int], worst: tuple[float, int], groups: int) -> Interval:
    """Return best minus worst of `groups` groups, with an interval that holds although they were picked.

    Of groups that are served alike the best and the worst still differ. With `groups` of them there are
    groups * (groups - 1) / 2 pairs, and each takes that part of the allowed error (Bonferroni).

    Args:
        best, worst: the value of a group and the number of clusters that it rests on.
    """
    confidence = 1 - (1 - CONFIDENCE) / (groups * (groups - 1) / 2)
    return independent_difference(wilson(*best, confidence), wilson(*worst, confidence))


def errors_by(answers: pd.DataFrame, column: str, settings: TenantSettings) -> pd.DataFrame:
    """Return one row for each value of a column, most errors first, with the commonest wrong answer."""
    hits = exact_match(list(answers["target"]), list(answers[ADAPTER]), settings.data.labels)
    rows = []
    for name, of_group in answers.assign(hit=hits).groupby(column):
        wrong = of_group.loc[of_group["hit"] == 0, ADAPTER].value_counts()
        said = f"{wrong.index[0]} ({wrong.iloc[0]} times)" if len(wrong) else ""
        counts = {"rows": len(of_group), "errors": int(wrong.sum()), "said most often instead": said}
        rows.append({column.removeprefix(SLICE): str(name), **counts})
    return pd.DataFrame(rows).sort_values(["errors", "rows"], ascending=[False, True], ignore_index=True)


def scores_by(answers: pd.DataFrame, column: str, settings: TenantSettings) -> pd.DataFrame:
    """Return one row for each value of a column, the worst first: rows and mean scores of written answers."""
    metric, targets = bias_metric(settings), list(answers["target"])
    scores = {name: row_scores(metric, targets, list(answers[name])) for name in (BASE, ADAPTER)}
    scored = answers.assign(rows=1, **{f"{metric} {name}": score for name, score in scores.items()})
    means = {f"{metric} {name}": "mean" for name in scores}
    found = scored.groupby(column, as_index=False).agg({"rows": "sum", "group": "nunique", **means}).round(3)
    found = found.rename(columns={column: column.removeprefix(SLICE), "group": "groups"})
    return found.sort_values([f"{metric} {ADAPTER}", "rows"], ignore_index=True)

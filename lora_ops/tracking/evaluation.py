"""What a reviewer reads of an evaluation at W&B: intervals, every answer, errors by slice, the confusion."""

from typing import Any

import pandas as pd

from lora_ops.evaluation.metrics import row_scores
from lora_ops.records.evaluation import ADAPTER, BASE, EvaluationRecord
from lora_ops.tracking.runs import log_table

NO_LABEL = "(no label)"


def log_evaluation(
    run: Any, record: EvaluationRecord, answers: pd.DataFrame, confused: pd.DataFrame | None = None
) -> None:
    """Log an evaluation: its numbers in the summary, the rest as tables, which reviewers filter and sort.

    Args:
        answers: one row for each held-out row: id, group, text, target and each system's answer.
        confused: columns target and predicted, for a task of labels.
    """
    for metric, systems in (record.metrics | record.traits).items():
        for system, interval in systems.items():
            bounds = {"low": interval.low, "high": interval.high}
            run.summary[f"{metric}/{system}"] = interval.value
            run.summary.update({f"{metric}/{system}/{bound}": value for bound, value in bounds.items()})
    run.summary["beats_base"] = record.beats_base
    run.summary["strongest_opponent"] = record.strongest_opponent
    run.summary["verdict"] = record.verdict
    if record.against_strongest:
        run.summary["minus_strongest"] = record.against_strongest.model_dump()
    if record.differences:
        log_table(run, "differences", difference_rows(record))
    log_table(run, "metrics", metric_rows(record))
    log_table(run, "answers", answers)
    if record.bias:
        log_table(run, "bias", bias_rows(record))
        gaps = {column: bias.gap for column, bias in record.bias.items() if bias.gap}
        run.summary.update({f"bias/{column}/gap": gap.model_dump() for column, gap in gaps.items()})
    if confused is None:
        log_table(run, "scores", score_rows(record, answers))
        return
    log_table(run, "errors_by_group", error_slices(answers, "group"))
    log_table(run, "errors_by_label", label_rows(record) if record.groups else error_slices(answers, "target"))
    _log_confusion(run, confused)


def metric_rows(record: EvaluationRecord) -> pd.DataFrame:
    """Return one row for each metric and system, with its interval."""
    return pd.DataFrame(
        [
            {"metric": metric, "system": system, **interval.model_dump(include={"value", "low", "high"})}
            for metric, systems in (record.metrics | record.traits).items()
            for system, interval in systems.items()
        ]
    )


def score_rows(record: EvaluationRecord, answers: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each held-out row of written answers, with each system's score by each metric."""
    targets = list(answers["target"])
    scores = {
        f"{metric}/{system}": row_scores(metric, targets, list(answers[system])).round(4)
        for metric, systems in record.metrics.items()
        for system in systems
    }
    return answers[["id", "group"]].assign(**scores)


def difference_rows(record: EvaluationRecord) -> pd.DataFrame:
    """Return one row for each opponent and metric: adapter minus opponent, its interval and p-values."""
    return pd.DataFrame(
        [
            {"opponent": opponent, "metric": metric, **difference.model_dump()}
            for opponent, metrics in record.differences.items()
            for metric, difference in metrics.items()
        ]
    )


def bias_rows(record: EvaluationRecord) -> pd.DataFrame:
    """Return one row for each group of each declared column, with the adapter's interval."""
    return pd.DataFrame(
        [
            {
                "column": column,
                "group": name,
                "rows": group.rows,
                **group.value.model_dump(include={"value", "low", "high"}),
            }
            for column, bias in record.bias.items()
            for name, group in bias.groups.items()
        ]
    )


def label_rows(record: EvaluationRecord) -> pd.DataFrame:
    """Return one row for each label, worst first, with the adapter's interval and the rows that it rests on."""
    rows = [
        {
            "label": label,
            "rows": group.rows,
            **group.value.model_dump(include={"value", "low", "high"}),
        }
        for label, group in record.groups.items()
    ]
    return pd.DataFrame(rows).sort_values(["value", "rows"], ignore_index=True)


def error_slices(answers: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return one row for each value of a column, most errors first: rows, errors of adapter and of base."""
    wrong = pd.DataFrame(
        {
            column: answers[column],
            "rows": 1,
            **{f"{name}_errors": (answers[name] != answers["target"]).astype(int) for name in (ADAPTER, BASE)},
        }
    )
    counted = wrong.groupby(column, as_index=False).sum()
    return counted.sort_values(["adapter_errors", "rows"], ascending=[False, True], ignore_index=True)


def _log_confusion(run: Any, confused: pd.DataFrame) -> None:
    import wandb

    read = confused.fillna(NO_LABEL).replace("", NO_LABEL)
    names = sorted({*read["target"], *read["predicted"]})
    place = {name: index for index, name in enumerate(names)}
    counts = read.groupby(["target", "predicted"], as_index=False).size().rename(columns={"size": "rows"})
    log_table(run, "confusion", counts)
    chart = wandb.plot.confusion_matrix(
        y_true=[place[name] for name in read["target"]],
        preds=[place[name] for name in read["predicted"]],
        class_names=names,
        title="Held-out rows",
    )
    run.log({"confusion_matrix": chart})

"""What the answers on the held-out split are worth: metrics and the record of the comparison."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.baselines import lead_words_baseline, majority_baseline, tfidf_baseline
from lora_ops.evaluation.bias import measure_bias
from lora_ops.evaluation.inference import Sample, difference, holm, interval, odds_interval
from lora_ops.evaluation.labels import read_label
from lora_ops.evaluation.metrics import copied_sample, length_sample, row_scores, sample
from lora_ops.hashing import differing
from lora_ops.paths import ANSWERS, CONFUSION, EVALUATION, METRICS, SAMPLES
from lora_ops.records.evaluation import (
    ADAPTER,
    BASE,
    COMPARED_ROWS,
    LEAD,
    MAJORITY,
    OPPONENTS,
    SYSTEMS,
    TARGET,
    TFIDF,
    EvaluationRecord,
    GroupMetric,
    Interval,
    PairedDifference,
    beats_base,
)
from lora_ops.records.example import Example
from lora_ops.records.generation import GenerationRecord
from lora_ops.settings.evaluate import EvaluateSettings
from lora_ops.settings.tenant import TenantSettings


def with_baselines(
    answers: pd.DataFrame, train: Sequence[Example], shares: Mapping[str, float] | None
) -> pd.DataFrame:
    """Return `answers` with a column for each baseline of the task.

    Args:
        answers: of each system, to the held-out rows.
        train: the rows that the adapter was trained on.
        shares: of each label in the source, as the data's record has them; None where answers are written.
    """
    targets = [row.target for row in train]
    if shares is None:
        return answers.assign(**{LEAD: lead_words_baseline(targets, list(answers["text"]))})
    tfidf = tfidf_baseline([row.text for row in train], targets, list(answers["text"]))
    return answers.assign(**{MAJORITY: majority_baseline(shares, len(answers)), TFIDF: tfidf})


def samples_of(answers: pd.DataFrame, settings: TenantSettings) -> dict[str, dict[str, Sample]]:
    """Return metric -> system -> sample for every metric of params.yaml and every system in `answers`."""
    targets, groups = list(answers["target"]), list(answers["group"])
    systems = [name for name in SYSTEMS if name in answers]
    return {
        metric: {
            name: sample(metric, targets, list(answers[name]), settings.data.labels, groups) for name in systems
        }
        for metric in settings.evaluate.metrics
    }


def compare(
    samples: dict[str, dict[str, Sample]], draws: int, seed: int
) -> dict[str, dict[str, PairedDifference]]:
    """Return opponent -> metric -> adapter minus opponent, p-values corrected for the metrics."""
    systems = next(iter(samples.values()))
    return {
        name: holm({metric: difference(of[ADAPTER], of[name], draws, seed) for metric, of in samples.items()})
        for name in OPPONENTS
        if name in systems
    }


def measure_groups(answers: pd.DataFrame, settings: TenantSettings) -> dict[str, GroupMetric]:
    """Exact match of the adapter for each label that the held-out rows have: whom it serves worse."""
    chosen = settings.evaluate
    if settings.data.task != "labels":
        return {}
    return {
        str(label): GroupMetric(
            rows=len(rows),
            value=interval(
                sample(
                    "exact_match",
                    list(rows["target"]),
                    list(rows["adapter"]),
                    settings.data.labels,
                    list(rows["group"]),
                ),
                chosen.bootstrap,
                chosen.seed,
            ),
        )
        for label, rows in answers.groupby("target")
    }


def measure_traits(answers: pd.DataFrame, settings: TenantSettings) -> dict[str, dict[str, Interval]]:
    """Return how written answers look: how much is copied from the text, and how long they are.

    They are described for each system and judged for none: who copies most is not best.
    """
    if settings.data.task == "labels":
        return {}
    texts, targets, groups = (list(answers[name]) for name in ("text", "target", "group"))
    systems = [name for name in SYSTEMS if name in answers]
    draws, seed = settings.evaluate.bootstrap, settings.evaluate.seed
    copied = {name: copied_sample(texts, list(answers[name]), groups) for name in (*systems, TARGET)}
    lengths = {name: length_sample(targets, list(answers[name]), groups) for name in systems}
    return {
        "copied_share": {name: interval(one, draws, seed) for name, one in copied.items()},
        "length_ratio": {name: odds_interval(one, draws, seed) for name, one in lengths.items()},
    }


def lost_rows(answers: pd.DataFrame, metric: str, opponent: str, count: int) -> pd.DataFrame:
    """Return the rows of written answers that the adapter loses by most to an opponent, the worst first."""
    targets = list(answers["target"])
    scores = {name: row_scores(metric, targets, list(answers[name])) for name in (ADAPTER, opponent)}
    lost = answers[["text", "target", ADAPTER, opponent]].assign(
        **{f"{metric} {name}": scores[name].round(2) for name in scores}
    )
    return lost.loc[pd.Series(scores[ADAPTER] - scores[opponent], answers.index).nsmallest(count).index]


def confusion(answers: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Columns target and predicted, one row for each held-out row, answers read as labels."""
    predicted = [read_label(answer, labels) for answer in answers["adapter"]]
    return pd.DataFrame({"target": answers["target"], "predicted": predicted})


def samples(answers: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Before/after: `count` rows drawn at random, nobody's choice, for people to look at."""
    chosen = answers.sample(min(count, len(answers)), random_state=seed)
    return chosen[["id", "text", "target", "base", "adapter"]].reset_index(drop=True)


def evaluate(
    tenant: str,
    settings: TenantSettings,
    answers: pd.DataFrame,
    generation: GenerationRecord,
) -> EvaluationRecord:
    """Return the record of one comparison.

    Raises:
        LoraOpsError: the answers were given by other settings than these.
    """
    chosen = settings.evaluate
    _require_own_answers(tenant, generation, chosen)
    primary = chosen.metrics[0]
    samples = samples_of(answers, settings)
    metrics = {
        metric: {name: interval(one, chosen.bootstrap, chosen.seed) for name, one in of.items()}
        for metric, of in samples.items()
    }
    differences = compare(samples, chosen.bootstrap, chosen.seed)
    return EvaluationRecord(
        tenant=tenant,
        rows=len(answers),
        base_files_sha256=generation.base_files_sha256,
        test_sha256=generation.test_sha256,
        adapter_sha256=generation.adapter_sha256,
        adapter_config_sha256=generation.adapter_config_sha256,
        primary=primary,
        metrics=metrics,
        beats_base=beats_base(differences),
        clusters=answers["group"].nunique(),
        strongest_opponent=max(differences, key=lambda name: metrics[primary][name].value),
        differences=differences,
        traits=measure_traits(answers, settings),
        groups=measure_groups(answers, settings),
        bias=measure_bias(answers, settings),
        truncated=generation.truncated,
        answered_by=generation.answered_by,
        agreement=generation.agreement,
        seconds_base=generation.seconds[BASE],
        seconds_adapter=generation.seconds[ADAPTER],
        settings=chosen.model_dump(mode="json"),
    )


def _require_own_answers(tenant: str, generation: GenerationRecord, settings: EvaluateSettings) -> None:
    """Refuse answers of other settings: the record would name a few-shot base that nobody asked."""
    if generation.settings is None:
        raise LoraOpsError(
            f"The answers of '{tenant}' do not name the settings that they were given by: run `dvc repro "
            f"--force generate@{tenant}`, then `dvc repro evaluate@{tenant}`."
        )
    other = differing(settings.answering, generation.settings)
    if other:
        named = ", ".join(f"evaluate.{name}" for name in other)
        raise LoraOpsError(
            f"The answers of '{tenant}' were given by other settings than those of params.yaml ({named}): run "
            f"`dvc repro evaluate@{tenant}`, or put the settings back."
        )


def numbers(record: EvaluationRecord) -> dict[str, Any]:
    """Return what `dvc metrics show` compares: adapter, base, strongest opponent, and the gap between labels.

    Intervals and the other systems are in the report: a table of all of them fits no screen.
    """
    shown = {ADAPTER: ADAPTER, BASE: BASE, "strongest": record.strongest_opponent, TARGET: TARGET}
    found: dict[str, Any] = {
        name: {heading: metric[system].value for heading, system in shown.items() if system in metric}
        for name, metric in (record.metrics | record.traits).items()
    }
    compared = [group.value.value for group in record.groups.values() if group.rows >= COMPARED_ROWS]
    if len(compared) > 1:
        found["label_gap"] = round(max(compared) - min(compared), 4)
    return found


def write_kept_answers(answers: pd.DataFrame, folder: Path) -> None:
    """Write all answers into `folder`, as a registration reads them again."""
    # Quoted, since a carriage return in an answer would else end its row.
    answers.to_csv(folder / ANSWERS, index=False, quoting=csv.QUOTE_ALL)


def write_report(
    record: EvaluationRecord, answers: pd.DataFrame, settings: TenantSettings, folder: Path
) -> None:
    """Write the record, DVC's metrics and plots, all answers and the samples into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATION).write_text(record.to_json(), encoding="utf-8")
    (folder / METRICS).write_text(json.dumps(numbers(record), indent=2) + "\n", encoding="utf-8")
    write_kept_answers(answers, folder)
    samples(answers, settings.evaluate.samples, settings.evaluate.seed).to_csv(folder / SAMPLES, index=False)
    # A free-text tenant has no labels to confuse; DVC wants its plot all the same.
    labels = settings.data.labels
    table = confusion(answers, labels) if labels else pd.DataFrame({"target": [], "predicted": []})
    table.to_csv(folder / CONFUSION, index=False)

"""One evaluation from answers to its record: who beats whom, on what rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lora_ops.adapter_files import adapter_digests
from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.answered import Answered, write_answers
from lora_ops.evaluation.bias import errors_by, scores_by
from lora_ops.evaluation.compare import evaluate, lost_rows, with_baselines, write_report
from lora_ops.hashing import sha256_file
from lora_ops.paths import ADAPTER_FILES, BASE_MODEL, METRICS
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.evaluation import (
    ADAPTER,
    BASE,
    BASE_FEW_SHOT,
    BASE_LABELS,
    LEAD,
    MAJORITY,
    TARGET,
    TFIDF,
    Agreement,
    EvaluationRecord,
    read_evaluation,
)
from lora_ops.records.example import Example
from lora_ops.records.generation import read_generation
from lora_ops.settings.tenant import TenantSettings
from tests.conftest import ROOT

LABELS = ("negative", "neutral", "positive")


@pytest.fixture
def media() -> TenantSettings:
    from lora_ops.settings.params import load_settings

    return load_settings(ROOT).tenants["media"]


def answers(adapter_hits: int, tfidf_hits: int, rows: int = 120) -> pd.DataFrame:
    """The first rows of each system are right; two rows are one group."""
    targets = [LABELS[row % 3] for row in range(rows)]
    wrong = [LABELS[(row + 1) % 3] for row in range(rows)]

    def system(hits: int) -> list[str]:
        return [
            right if row < hits else miss for row, (right, miss) in enumerate(zip(targets, wrong, strict=True))
        ]

    return pd.DataFrame(
        {
            "id": [str(row) for row in range(rows)],
            "group": [str(row // 2) for row in range(rows)],
            "text": [f"text {row}" for row in range(rows)],
            "target": targets,
            BASE: ["I cannot say."] * rows,
            ADAPTER: system(adapter_hits),
            TFIDF: system(tfidf_hits),
            MAJORITY: ["neutral"] * rows,
        }
    )


def record(frame: pd.DataFrame, settings: TenantSettings, folder: Path) -> EvaluationRecord:
    for name in ("test.jsonl", *ADAPTER_FILES):
        (folder / name).write_text(name)
    agreement = {BASE: Agreement(rows=8, equal=8)}
    seconds, cut = {BASE: 1.0, ADAPTER: 1.0}, {BASE: 120, ADAPTER: 2}
    answered = Answered(frame, seconds, cut, "engine", agreement, adapter_digests(folder))
    base = BaseModelRecord(id="smol", revision="r1", sha256="a" * 64, parameters=10, source="package")
    (folder / BASE_MODEL).write_text(base.to_json())
    inputs = {path: sha256_file(path) for path in (folder / "test.jsonl", folder / BASE_MODEL)}
    generation = write_answers("media", answered, settings.evaluate, inputs, folder / "report")
    return evaluate("media", settings, frame, generation)


def test_evaluate_names_an_opponent_that_the_adapter_loses_to(media: TenantSettings, tmp_path: Path) -> None:
    """Beating the base says little where a classical model does better on the same rows."""
    found = record(answers(adapter_hits=70, tfidf_hits=100), media, tmp_path)
    assert found.beats_base
    assert found.strongest_opponent == TFIDF
    assert found.against_strongest is not None
    assert found.against_strongest.value == pytest.approx(-0.25)
    assert found.verdict.startswith("is clearly worse than its strongest opponent, the tfidf baseline")
    assert found.clusters == 60
    assert found.truncated == {BASE: 120, ADAPTER: 2}
    assert (found.answered_by, found.agreement[BASE].equal) == ("engine", 8)


def test_evaluate_refuses_answers_of_other_settings(media: TenantSettings, tmp_path: Path) -> None:
    """03_evaluate, run alone after an edit of params.yaml, named a few-shot base that nobody asked."""
    frame = answers(70, 70)
    assert record(frame, media, tmp_path).settings == media.evaluate.model_dump(mode="json")
    generation = read_generation(tmp_path / "report")
    quicker = media.evaluate.model_copy(update={"batch_size": 1, "bootstrap": 100})
    assert evaluate("media", media.model_copy(update={"evaluate": quicker}), frame, generation)
    other = media.evaluate.model_copy(update={"few_shot": 0, "max_new_tokens": 99})
    with pytest.raises(LoraOpsError, match=r"\(evaluate.few_shot, evaluate.max_new_tokens\): run `dvc repro"):
        evaluate("media", media.model_copy(update={"evaluate": other}), frame, generation)
    older = generation.model_copy(update={"settings": None})
    with pytest.raises(LoraOpsError, match="do not name .* run `dvc repro --force generate@media`, then"):
        evaluate("media", media, frame, older)


def test_evaluate_gives_every_system_an_interval(media: TenantSettings, tmp_path: Path) -> None:
    found = record(answers(70, 70), media, tmp_path)
    for metric in found.metrics.values():
        assert list(metric) == [BASE, ADAPTER, TFIDF, MAJORITY]
        assert all(interval.low < interval.high for interval in metric.values())
    assert set(found.differences) == {BASE, TFIDF, MAJORITY}
    assert "does not clearly differ" in found.verdict


def test_evaluate_holds_the_adapter_against_the_base_at_its_best(media: TenantSettings, tmp_path: Path) -> None:
    """A base that only lacked examples of the form: the win over the bare prompt says nothing."""
    frame = answers(70, 60)
    few_shot = frame[ADAPTER].where(frame.index < 68, "?")
    found = record(frame.assign(**{BASE_FEW_SHOT: few_shot}), media, tmp_path)
    assert found.strongest_opponent == BASE_FEW_SHOT
    assert found.verdict.startswith("does not clearly differ from its strongest opponent, the base few shot")
    assert all(one.is_clear for one in found.differences[BASE].values())
    assert not found.beats_base


def test_evaluate_holds_the_adapter_against_the_best_way(media: TenantSettings, tmp_path: Path) -> None:
    """A base that answers in sentences knew the labels all the same."""
    frame = answers(70, 60)
    likeliest = frame[ADAPTER].where(frame.index < 68, "neutral")
    ways = {BASE_FEW_SHOT: ["I cannot say."] * len(frame), BASE_LABELS: likeliest}
    found = record(frame.assign(**ways), media, tmp_path)
    assert found.strongest_opponent == BASE_LABELS and found.answered_labels
    assert all(one.is_clear for one in found.differences[BASE_FEW_SHOT].values())
    assert not found.beats_base and "against base labels" in found.unbeaten


def test_evaluate_does_not_beat_a_base_that_is_as_good(media: TenantSettings, tmp_path: Path) -> None:
    frame = answers(70, 70)
    found = record(frame.assign(base=frame[ADAPTER]), media, tmp_path)
    assert not found.beats_base


def test_evaluate_finds_whom_the_adapter_serves_worse(media: TenantSettings, tmp_path: Path) -> None:
    """The last rows are wrong: all rows from the south, and a third of those from the north."""
    evaluation = media.evaluate.model_copy(update={"max_gap": 0.2})
    settings = media.model_copy(update={"evaluate": evaluation})
    region = ["north" if row < 75 else "south" if row < 117 else "east" for row in range(120)]
    found = record(answers(50, 70).assign(**{"slice.region": region}), settings, tmp_path)
    bias = found.bias["region"]
    assert {name: group.rows for name, group in bias.groups.items()} == {"east": 3, "north": 75, "south": 42}
    assert (bias.best, bias.worst) == ("north", "south")
    assert bias.gap is not None and bias.gap.value == pytest.approx(2 / 3, abs=1e-3)
    assert bias.exceeds_limit
    assert "between north (0.667, 75 rows) and south (0.000, 42 rows); limit 0.2, which it clearly" in str(bias)


def test_evaluate_blames_no_group_for_chance(media: TenantSettings, tmp_path: Path) -> None:
    """Twelve groups of ten rows, all served alike: the best and the worst still differ."""
    frame = answers(120, 0)
    wrong = np.random.default_rng(0).random(120) < 0.4
    frame.loc[wrong, ADAPTER] = "?"
    frame["slice.region"] = [str(row // 10) for row in range(120)]
    bias = record(frame, media, tmp_path).bias["region"]
    assert bias.gap is not None and bias.gap.value > 0.3 and bias.gap.low < 0


def test_errors_by_lists_what_was_said_instead(media: TenantSettings) -> None:
    rows = errors_by(answers(60, 70), "target", media)
    assert rows["errors"].tolist() == [20, 20, 20]
    assert rows.set_index("target").loc["neutral", "said most often instead"] == "positive (20 times)"


def test_write_report_keeps_the_record_and_every_answer(media: TenantSettings, tmp_path: Path) -> None:
    frame = answers(70, 100)
    found = record(frame, media, tmp_path)
    write_report(found, frame, media, tmp_path / "report")
    assert read_evaluation(tmp_path / "report") == found
    assert len(pd.read_csv(tmp_path / "report/answers.csv")) == len(frame)
    numbers = json.loads((tmp_path / "report" / METRICS).read_text())
    assert found.strongest_opponent == TFIDF
    systems = found.metrics["exact_match"]
    assert numbers["exact_match"] == {
        "adapter": systems[ADAPTER].value,
        "base": systems[BASE].value,
        "strongest": systems[TFIDF].value,
    }
    assert numbers["label_gap"] >= 0


@pytest.fixture
def publishing(media: TenantSettings) -> TenantSettings:
    """Settings of a tenant whose answers are headings."""
    settings = media.model_dump(mode="json")
    settings["data"] |= {"task": "text", "labels": [], "bias_columns": ["part"]}
    settings["evaluate"] |= {"metrics": ["chrf", "rouge_l"]}
    return TenantSettings.model_validate(settings)


def written(good: int, rows: int = 120) -> pd.DataFrame:
    """The first rows of the adapter are what a person wrote; two rows are one group."""
    places = range(rows)
    return pd.DataFrame(
        {
            "id": [str(row) for row in places],
            "group": [str(row // 2) for row in places],
            "text": [f"The cache number {row} keeps whole pages. It is fast." for row in places],
            "target": [f"Keeping pages in cache {row}" for row in places],
            BASE: ["Here is a heading for this section of the documentation:"] * rows,
            ADAPTER: [f"Keeping pages in cache {row}" if row < good else "Forms" for row in places],
            "slice.part": ["topics" if row % 3 else "ref" for row in places],
        }
    )


def train_rows(targets: list[str]) -> list[Example]:
    return [
        Example(id=str(row), group="g", text=f"row {row}", target=target, prompt="-", completion=target)
        for row, target in enumerate(targets)
    ]


def test_evaluate_measures_written_answers_by_row(publishing: TenantSettings, tmp_path: Path) -> None:
    frame = with_baselines(written(good=90), train_rows(["One two three four five"] * 5), None)
    found = record(frame, publishing, tmp_path)
    assert list(found.metrics) == ["chrf", "rouge_l"] and found.primary == "chrf"
    assert list(found.metrics["chrf"]) == [BASE, ADAPTER, LEAD]
    assert found.metrics["chrf"][ADAPTER].value > 0.75
    assert found.strongest_opponent == LEAD and found.beats_base and not found.groups
    assert found.against_strongest is not None and found.against_strongest.is_clear
    assert frame[LEAD][0] == "The cache number 0 keeps"
    assert found.bias["part"].worst in ("topics", "ref")
    assert list(scores_by(frame, "slice.part", publishing).columns) == [
        "part", "rows", "groups", "chrf base", "chrf adapter",
    ]  # fmt: skip


def test_evaluate_describes_written_answers_beside_peoples(publishing: TenantSettings, tmp_path: Path) -> None:
    """Who copies all is not best: a copied share is no metric to beat a base in."""
    frame = with_baselines(written(good=90), train_rows(["One two three four five"] * 5), None)
    found = record(frame, publishing, tmp_path)
    copied, length = found.traits["copied_share"], found.traits["length_ratio"]
    assert copied[LEAD].value == 1 and copied[TARGET].value == pytest.approx(3 / 5)
    assert length[BASE].value == 2 and length[BASE].low <= 2 <= length[BASE].high
    assert length[ADAPTER].value == pytest.approx((90 * 5 + 30) / (120 * 5), abs=1e-4)
    assert length[ADAPTER].low < length[ADAPTER].value < length[ADAPTER].high
    assert not set(found.traits) & set(found.differences[BASE])
    write_report(found, frame, publishing, tmp_path / "report")
    shown = json.loads((tmp_path / "report" / METRICS).read_text())
    assert shown["copied_share"]["target"] == pytest.approx(0.6)


def test_lost_rows_are_the_worst_first(publishing: TenantSettings) -> None:
    frame = with_baselines(written(good=118), train_rows(["One two three four five"]), None)
    lost = lost_rows(frame, "chrf", LEAD, 3)
    assert lost[ADAPTER].tolist()[:2] == ["Forms", "Forms"] and len(lost) == 3
    assert (lost["chrf adapter"] - lost[f"chrf {LEAD}"]).is_monotonic_increasing


def test_with_baselines_of_labels_has_no_lead_words() -> None:
    shares = dict.fromkeys(LABELS, 1 / 3)
    frame = with_baselines(answers(1, 1).drop(columns=[TFIDF, MAJORITY]), train_rows(list(LABELS) * 3), shares)
    assert TFIDF in frame and LEAD not in frame


def test_with_baselines_majority_is_the_sources() -> None:
    """Balanced training rows made the majority label the first of a tie: 0.143 of media's rows, not 0.537."""
    shares = {"neutral": 0.55, "negative": 0.28, "positive": 0.17}
    rows = train_rows(["positive", "negative", "neutral"] * 3)
    frame = with_baselines(answers(1, 1).drop(columns=[TFIDF, MAJORITY]), rows, shares)
    assert set(frame[MAJORITY]) == {"neutral"}

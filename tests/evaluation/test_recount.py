"""An evaluation that does not follow from the answers in its package is not registered."""

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.compare import evaluate, write_kept_answers
from lora_ops.evaluation.recount import require_recounted
from lora_ops.paths import ANSWERS
from lora_ops.records.evaluation import ADAPTER, BASE, LEAD, EvaluationRecord, Interval
from lora_ops.records.generation import GenerationRecord
from lora_ops.records.manifest import Manifest
from lora_ops.settings.tenant import TenantSettings
from tests.registry.conftest import build_package, interval, with_evaluation


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Manifest]:
    """Build a package whose evaluation is that of its answers."""
    manifest = build_package(tmp_path, 1)
    require_recounted(tmp_path, manifest)
    return tmp_path, manifest


def nearly_alike(folder: Path, manifest: Manifest) -> Manifest:
    """Let the adapter be right about one row more than its base, as nobody could tell from chance."""
    values = {name: interval(0.5) for name in manifest.evaluation.metrics["exact_match"]}
    metrics = {"exact_match": {**values, ADAPTER: interval(round(151 / 300, 4))}}
    return with_evaluation(folder, manifest, metrics=metrics)


def test_a_metric_of_other_answers_is_refused(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    answers = pd.read_csv(folder / ANSWERS, dtype=str)
    answers.loc[0, ADAPTER] = "Travel"
    answers.to_csv(folder / ANSWERS, index=False)
    with pytest.raises(LoraOpsError, match=r"exact_match.adapter.value is 0.51, and answers.csv gives 0.5067"):
        require_recounted(folder, manifest)


def test_a_p_value_of_no_answers_is_refused(made: tuple[Path, Manifest]) -> None:
    """By the file alone it beat its base clearly."""
    folder, manifest = made
    alike = nearly_alike(folder, manifest)
    stated = alike.evaluation.model_dump()
    for of in stated["differences"].values():
        of["exact_match"] |= {"p_value": 0.001, "p_corrected": 0.001}
    forged = alike.model_copy(
        update={"evaluation": EvaluationRecord.model_validate({**stated, "beats_base": True})}
    )
    assert forged.beats_base
    with pytest.raises(LoraOpsError, match="evaluation.beats_base is true, and answers.csv gives false"):
        require_recounted(folder, forged)


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.1), (float("nan"), 0.6), (0.1, float("inf"))])
def test_an_interval_that_is_none_is_refused(made: tuple[Path, Manifest], low: float, high: float) -> None:
    folder, manifest = made
    of = manifest.evaluation.metrics["exact_match"]
    turned = {"exact_match": {**of, BASE: Interval(value=of[BASE].value, low=low, high=high)}}
    evaluation = manifest.evaluation.model_copy(update={"metrics": turned})
    with pytest.raises(LoraOpsError, match="evaluation.metrics.exact_match.base is no interval"):
        require_recounted(folder, manifest.model_copy(update={"evaluation": evaluation}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.drop(columns="base_few_shot"), "has other columns than id, group"),
        (lambda rows: rows.assign(group=rows["group"] + "x"), "has other groups than the test split"),
        (lambda rows: rows.assign(id="1"), "has an id twice"),
        (lambda rows: rows.assign(target="food "), "has the target 'food ', which is not one of data.labels"),
        (
            lambda rows: rows.assign(base_labels=rows["base_labels"] + "!"),
            "has an answer of base_labels that is not one of data.labels",
        ),
        (lambda rows: rows.iloc[:150], "evaluation.rows is 300, and answers.csv gives 150"),
    ],
)
def test_answers_of_another_form_are_refused(made: tuple[Path, Manifest], change: Any, says: str) -> None:
    folder, manifest = made
    change(pd.read_csv(folder / ANSWERS, dtype=str)).to_csv(folder / ANSWERS, index=False)
    with pytest.raises(LoraOpsError, match=says):
        require_recounted(folder, manifest)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("r", 16, "train.rank is 8, and adapter_config.json has r 16"),
        ("lora_alpha", None, "train.alpha is 16, and adapter_config.json has lora_alpha null"),
        (
            "alpha_pattern",
            {"q_proj": 99},
            "adapter_config.json has alpha_pattern, which no recipe of .train. sets",
        ),
        ("base_model_name_or_path", "other", "is for the base model \"other\", not 'smol'"),
    ],
)
def test_a_recipe_of_another_adapter_is_refused(
    made: tuple[Path, Manifest], key: str, value: Any, says: str
) -> None:
    folder, manifest = made
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(LoraOpsError, match=says):
        require_recounted(folder, manifest)


def test_settings_that_no_tenant_has_are_refused(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    evaluate = {name: one for name, one in manifest.params["evaluate"].items() if name != "max_new_tokens"}
    with pytest.raises(LoraOpsError, match="not those of a tenant .evaluate.max_new_tokens: Field required"):
        require_recounted(
            folder, manifest.model_copy(update={"params": {**manifest.params, "evaluate": evaluate}})
        )


def test_a_seed_below_zero_is_refused_in_a_sentence(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    params = {**manifest.params, "evaluate": {**manifest.params["evaluate"], "seed": -1}}
    with pytest.raises(LoraOpsError, match="evaluate.seed: Input should be greater than or equal to 0"):
        require_recounted(folder, manifest.model_copy(update={"params": params}))


def test_answers_with_a_carriage_return_are_counted(made: tuple[Path, Manifest]) -> None:
    """The answers of a package are written as the evaluation reads them."""
    folder, manifest = made
    answers = pd.read_csv(folder / ANSWERS, dtype=str)
    answers.loc[299, ADAPTER] = "Tra\rvel"
    write_kept_answers(answers, folder)
    require_recounted(folder, manifest)


@pytest.fixture
def written(made: tuple[Path, Manifest]) -> tuple[Path, Manifest]:
    """Build a package of written answers whose evaluation is that of its answers."""
    folder, manifest = made
    rows = range(300)
    texts = [f"The cache number {row} keeps whole pages." for row in rows]
    frame = pd.DataFrame(
        {
            "id": [str(row) for row in rows],
            "group": pd.read_csv(folder / ANSWERS, dtype=str)["group"],
            "text": texts,
            "target": [f"Keeping pages in cache {row}" for row in rows],
            BASE: ["Here is a heading for a section of the documentation"] * 300,
            ADAPTER: [f"Pages in cache {row}" for row in rows],
            LEAD: [" ".join(text.split()[:4]) for text in texts],
        }
    )
    write_kept_answers(frame, folder)
    params = copy.deepcopy(manifest.params)
    params["data"] |= {"task": "text", "labels": [], "bias_columns": []}
    params["evaluate"] |= {"metrics": ["chrf", "rouge_l"], "bootstrap": 100}
    settings = TenantSettings.model_validate(params)
    generation = GenerationRecord(
        tenant=manifest.tenant,
        rows=300,
        test_sha256=manifest.evaluation.test_sha256,
        adapter_sha256=manifest.evaluation.adapter_sha256,
        seconds={BASE: 1, ADAPTER: 1},
        settings=settings.evaluate.answering,
    )
    evaluation = evaluate(manifest.tenant, settings, frame, generation)
    return folder, manifest.model_copy(update={"params": params, "evaluation": evaluation})


def test_written_answers_are_counted_again(written: tuple[Path, Manifest]) -> None:
    folder, manifest = written
    assert manifest.evaluation.traits["length_ratio"][BASE].high > 1
    require_recounted(folder, manifest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.drop(columns=LEAD), "has other columns than id, group"),
        (lambda rows: rows.assign(**{LEAD: "?"}), "other words in lead_words_baseline than the first ones"),
        (
            lambda rows: rows.assign(**{ADAPTER: rows["target"]}),
            "metrics.chrf.adapter.value is 0.6.* gives 1.0",
        ),
    ],
)
def test_written_answers_of_another_form_are_refused(
    written: tuple[Path, Manifest], change: Any, says: str
) -> None:
    folder, manifest = written
    change(pd.read_csv(folder / ANSWERS, dtype=str)).to_csv(folder / ANSWERS, index=False)
    with pytest.raises(LoraOpsError, match=says):
        require_recounted(folder, manifest)


@pytest.mark.parametrize("trait", ["copied_share", "length_ratio"])
def test_a_forged_trait_is_refused(written: tuple[Path, Manifest], trait: str) -> None:
    folder, manifest = written
    stated = manifest.evaluation.model_dump()
    stated["traits"][trait][ADAPTER]["value"] = 0.1
    forged = manifest.model_copy(update={"evaluation": EvaluationRecord.model_validate(stated)})
    with pytest.raises(LoraOpsError, match=f"evaluation.traits.{trait}.adapter.value is 0.1, and answers.csv"):
        require_recounted(folder, forged)
    left_out = manifest.evaluation.model_copy(update={"traits": {}})
    with pytest.raises(LoraOpsError, match="evaluation.traits has other entries than answers.csv gives"):
        require_recounted(folder, manifest.model_copy(update={"evaluation": left_out}))


def test_an_evaluation_of_written_answers_needs_its_baseline(written: tuple[Path, Manifest]) -> None:
    folder, manifest = written
    rows = pd.read_csv(folder / ANSWERS, dtype=str)
    rows.drop(columns=LEAD).to_csv(folder / ANSWERS, index=False)
    metrics = {
        name: {system: one for system, one in of.items() if system != LEAD}
        for name, of in manifest.evaluation.metrics.items()
    }
    evaluation = manifest.evaluation.model_copy(update={"metrics": metrics})
    with pytest.raises(LoraOpsError, match="a task of text must have lead_words_baseline"):
        require_recounted(folder, manifest.model_copy(update={"evaluation": evaluation}))


@pytest.mark.parametrize("name", ["base_labels", "tfidf_baseline"])
def test_labels_without_an_opponent_are_refused(made: tuple[Path, Manifest], name: str) -> None:
    """Whoever left out the best way to ask the base model, in answers and record, met a weaker one."""
    folder, manifest = made
    pd.read_csv(folder / ANSWERS, dtype=str).drop(columns=name).to_csv(folder / ANSWERS, index=False)
    [of] = manifest.evaluation.metrics.values()
    fewer = {"exact_match": {system: value for system, value in of.items() if system != name}}
    evaluation = manifest.evaluation.model_copy(update={"metrics": fewer})
    with pytest.raises(LoraOpsError, match=f"a task of labels must have {name}"):
        require_recounted(folder, manifest.model_copy(update={"evaluation": evaluation}))

"""Records of an evaluation: what older ones said is read as what newer ones say."""

import pytest
from pydantic import TypeAdapter

from lora_ops.records.evaluation import EvaluationRecord, Interval, Metrics

INTERVAL = {"value": 0.6, "low": 0.5, "high": 0.7}


def read(metric: object) -> dict[str, Interval]:
    return TypeAdapter(Metrics).validate_python({"exact_match": metric})["exact_match"]


def test_metrics_of_schema_1_name_both_baselines() -> None:
    """A floor had no interval: all that is known is that the metric lies between 0 and 1."""
    metric = read({"base": INTERVAL, "adapter": INTERVAL, "floor": 0.27, "peer": INTERVAL})
    assert list(metric) == ["base", "adapter", "majority_baseline", "tfidf_baseline"]
    assert metric["majority_baseline"] == Interval(value=0.27, low=0, high=1)
    assert metric["tfidf_baseline"] == Interval.model_validate(INTERVAL)


def test_metrics_of_schema_1_without_baselines_have_none() -> None:
    metric = read({"base": INTERVAL, "adapter": INTERVAL, "floor": None, "peer": None})
    assert set(metric) == {"base", "adapter"}


def test_metrics_of_today_are_read_as_they_are() -> None:
    written = {"base": INTERVAL, "adapter": INTERVAL, "base_few_shot": INTERVAL}
    assert read(written) == {name: Interval.model_validate(INTERVAL) for name in written}


BETTER = {"value": 0.3, "low": 0.2, "high": 0.4, "p_value": 0.001, "p_corrected": 0.001}
SCHEMA_1 = {
    "tenant": "finance",
    "rows": 300,
    "test_sha256": "0" * 64,
    "adapter_sha256": "0" * 64,
    "primary": "exact_match",
    "metrics": {"exact_match": {"base": INTERVAL, "adapter": INTERVAL, "floor": 0.27, "peer": INTERVAL}},
    "beats_base": True,
    "seconds_base": 1.0,
    "seconds_adapter": 1.0,
}


def test_verdict_names_the_strongest_opponent() -> None:
    worse = {"value": -0.06, "low": -0.121, "high": -0.002, "p_value": 0.02, "p_corrected": 0.03}
    record = EvaluationRecord.model_validate(
        SCHEMA_1
        | {"strongest_opponent": "tfidf_baseline", "differences": {"tfidf_baseline": {"exact_match": worse}}}
    )
    assert record.verdict == (
        "is clearly worse than its strongest opponent, the tfidf baseline (exact_match -0.060 [-0.121, -0.002])"
    )


@pytest.mark.parametrize(
    ("system", "differences", "contradicts"),
    [
        ("base", {}, False),  # as schema 1
        ("base", {"base": {"exact_match": BETTER}}, False),
        ("base", {"base": {}}, True),
        ("base", {"tfidf_baseline": {"exact_match": BETTER}}, True),
        ("base_few_shot", {"base": {"exact_match": BETTER}}, True),
        ("base_few_shot", {"base": {"exact_match": BETTER}, "base_few_shot": {"exact_match": BETTER}}, False),
    ],
)
def test_an_evaluation_that_leaves_out_its_base_wins_nothing(
    system: str, differences: dict[str, object], contradicts: bool
) -> None:
    metrics = {"exact_match": {system: INTERVAL, "adapter": INTERVAL}}
    record = EvaluationRecord.model_validate(SCHEMA_1 | {"metrics": metrics, "differences": differences})
    assert record.contradicts_itself is contradicts


def test_verdict_of_schema_1_claims_nothing() -> None:
    record = EvaluationRecord.model_validate(SCHEMA_1)
    assert record.verdict == "was not compared with its strongest opponent"
    assert record.against_strongest is None

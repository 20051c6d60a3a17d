"""KEDA's ScaledObject by KEDA's own schema, and throughput from an event log."""

import copy
import json
import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from pydantic import ValidationError
from ruamel.yaml import YAML
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.costs.autoscaling import FILE, as_yaml, query, scaled_object, throughput
from lora_ops.errors import LoraOpsError
from lora_ops.settings.autoscaling import AutoscalingSettings
from lora_ops.settings.params import load_settings
from tests.conftest import ROOT, small_clone
from tests.costs.logs import NOON, Logs, hours

SETTINGS = AutoscalingSettings(selector='job="gateway"', max_replicas=5)


def by_schema(document: Any) -> Any:
    """The document as KEDA's schema reads it; what the schema doesn't know is gone."""
    return ScaledObject.model_validate(document).model_dump(by_alias=True, exclude_none=True, mode="json")


def test_scaled_object_is_what_keda_reads() -> None:
    document = YAML(typ="safe").load(as_yaml(SETTINGS))
    assert document == scaled_object(SETTINGS)
    assert by_schema(document) == document


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ((), "pollingIntervall", 15),
        (("triggers", 0), "metriktype", "AverageValue"),
        (("fallback",), "failureTreshold", 3),
    ],
)
def test_schema_check_finds_a_typing_slip(where: tuple[Any, ...], name: str, value: object) -> None:
    """The schema lets unknown keys pass, so that what it reads is compared with what was written."""
    document = copy.deepcopy(scaled_object(SETTINGS))
    part = document["spec"]
    for key in where:
        part = part[key]
    part[name] = value
    assert by_schema(document) != document


def test_schema_refuses_what_is_no_scaled_object() -> None:
    for name, value in (("maxReplicaCount", "five"), ("triggers", None)):
        document = copy.deepcopy(scaled_object(SETTINGS))
        document["spec"][name] = value
        with pytest.raises(ValidationError):
            ScaledObject.model_validate(document)


def test_scaled_object_does_not_scale_down_blindly() -> None:
    trigger = scaled_object(SETTINGS)["spec"]["triggers"][0]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metricType"] == "AverageValue"
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert query(SETTINGS) == (
        'sum(lora_ops_backlog_prompt_tokens{job="gateway"}) / 1500 + '
        'sum(lora_ops_backlog_generated_tokens{job="gateway"}) / 150'
    )


def test_committed_scaled_object_is_that_of_params() -> None:
    assert (ROOT / FILE).read_text() == as_yaml(load_settings(ROOT).autoscaling)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_replicas": 0},
        {"min_replicas": 3},
        {"max_replicas": 1},
        {"selector": 'job="a"} or vector(1'},
        {"deployment": "Gateway_1"},
        {"decode_tokens_per_second": 0},
        {"prometheus": "prometheus:9090"},
    ],
)
def test_autoscaling_settings_refuse_what_can_not_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AutoscalingSettings.model_validate(wrong)


def test_throughput_is_found_in_the_event_log(tmp_path: Path) -> None:
    """2,000 tokens a second are read and 100 written, as the made-up device times have it."""
    logs, draw = Logs(tmp_path), random.Random(5)
    for second in range(200):
        read, wrote = draw.randint(5, 2000), draw.randint(1, 200)
        seconds = (read / 2000 + wrote / 100) * draw.uniform(0.9, 1.1)
        logs.event(second, seconds, prompt_tokens=read, generated_tokens=wrote)
    found = throughput(tmp_path / "events", hours(0, 1))
    assert found.prefill == pytest.approx(2000, rel=0.1)
    assert found.decode == pytest.approx(100, rel=0.1)
    assert found.requests == 200 and 0.9 < found.explained < 1


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 answered requests"), (49, "49 answered"), (60, "doesn't tell")]
)
def test_throughput_of_too_little_is_refused(tmp_path: Path, count: int, said: str) -> None:
    logs = Logs(tmp_path)
    for second in range(count):
        logs.event(second, second / 100, prompt_tokens=1000 - second, generated_tokens=second + 1)
    with pytest.raises(LoraOpsError, match=said):
        throughput(tmp_path / "events", hours(0, 1))


def test_autoscaling_is_written_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small_clone(tmp_path / "clone")
    monkeypatch.setenv("LORA_OPS_ROOT", str(root))
    shutil.rmtree(root / FILE.parts[0], ignore_errors=True)
    missing = CliRunner().invoke(app, ["autoscaling", "write", "--check"])
    assert missing.exit_code == 1 and "is not what params.yaml says" in missing.stdout
    assert not (root / FILE).parent.exists()
    done = CliRunner().invoke(app, ["autoscaling", "write", "--json"])
    assert done.exit_code == 0, done.output
    assert Path(json.loads(done.stdout)["path"]).read_text() == (ROOT / FILE).read_text()
    assert CliRunner().invoke(app, ["autoscaling", "write", "--check"]).exit_code == 0
    refused = CliRunner().invoke(app, ["autoscaling", "calibrate"])
    assert isinstance(refused.exception, LoraOpsError)
    assert hours(0, 1).end == NOON + timedelta(hours=1)

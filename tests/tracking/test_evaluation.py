"""What a reviewer finds at W&B of an evaluation, logged by the real client."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.records.evaluation import EvaluationRecord
from lora_ops.tracking.evaluation import error_slices, label_rows, score_rows
from tests import wandb_server
from tests.conftest import run
from tests.wandb_server import WandbServer

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
RECORD = {
    "tenant": "finance",
    "rows": 3,
    "test_sha256": "7" * 64,
    "adapter_sha256": "a" * 64,
    "primary": "exact_match",
    "metrics": {
        "exact_match": dict.fromkeys(("base", "adapter", "majority_baseline", "tfidf_baseline"), INTERVAL)
    },
    "beats_base": True,
    "groups": {
        "Hotels": {"rows": 2, "value": INTERVAL},
        "Airlines": {"rows": 1, "value": {**INTERVAL, "value": 0}},
    },
    "bias": {"region": {"groups": {"north": {"rows": 3, "value": INTERVAL}}, "gap": INTERVAL}},
    "differences": {"base": {"exact_match": {**INTERVAL, "p_value": 0.01, "p_corrected": 0.02}}},
    "strongest_opponent": "base",
    "seconds_base": 1.0,
    "seconds_adapter": 1.0,
}
ANSWERS = {
    "id": ["1", "2", "3"],
    "group": ["a", "a", "b"],
    "text": ["RITZ", "HILTON", "KLM"],
    "target": ["Hotels", "Hotels", "Airlines"],
    "base": ["?", "?", "?"],
    "adapter": ["Hotels", "Airlines", "a plane"],
}

EVALUATE = """
import json, sys
from pathlib import Path
import pandas as pd
from lora_ops.records.evaluation import EvaluationRecord
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.evaluation import log_evaluation
from lora_ops.tracking.runs import track

root, settings = Path(sys.argv[1]), TrackingSettings(project="adapters")
record, answers = json.loads(sys.argv[2]), pd.DataFrame(json.loads(sys.argv[3]))
confused = pd.DataFrame({"target": answers["target"], "predicted": ["Hotels", "Airlines", None]})
with track("evaluate", "finance", {}, settings, root, ["data"], ["evaluation"]) as run:
    log_evaluation(run, EvaluationRecord.model_validate(record), answers, confused)
"""


def test_evaluation_is_whole_at_wandb(root: Path, server: WandbServer) -> None:
    script = [sys.executable, "-c", EVALUATE, root, json.dumps(RECORD), json.dumps(ANSWERS)]
    key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY}
    done = run(*script, cwd=root, **key)
    assert done.returncode == 0, done.stderr
    (logged,) = server.runs.values()
    for system in RECORD["metrics"]["exact_match"]:
        found = [logged.summary[f"exact_match/{system}{bound}"] for bound in ("", "/low", "/high")]
        assert found == [0.5, 0.4, 0.6]
    assert logged.summary["beats_base"] is True

    def table(name: str) -> dict[str, Any]:
        (version,) = server.collection(f"run-{logged.name}-{name}", project="adapters").versions
        (path,) = (path for file, path in server.files_of(version).items() if file.endswith(".table.json"))
        found: dict[str, Any] = json.loads(server.storage[path])
        return found

    assert logged.summary["minus_strongest"]["p_corrected"] == 0.02
    assert logged.summary["bias/region/gap"]["low"] == 0.4
    assert len(table("answers")["data"]) == 3
    assert table("bias")["data"] == [["region", "north", 3, 0.5, 0.4, 0.6]]
    assert table("differences")["data"][0][:2] == ["base", "exact_match"]
    assert table("metrics")["columns"] == ["metric", "system", "value", "low", "high"]
    assert table("errors_by_label")["data"][0][:3] == ["Airlines", 1, 0]
    assert table("errors_by_group")["data"] == [["b", 1, 1, 1], ["a", 2, 1, 2]]
    assert ["Airlines", "(no label)", 1] in table("confusion")["data"]
    assert logged.summary["confusion_matrix_table"]["nrows"] > 0
    assert {version.collection.name for version in logged.outputs} >= {"finance-evaluation"}


def test_error_slices_rank_by_errors() -> None:
    slices = error_slices(pd.DataFrame(ANSWERS), "group")
    assert slices.to_dict("list") == {
        "group": ["b", "a"],
        "rows": [1, 2],
        "adapter_errors": [1, 1],
        "base_errors": [1, 2],
    }


def test_label_rows_start_with_the_worst() -> None:
    assert list(label_rows(EvaluationRecord.model_validate(RECORD))["label"]) == ["Airlines", "Hotels"]


def test_score_rows_have_each_systems_score() -> None:
    record = EvaluationRecord.model_validate(
        {**RECORD, "metrics": {"chrf": dict.fromkeys(("base", "adapter"), INTERVAL)}}
    )
    found = score_rows(record, pd.DataFrame(ANSWERS))
    assert list(found.columns) == ["id", "group", "chrf/base", "chrf/adapter"]
    assert found["chrf/adapter"].tolist()[0] == 1 and found["chrf/base"].tolist() == [0, 0, 0]

"""The names of the files that stages leave, and how a record is read back.

Each record's own reader stands in its module of `lora_ops/records`, so that a stage reaches the records that it
uses and no others.
"""

from pathlib import Path
from typing import TypeVar

from lora_ops.errors import LoraOpsError
from lora_ops.records.record import Record

BASE_MODEL = "base_model.json"
CONTRACT = "contract.json"
SUITE = "suite.json"
DATA = "data.json"
PROMPT = "prompt.json"  # the system prompt and the labels: what prompts have in common
SLICE = "slice."  # before the name of a column of data.bias_columns, wherever it stands beside others
SLICES = "slices.csv"  # of each test row: its values in data.bias_columns
MEMBERSHIP = "membership.csv"  # of each split: its groups, as digests, and their rows
TRAINING = "training.json"
LOSSES = "loss.csv"
VALIDATION_LOSSES = "validation.csv"
TRAIN_METRICS = "train_metrics.json"
GENERATION = "generated.json"
GENERATED = "generated.csv"
EVALUATION = "evaluation.json"
METRICS = "metrics.json"
ANSWERS = "answers.csv"
CONFUSION = "confusion.csv"
SAMPLES = "samples.csv"
CASES = "cases.json"  # a tenant's regression suite, as it is asked
CASE_ANSWERS = "case_answers.json"  # the adapter's answers to it
POLICY_PROMPTS = "policy_prompts.json"  # a tenant's policy suite, as it is asked
POLICY_ANSWERS = "policy_answers.json"  # the adapter's answers to it
MANIFEST = "manifest.json"
EVALUATION_PAGE = "03_evaluate.html"
MODEL_CARD = "README.md"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")  # as PEFT names them

AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, kind: type[AnyRecord], stage: str) -> AnyRecord:
    """Read the record that `stage` wrote to `path`.

    Raises:
        LoraOpsError: the stage has not run yet, or something else wrote to the file.
    """
    require_file(path, stage)
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, no JSON, or not what the stage writes
        raise LoraOpsError(
            f"{path} is not what the stage `{stage}` writes: remove it, and run that stage again."
        ) from error


def require_file(path: Path, stage: str) -> None:
    """Check that `stage` wrote `path`.

    Raises:
        LoraOpsError: it has not run yet.
    """
    if not path.is_file():
        raise LoraOpsError(
            f"There is no {path} yet: run the stage `{stage}` first (`dvc repro` runs them all)."
        )

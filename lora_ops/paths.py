"""Where each stage leaves its results, and how the next one reads them back."""

from pathlib import Path
from typing import TypeVar

from lora_ops.errors import LoraOpsError
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import DataRecord, Example
from lora_ops.records.evaluation import EvaluationRecord
from lora_ops.records.record import Record
from lora_ops.records.training import TrainingRecord

BASE_MODEL = "base_model.json"
CONTRACT = "contract.json"
DATA = "data.json"
TRAINING = "training.json"
LOSSES = "loss.csv"
EVALUATION = "evaluation.json"
METRICS = "metrics.json"
ANSWERS = "answers.csv"
CONFUSION = "confusion.csv"
SAMPLES = "samples.csv"
MANIFEST = "manifest.json"

AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_base_model(folder: Path) -> BaseModelRecord:
    """The record of the base model in `folder`.

    Raises:
        LoraOpsError: there is none yet.
    """
    return _read(folder / BASE_MODEL, BaseModelRecord, "base_model")


def read_data_record(folder: Path) -> DataRecord:
    """The record of the prepared data in `folder`.

    Raises:
        LoraOpsError: the data is not prepared yet.
    """
    return _read(folder / DATA, DataRecord, "prepare")


def read_split(folder: Path, split: str) -> list[Example]:
    """The examples of one split of the prepared data in `folder`.

    Raises:
        LoraOpsError: the data is not prepared yet.
    """
    path = folder / f"{split}.jsonl"
    _require(path, "prepare")
    return [Example.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_training_record(folder: Path) -> TrainingRecord:
    """The record of the training whose report is in `folder`.

    Raises:
        LoraOpsError: there was none yet.
    """
    return _read(folder / TRAINING, TrainingRecord, "train")


def read_evaluation(folder: Path) -> EvaluationRecord:
    """The record of the evaluation whose report is in `folder`.

    Raises:
        LoraOpsError: there was none yet.
    """
    return _read(folder / EVALUATION, EvaluationRecord, "evaluate")


def _read(path: Path, kind: type[AnyRecord], stage: str) -> AnyRecord:
    _require(path, stage)
    return kind.model_validate_json(path.read_text(encoding="utf-8"))


def _require(path: Path, stage: str) -> None:
    if not path.is_file():
        raise LoraOpsError(
            f"There is no {path} yet: run the stage `{stage}` first (`dvc repro` runs them all)."
        )

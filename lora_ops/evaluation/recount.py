"""Whether the record of an evaluation follows from the answers that its package keeps."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.paths import ADAPTER_FILES, ANSWERS, MEMBERSHIP
from lora_ops.records.evaluation import (
    ADAPTER,
    BASE,
    BASE_LABELS,
    LEAD,
    MAJORITY,
    SYSTEMS,
    TFIDF,
    EvaluationRecord,
)
from lora_ops.records.generation import GenerationRecord
from lora_ops.records.manifest import Manifest
from lora_ops.records.membership import read_groups
from lora_ops.settings.files import first_problem
from lora_ops.settings.tenant import TenantSettings
from lora_ops.small_files import read_json

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("id", "group", "text", "target")
"""What `answers.csv` has besides a column for each system, and one for each of `data.bias_columns`."""
ONE_TASK = {BASE_LABELS: "labels", TFIDF: "labels", MAJORITY: "labels", LEAD: "text"}
"""Systems that every tenant of one task has, and none of the other one."""
UNLIMITED = ("length_ratio",)
"""What has no upper limit; everything else lies between -1 and 1."""
CLOSE = 1e-6
CHANCE = 0.01
"""How far two p-values of as many permutations may differ where another numpy draws them."""
RECIPE = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
"""Settings of `train` by their names in adapter_config.json."""
UNSET = (
    "alpha_pattern", "rank_pattern", "layers_to_transform", "layer_replication", "modules_to_save",
    "target_parameters", "trainable_token_indices", "use_dora", "use_rslora",
)  # fmt: skip
"""Settings of peft that `train` has none for; each makes another adapter of the same rank and alpha."""


def require_recounted(folder: Path, manifest: Manifest) -> None:
    """Refuse an evaluation that does not follow from the answers beside it, or a recipe not of this adapter.

    The evaluation's own function counts again, so every number that a gate reads is compared. Bounds that need
    the bootstrap are not: they take as long as the evaluation, and no gate reads them.

    Raises:
        LoraOpsError: a number differs, the answers are not of the test split, or params.yaml would refuse the
            settings of the manifest.
    """
    try:
        settings = TenantSettings.model_validate(manifest.params)
    except ValidationError as error:
        wrong = [f"its params are not those of a tenant ({first_problem(error)})"]
    else:
        wrong = [*_unlike_recipe(folder, manifest, settings), *_unlike_answers(folder, manifest, settings)]
    if wrong:
        raise LoraOpsError(
            f"The evaluation of '{manifest.tenant}' does not follow from its package: {'; '.join(wrong)}. Run "
            f"`dvc repro --force package@{manifest.tenant}`, or its stages from `train` on; nothing was "
            "registered."
        )


def _unlike_recipe(folder: Path, manifest: Manifest, settings: TenantSettings) -> Iterator[str]:
    name = ADAPTER_FILES[1]
    try:
        config = read_json(folder / name)
    except (OSError, ValueError) as error:
        yield f"{name} can't be read ({error})"
        return
    if not isinstance(config, dict):
        yield f"{name} holds no settings"
        return
    for setting, key in RECIPE.items():
        stated = getattr(settings.train, setting)
        if config.get(key) != stated:
            yield f"train.{setting} is {stated}, and {name} has {key} {json.dumps(config.get(key))}"
    yield from (f"{name} has {key}, which no recipe of `train` sets" for key in UNSET if config.get(key))
    base = config.get("base_model_name_or_path")
    if base != manifest.base_model.id:
        yield f"{name} is for the base model {json.dumps(base)}, not '{manifest.base_model.id}'"


def _unlike_answers(folder: Path, manifest: Manifest, settings: TenantSettings) -> Iterator[str]:
    import pandas as pd

    from lora_ops.evaluation.bias import SLICE

    try:
        answers = pd.read_csv(folder / ANSWERS, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        yield f"{ANSWERS} can't be read ({error})"
        return
    stated = manifest.evaluation
    systems = [name for name in SYSTEMS if any(name in of for of in stated.metrics.values())]
    columns = [*COLUMNS, *systems, *(f"{SLICE}{name}" for name in settings.data.bias_columns)]
    if sorted(map(str, answers.columns)) != sorted(columns):
        yield f"{ANSWERS} has other columns than {', '.join(columns)}"
        return
    if answers["id"].duplicated().any():
        yield f"{ANSWERS} has an id twice"
    if {sha256_text(group) for group in answers["group"]} != read_groups(folder / MEMBERSHIP).get("test"):
        yield f"{ANSWERS} has other groups than the test split in {MEMBERSHIP}"
    strange = sorted(set(answers["target"]) - set(settings.data.labels)) if settings.data.labels else []
    if strange:
        yield f"{ANSWERS} has the target '{strange[0]}', which is not one of data.labels"
        return
    wrong = [name for name, task in ONE_TASK.items() if (name in systems) != (settings.data.task == task)]
    if wrong:
        must = "can't have" if wrong[0] in systems else "must have"
        yield f"the evaluation of a task of {settings.data.task} {must} {wrong[0]}"
        return
    if LEAD in systems:
        yield from _unlike_lead(answers)
    chosen = answers.get(BASE_LABELS)
    if chosen is not None and not chosen.isin(settings.data.labels).all():
        yield f"{ANSWERS} has an answer of {BASE_LABELS} that is not one of data.labels"
    yield from _unlike(stated, recounted(answers, settings, stated))
    cut = stated.truncated
    if not cut.keys() <= set(systems) or not all(0 <= count <= stated.rows for count in cut.values()):
        yield f"evaluation.truncated counts other answers than those of {stated.rows} rows"


def _unlike_lead(answers: "pd.DataFrame") -> Iterator[str]:
    """Yield that a lead is not the first words of its text, as many as every lead has."""
    leads = [lead.split() for lead in answers[LEAD]]
    count = max(map(len, leads), default=0)
    if any(lead != text.split()[: max(1, count)] for lead, text in zip(leads, answers["text"], strict=True)):
        yield f"{ANSWERS} has other words in {LEAD} than the first ones of each text"


def recounted(answers: "pd.DataFrame", settings: TenantSettings, stated: EvaluationRecord) -> EvaluationRecord:
    """Return the evaluation that answers give, whose intervals by the bootstrap are of one draw.

    Args:
        answers: as `ANSWERS` has them.
        settings: of the tenant.
        stated: the evaluation of its package, which names the rows and the adapter.
    """
    from lora_ops.evaluation.compare import evaluate

    # One draw instead of thousands: nothing of the bootstrap is compared.
    quick = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"bootstrap": 1})})
    generation = GenerationRecord(
        tenant=stated.tenant,
        rows=len(answers),
        test_sha256=stated.test_sha256,
        adapter_sha256=stated.adapter_sha256,
        seconds={BASE: 0, ADAPTER: 0},
        settings=settings.evaluate.answering,
    )
    return evaluate(stated.tenant, quick, answers, generation)


def _unlike(stated: EvaluationRecord, counted: EvaluationRecord) -> Iterator[str]:
    """Yield each number of an evaluation that the answers give otherwise, and each interval that is none."""
    names = ("rows", "clusters", "primary", "metrics", "beats_base", "strongest_opponent", "differences")
    for name in (*names, "traits", "groups", "bias"):
        found, true = (one.model_dump(mode="json")[name] for one in (stated, counted))
        yield from list(_differing(f"evaluation.{name}", found, true))[:1]


def _differing(path: str, found: Any, true: Any) -> Iterator[str]:
    if not isinstance(true, dict) or not isinstance(found, dict):
        if not _is_close(path.rpartition(".")[2], found, true):
            yield f"{path} is {json.dumps(found)}, and {ANSWERS} gives {json.dumps(true)}"
        return
    if found.keys() != true.keys():
        yield f"{path} has other entries than {ANSWERS} gives"
        return
    # The bounds of a gap don't come from the bootstrap.
    bounds = () if path.endswith(".gap") else ("low", "high")
    limit = None if any(name in path.split(".") for name in UNLIMITED) else 1
    if {"low", "high"} <= found.keys() and not _is_interval(found, limit):
        yield f"{path} is no interval"
    for name in found:
        if name not in bounds:
            yield from _differing(f"{path}.{name}", found[name], true[name])


def _is_interval(found: dict[str, Any], limit: float | None) -> bool:
    low, high = found["low"], found["high"]
    if not all(isinstance(one, float) and math.isfinite(one) for one in (low, high)):
        return False
    return -1 <= low <= high and (limit is None or high <= limit)


def _is_close(name: str, found: Any, true: Any) -> bool:
    if isinstance(true, float) and isinstance(found, float):
        return math.isclose(found, true, rel_tol=0, abs_tol=CHANCE if name.startswith("p_") else CLOSE)
    return bool(found == true)

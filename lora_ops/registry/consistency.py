"""Whether a manifest says what the files of its package say: gates read the one, people read the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.page import page_evaluation
from lora_ops.paths import ADAPTER_FILES, EVALUATION, EVALUATION_PAGE, MEMBERSHIP
from lora_ops.records.evaluation import ADAPTER, EvaluationRecord
from lora_ops.records.manifest import Manifest
from lora_ops.records.membership import read_groups


def require_consistent(folder: Path, manifest: Manifest) -> None:
    """Refuse a manifest that says something else than the files beside it: gates read it, people read them.

    Raises:
        LoraOpsError: the package has no adapter; the evaluation in it is another one, or is of another adapter,
            tenant or base, or says two things; or a file that others read later can't be read.
    """
    missing = [name for name in ADAPTER_FILES if name not in manifest.files]
    if missing:
        # Under another name nobody would compare it, know its weights again or load it.
        raise LoraOpsError(
            f"The package of '{manifest.tenant}' holds no {missing[0]}: run `dvc repro "
            f"package@{manifest.tenant}`; nothing was registered."
        )
    if MEMBERSHIP in manifest.files:
        read_groups(folder / MEMBERSHIP)
    _require_own_page(folder, manifest)
    path = folder / EVALUATION
    if EVALUATION not in manifest.files or not path.is_file():
        return  # without an evaluation in the package a version can't become more than a candidate
    try:
        evaluated = EvaluationRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoraOpsError(f"{path} is not an evaluation: evaluate and package it again.") from error
    weights, config = (manifest.files[name].sha256 for name in ADAPTER_FILES)
    tenant, data, training = manifest.tenant, manifest.data, manifest.training
    bases = {data.base_model_sha256, training.base_model_sha256, manifest.base_model.sha256}
    facts = {
        "its evaluation is not the one in the package": evaluated == manifest.evaluation,
        "it was evaluated with another adapter": evaluated.adapter_sha256 == weights,
        "it was evaluated with other settings": evaluated.adapter_config_sha256 in (None, config),
        "it names several tenants": {evaluated.tenant, data.tenant, training.tenant, tenant} == {tenant},
        "it was trained or prepared for another base model": len(bases) == 1,
        "it was trained on other data": training.train_sha256 == data.splits["train"].sha256,
        "its data broke the contract": data.contract_success,
        "no row was evaluated": evaluated.rows > 0,
        "a metric lacks the adapter": all(ADAPTER in metric for metric in evaluated.metrics.values()),
        "its differences to the base say something else than beats_base": not evaluated.contradicts_itself,
        "its params are not those of a tenant": all(
            isinstance(manifest.params.get(section, {}), dict) for section in ("data", "train", "evaluate")
        ),
    }
    wrong = [problem for problem, holds in facts.items() if not holds]
    left_out = [] if wrong else _left_out(evaluated, manifest.params)
    if left_out:  # approvers compare the params of two versions, and gates read the evaluation
        wrong = [f"its evaluation leaves out what its params ask for ({', '.join(left_out)})"]
    if wrong:
        raise LoraOpsError(
            f"The manifest of '{tenant}' does not fit its package: {'; '.join(wrong)}. Run `dvc repro "
            f"package@{tenant}`; nothing was registered."
        )


def _left_out(evaluated: EvaluationRecord, params: Mapping[str, Any]) -> list[str]:
    """Return the settings of an evaluation that it does not have: metrics and columns."""
    evaluate, data = params.get("evaluate", {}), params.get("data", {})
    asked = (
        ("evaluate.metrics", evaluate.get("metrics"), evaluated.metrics),
        ("data.bias_columns", data.get("bias_columns"), evaluated.bias),
    )
    return [
        f"{setting} {name}"
        for setting, names, there in asked
        for name in (names if isinstance(names, list | tuple) else ())
        if name not in there
    ]


def is_other_page(page: Path, manifest: Manifest) -> bool:
    """Return whether a page names another evaluation than the package's; one of an older release names none."""
    about, evaluated = page_evaluation(page), manifest.files.get(EVALUATION)
    return about is not None and (evaluated is None or about != evaluated.sha256)


def _require_own_page(folder: Path, manifest: Manifest) -> None:
    """Refuse the page of another evaluation: its readers would approve what they did not see."""
    page = folder / EVALUATION_PAGE
    if EVALUATION_PAGE in manifest.files and page.is_file() and is_other_page(page, manifest):
        raise LoraOpsError(
            f"{page} is the page of another evaluation than the one in the package: run `dvc repro "
            f"package@{manifest.tenant}`; nothing was registered."
        )

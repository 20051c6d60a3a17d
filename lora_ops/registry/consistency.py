"""Whether a manifest says what the files of its package say: gates read the one, people read the others."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import differing
from lora_ops.page import page_evaluation
from lora_ops.paths import (
    ADAPTER_FILES,
    ANSWERS,
    CASE_ANSWERS,
    CASES,
    EVALUATION,
    EVALUATION_PAGE,
    MEMBERSHIP,
    MODEL_CARD,
    POLICY_ANSWERS,
    POLICY_PROMPTS,
    SAMPLES,
)
from lora_ops.records.evaluation import (
    ADAPTER,
    BASE,
    OPPONENTS,
    BiasAssessment,
    EvaluationRecord,
)
from lora_ops.records.manifest import SCHEMA_VERSION, Manifest, fresh_until, published
from lora_ops.records.membership import read_groups
from lora_ops.small_files import parse_json, read_text

SPLITS = ("train", "validation", "test")
KEPT = (EVALUATION, ANSWERS, MEMBERSHIP)
"""What gates and comparisons read of a package, besides its adapter."""
WRITTEN = {*ADAPTER_FILES, *KEPT, SAMPLES, MODEL_CARD, EVALUATION_PAGE}
WRITTEN |= {CASES, CASE_ANSWERS, POLICY_PROMPTS, POLICY_ANSWERS}
"""All that the stages put into a package: whatever else lies in it was evaluated by nobody."""
AHEAD = timedelta(days=1)
"""A day begins at another hour elsewhere."""
PACKAGING = timedelta(minutes=1)
"""Earlier releases asked for the time twice while they packaged."""


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
    base = manifest.base_model
    bases = {base.sha256, data.base_model_sha256, training.base_model_sha256}
    # Older records name no files, and nothing can be compared with them.
    files = {base.files_sha256, data.base_files_sha256, training.base_files_sha256, evaluated.base_files_sha256}
    facts = {
        "its evaluation is not the one in the package": evaluated == manifest.evaluation,
        "the record of its training is that of another adapter": training.adapter_sha256 in (None, weights),
        "it was evaluated with another adapter": evaluated.adapter_sha256 == weights,
        "it was evaluated with other settings": evaluated.adapter_config_sha256 in (None, config),
        "it names several tenants": {evaluated.tenant, data.tenant, training.tenant, tenant} == {tenant},
        "it was trained or prepared for another base model": len(bases) == 1,
        "it was trained, prepared or evaluated with other files of its base model": len(files - {None}) <= 1,
        "it was trained on other data": "train" in data.splits
        and training.train_sha256 == data.splits["train"].sha256,
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


def require_complete(folder: Path, manifest: Manifest, now: datetime) -> None:
    """Refuse a new version whose manifest lacks what the pipeline of today writes, or says it otherwise.

    What an earlier release took is read by the rules of its schema. A new version is not: what it leaves out
    would be compared with nothing. The package is consistent already (`require_consistent`). The
    numbers of its evaluation are compared with its answers by `lora_ops.evaluation.recount`.

    Args:
        folder: the package.
        manifest: of a version that the registry does not have yet.
        now: the time of this machine.

    Raises:
        LoraOpsError: something is missing, or follows otherwise from data, settings and files.
    """
    wrong = [*_unlike_files(manifest, folder)]
    wrong = wrong or [*_unlike_data(manifest), *_unlike_settings(manifest, now), *_unlike_gates(manifest)]
    if wrong:
        raise LoraOpsError(
            f"The manifest of '{manifest.tenant}' is not one that the stage `package` writes: "
            f"{'; '.join(wrong)}. Run `dvc repro --force package@{manifest.tenant}`, or its stages from "
            "`prepare` on; nothing was registered."
        )


def _unlike_files(manifest: Manifest, folder: Path) -> Iterator[str]:
    if manifest.schema_version != SCHEMA_VERSION:
        yield f"it has schema {manifest.schema_version}, and this release writes {SCHEMA_VERSION}"
    sections = {name: manifest.params.get(name) for name in ("data", "train", "evaluate", "package")}
    yield from (f"params has no {name}" for name, one in sections.items() if not isinstance(one, dict))
    lost = [name for name in KEPT if name not in manifest.files]
    if lost:
        yield f"the package holds no {lost[0]}"
        return
    foreign = sorted(set(manifest.files) - WRITTEN)
    if foreign:  # an engine may read it: a tokenizer of its own, weights under a name that differs in case
        yield f"the package holds '{foreign[0]}', which no stage writes"
    if EVALUATION_PAGE in manifest.files and page_evaluation(folder / EVALUATION_PAGE) is None:
        yield f"{EVALUATION_PAGE} does not name the evaluation that it shows"
    for name in (EVALUATION, ADAPTER_FILES[1]):
        try:
            parse_json(read_text(folder / name), unique=True)
        except ValueError as error:
            yield f"{name} can't be read: {error}"
    sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    other = differing(sizes, {name: file.bytes for name, file in manifest.files.items()})
    if other:
        yield f"{other[0]} has {sizes[other[0]]} bytes"
    if manifest.size_bytes != sum(sizes[name] for name in ADAPTER_FILES):
        yield f"size_bytes is {manifest.size_bytes}, and the adapter's files have another size"
    report = manifest.files[EVALUATION].sha256
    if manifest.evaluation_report_sha256 != report:
        yield f"evaluation_report_sha256 is not that of {EVALUATION}"
    if manifest.bias != BiasAssessment.of(manifest.evaluation, report):
        yield "bias says something else than its evaluation"
    if manifest.policy or manifest.human_evaluation:
        yield "it quotes reports on people or policy, which are filed on a version (`lora-ops registry file`)"
    lacking = [name for name in SPLITS if name not in manifest.data.splits]
    if lacking:
        yield f"data.splits has no {lacking[0]}"
        return
    members = read_groups(folder / MEMBERSHIP)
    if sum(map(len, members.values())) != len(set().union(*members.values())):
        yield f"{MEMBERSHIP} lists a group in two splits"
    counted = {name: len(groups) for name, groups in members.items()}
    splits = differing(counted, {name: split.groups for name, split in manifest.data.splits.items()})
    if splits:
        yield f"{MEMBERSHIP} lists other groups of {', '.join(splits)} than data.splits"


def _unlike_data(manifest: Manifest) -> Iterator[str]:
    evaluation, training = manifest.evaluation, manifest.training
    train, test = manifest.data.splits["train"], manifest.data.splits["test"]
    tested = {"rows": test.rows, "groups": test.groups, "SHA-256": test.sha256}
    found = {"rows": evaluation.rows, "groups": evaluation.clusters, "SHA-256": evaluation.test_sha256}
    other = differing(tested, found)
    if other:
        yield f"its evaluation has other {' and '.join(other)} than data.splits.test"
    if training.adapter_sha256 is None:
        yield "the record of its training does not name the adapter (training.adapter_sha256)"
    base = manifest.base_model
    named = {base.files_sha256, manifest.data.base_files_sha256, training.base_files_sha256}
    if None in {*named, evaluation.base_files_sha256}:
        yield (
            "the records of its base model, data, training or evaluation do not name the files of the base "
            "model (base_files_sha256)"
        )
    if training.examples != train.rows:
        yield f"it was trained on {training.examples} rows, and data.splits.train has {train.rows}"
    if evaluation.adapter_config_sha256 != manifest.files[ADAPTER_FILES[1]].sha256:
        yield "its evaluation does not name the settings of the adapter (adapter_config_sha256)"


def _unlike_settings(manifest: Manifest, now: datetime) -> Iterator[str]:
    data, package, source = manifest.params["data"], manifest.params["package"], manifest.data.source
    said = {"license": package.get("license"), "date": data.get("published"), "task": data.get("task")}
    other = differing(said, {"license": manifest.license, "date": source.date, "task": manifest.data.task})
    if other:
        yield f"{' and '.join(other)} of its data or model are not those of its params"
    # The gateway prompts the adapter by its params, and it was evaluated with those that prepared its data.
    # Reviewers read the recipe in its params, and gates what was asked of the evaluation.
    for section, record, done, ran in (
        ("data", "data", "its data were prepared", manifest.data.settings),
        ("train", "training", "its adapter was trained", manifest.training.settings),
        ("evaluate", "evaluation", "its answers were measured", manifest.evaluation.settings),
    ):
        if ran is None:
            yield f"no record names the settings that {done} by ({record}.settings)"
            continue
        named = ", ".join(f"{section}.{name}" for name in differing(manifest.params[section], ran))
        if named:
            yield f"{done} by another {named} than that of its params"
    if manifest.data.own_checks is None:
        yield "its data do not name the tenant's own checks that judged them (data.own_checks)"
    days = package.get("freshness_days")
    if not isinstance(days, int) or days < 1:
        yield "params.package has no freshness_days"
        return
    try:
        yield from _unlike_dates(manifest, days, now)
    except OverflowError:
        yield "its dates or its freshness_days lie outside the calendar"


def _unlike_dates(manifest: Manifest, days: int, now: datetime) -> Iterator[str]:
    source, packaged_at = manifest.data.source, _aware(manifest.created_at)
    if abs(fresh_until(source, days, packaged_at) - _aware(manifest.fresh_until)) > PACKAGING:
        due = utc(fresh_until(source, days, packaged_at))
        yield f"fresh_until is {utc(manifest.fresh_until)}, and its data expire on {due}"
    begins = published(source, packaged_at)
    if max(begins, packaged_at) > now + AHEAD:
        yield f"it is dated {utc(max(begins, packaged_at))}, ahead of this machine's clock"


def _unlike_gates(manifest: Manifest) -> Iterator[str]:
    evaluation, params = manifest.evaluation, manifest.params
    asked, columns = params["evaluate"].get("metrics"), params["data"].get("bias_columns")
    if not isinstance(asked, list) or sorted(asked) != sorted(evaluation.metrics):
        yield "its metrics are not those of evaluate.metrics"
    elif evaluation.primary != asked[0]:
        yield f"evaluation.primary is '{evaluation.primary}', and evaluate.metrics begins with '{asked[0]}'"
    if not isinstance(columns, list) or sorted(columns) != sorted(evaluation.bias):
        yield "evaluation.bias has other columns than data.bias_columns"
    limits = {column.limit for column in evaluation.bias.values()}
    if limits - {params["evaluate"].get("max_gap")}:
        yield "evaluation.bias has another limit than evaluate.max_gap"
    systems = {frozenset(of) for of in evaluation.metrics.values()}
    opponents = {name for of in systems for name in of if name in OPPONENTS}
    if len(systems) != 1 or not {BASE, ADAPTER} <= {name for of in systems for name in of}:
        yield "not every metric has base, adapter and the same other systems"
    elif {*evaluation.differences} != opponents or any(
        of.keys() != evaluation.metrics.keys() for of in evaluation.differences.values()
    ):
        yield "evaluation.differences has not every opponent and metric"


def _aware(moment: datetime) -> datetime:
    return datetime.fromisoformat(utc(moment))


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

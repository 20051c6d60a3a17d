"""Add and remove tenants: check a file, then write its entry into params.yaml, comments kept."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from lora_ops.datasets.checks import check_answers
from lora_ops.datasets.files import shorten
from lora_ops.datasets.prepare import candidate_rows, check_rows, data_warnings, with_prompts
from lora_ops.datasets.source import read_source
from lora_ops.datasets.suites import IDENTIFIERS_SETTING, read_own_suite
from lora_ops.editing import edited
from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.loading import context_tokens, load_tokenizer
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import ContractRecord, read_previous
from lora_ops.settings.data import DataSettings
from lora_ops.settings.files import first_problem, read_yaml
from lora_ops.settings.params import Settings, load_settings
from lora_ops.settings.section import TENANT_PATTERN
from lora_ops.settings.tenant import TenantSettings
from lora_ops.templates import template_fields

if TYPE_CHECKING:
    import pandas as pd

MOST_LABELS = 50
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SHOTS = (6, 16)
"""At least and at most so many examples for the base model; between them one for each label."""
REMEDIES = {IDENTIFIERS_SETTING: "add --on-pii drop or --on-pii redact"}
"""What `tenant add` can do about a check; any other limit was read from the file itself."""


def draft_tenant(
    source: str,
    root: Path,
    *,
    template: str,
    target: str,
    task: str,
    group: str | None = None,
    system: str | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
    on_pii: str = "stop",
    license: str = "proprietary",
) -> dict[str, Any]:
    """Return a complete params.yaml entry for a source file; splits, labels and lengths are read from the file.

    Its contract leaves room: a text may be twice as long as the longest of today's rows.

    Raises:
        LoraOpsError: the file can't be read or lacks a column, or a value of the entry can't be.
    """
    data: dict[str, Any] = {"source": source, "template": template, "target": target, "task": task}
    data |= {name: value for name, value in {"system": system, "group": group}.items() if value is not None}
    read = {"encoding": (encoding, "utf-8"), "delimiter": (delimiter, ","), "on_pii": (on_pii, "stop")}
    data |= {name: value for name, (value, usual) in read.items() if value != usual}
    probe = {**data, "labels": ["a", "b"] if task == "labels" else [], "rows": dict.fromkeys(SHARES, 1)}
    settings = _validated("data", probe)
    template_fields(template)
    frame, _ = read_source(settings, root, root / "data/raw")
    rows = candidate_rows(frame, settings)
    if rows.empty:
        raise LoraOpsError(f"Every row of {source} holds direct identifiers: use --on-pii redact.")
    answers = rows["target"].dropna().astype(str)
    if answers.str.strip().eq("").all():
        raise LoraOpsError(f"{source} has no answer: column '{target}' (--target) is empty in each row.")
    if task == "labels":
        data["labels"] = _labels(answers, source, target)
    data["rows"] = {split: max(1, int(len(rows) * share)) for split, share in SHARES.items()}
    data["seed"] = 7
    longest = int(max(rows["text"].str.len().max(), answers.str.len().max()))
    max_tokens, max_new_tokens = _lengths(rows, settings, root)
    data["contract"] = {
        "min_chars": 1,
        "max_chars": 2 * longest,
        "max_tokens": max_tokens,
        "min_rows": min(30, len(rows)),
    }
    entry = {
        "data": data,
        "train": {
            "rank": 8,
            "alpha": 16,
            "dropout": 0.05,
            "learning_rate": 0.001,
            "epochs": 1 if len(rows) >= 300 else 3,
            "batch_size": 16,
            "warmup": 0.1,
            "max_grad_norm": 1.0,
            "seed": 0,
            "checkpoint_every": 10,
        },
        "evaluate": {
            "metrics": ["exact_match", "macro_f1"] if task == "labels" else ["chrf", "rouge_l"],
            "max_new_tokens": max_new_tokens,
            "few_shot": max(SHOTS[0], min(len(data.get("labels", ())), SHOTS[1])),
            "batch_size": 50,
            "bootstrap": 2000,
            "samples": 20,
            "seed": 0,
            "must_beat_base": True,
        },
        "package": {"license": license, "freshness_days": 365},
    }
    for section, values in entry.items():
        _validated(section, values)
    return entry


def _labels(answers: "pd.Series[str]", source: str, target: str) -> list[str]:
    labels = sorted(answers[answers != ""].unique())
    if len(labels) > MOST_LABELS:
        raise LoraOpsError(
            f"{source} has {len(labels)} different values of '{target}': that is free text, use --task text."
        )
    if len(labels) < 2:
        raise LoraOpsError(
            f"{source} has one label, {shorten(labels[0])}, in each row of '{target}': there is nothing to "
            "learn. Name another column with --target."
        )
    return labels


def _lengths(rows: "pd.DataFrame", settings: DataSettings, root: Path) -> tuple[int, int]:
    """Return limits for the tokens of prompt and answer together, and for those of the answer."""
    answers, room = rows["target"].fillna("").astype(str), 1.0 if settings.task == "labels" else 1.25
    tokenizer = base_tokenizer(root)
    if tokenizer is None:
        # A token is at least one byte, and one more ends the answer. Words are mostly one or two tokens.
        size = max(len(answer.encode()) for answer in answers)
        answer = size + 1 if settings.task == "labels" else size // 2 + 1
        return max(512, int(rows["text"].str.len().max()) + answer), answer
    rendered = with_prompts(rows, tokenizer, settings)
    answer = max(
        len(ids) for ids in tokenizer(list(rendered["completion"]), add_special_tokens=False)["input_ids"]
    )
    whole = max(512, 2 * int(rendered["tokens"].max()))
    return min(whole, context_tokens(root / "models/base") or whole), math.ceil(room * answer)


def base_tokenizer(root: Path) -> Any | None:
    """Return the tokenizer of the base model, or None where `lora-ops base-model` has not made it yet."""
    if not (root / "models/base").is_dir():
        return None
    read_base_model(root / "models/base")
    return load_tokenizer(root / "models/base")


def check_tenant(name: str, settings: TenantSettings, root: Path) -> tuple[ContractRecord, list[str]]:
    """Return the contract's result for a tenant's source, and its warnings, before anything is trained.

    Whatever counts tokens is checked only when the base model, whose tokenizer it needs, is there already.
    """
    frame, _ = read_source(settings.data, root, root / "data/raw")
    tokenizer = base_tokenizer(root)
    rows, chosen, contract = check_rows(
        frame, name, settings.data, tokenizer, read_own_suite(name, root), read_previous(name, root)
    )
    warnings = data_warnings(chosen, contract, settings.data)
    if tokenizer is None or settings.data.task != "labels":
        return contract, warnings
    answers = check_answers(rows, tokenizer, settings.data.labels, settings.evaluate.max_new_tokens)
    whole = ContractRecord.of(name, contract.rows, [*contract.checks, answers], contract.identifiers)
    return whole, warnings


def document_tenant(name: str, settings: TenantSettings, root: Path) -> Path:
    """Write a tenant's contract as data docs into `reports/NAME/data_docs` and return the first page.

    Raises:
        LoraOpsError: the source can't be read.
    """
    from lora_ops.datasets.docs import build_data_docs

    frame, _ = read_source(settings.data, root, root / "data/raw")
    rows, tokenizer = candidate_rows(frame, settings.data), base_tokenizer(root)
    if tokenizer is not None:
        rows = with_prompts(rows, tokenizer, settings.data)
    own = read_own_suite(name, root)
    return build_data_docs(frame, rows, name, settings.data, own, root / "reports" / name / "data_docs")


def check_new_name(name: str, root: Path) -> None:
    """Check that a new tenant may have this name.

    Raises:
        LoraOpsError: a tenant has it, or it is reserved, can't be told from another one or breaks the pattern.
    """
    if not re.fullmatch(TENANT_PATTERN, name):
        raise LoraOpsError(
            f"{shorten(name)} can't name a tenant: write 1 to 40 lower-case letters (a to z), digits, '-' "
            "and '_', with a letter first."
        )
    settings = load_settings(root)
    if name in settings.tenants:
        raise LoraOpsError(f"params.yaml has a tenant '{name}' already: edit its entry or choose another name.")
    some = next(iter(settings.tenants.values()))
    try:
        Settings.model_validate({**dict(settings), "tenants": {**settings.tenants, name: some}})
    except ValidationError as error:
        raise LoraOpsError(f"params.yaml is unchanged: {first_problem(error)}.") from error


def add_tenant(name: str, entry: dict[str, Any], root: Path) -> None:
    """Write `entry` as tenant `name` into params.yaml; nothing is written unless the whole file is valid.

    Raises:
        LoraOpsError: the tenant exists or a value is wrong.
    """
    check_new_name(name, root)

    def put(params: Any) -> None:
        params["tenants"][name] = entry

    edit_params(root, put)


def remove_tenant(name: str, root: Path) -> None:
    """Take tenant `name` out of params.yaml, the gateway's settings included.

    Raises:
        LoraOpsError: there is no such tenant, or it is the only one.
    """
    load_settings(root).tenant(name)

    def drop(params: Any) -> None:
        del params["tenants"][name]
        serving = params.get("serving") or {}
        (serving.get("tenants") or {}).pop(name, None)
        if name in (serving.get("warm") or ()):
            serving["warm"].remove(name)

    edit_params(root, drop)


def apply_profile(profile: Path, root: Path) -> None:
    """Lay the values of a profile over params.yaml; `"*"` under tenants stands for each of them.

    Raises:
        LoraOpsError: the profile is missing or makes params.yaml invalid.
    """
    if not profile.is_file():
        there = ", ".join(sorted(path.stem for path in profile.parent.glob("*.yaml")))
        raise NotFound(f"There is no profile {profile} (there are: {there}).")
    load_settings(root)  # a broken params.yaml is said as every command says it
    values = read_yaml(profile)
    tenants = values.get("tenants", {}) if isinstance(values, dict) else None
    if not isinstance(tenants, dict) or not isinstance(tenants.get("*", {}), dict):
        raise LoraOpsError(f"{profile} holds no settings: write them as params.yaml does.")
    overlay = YAML().load(profile.read_text(encoding="utf-8"))

    def put(params: Any) -> None:
        for_all = overlay.get("tenants", {}).pop("*", None)
        for tenant in params["tenants"].values() if for_all else ():
            _merge(tenant, for_all)
        _merge(params, overlay)

    edit_params(root, put)


def edit_params(root: Path, change: Any) -> None:
    """Apply `change` to params.yaml, keeping comments and order; the file is replaced only if it is valid.

    Raises:
        LoraOpsError: a value would be wrong; the file is as it was.
    """
    yaml = YAML()
    yaml.preserve_quotes = True  # type: ignore[assignment]
    yaml.width = 112
    yaml.indent(mapping=2, sequence=4, offset=2)
    with edited(root / "params.yaml") as (path, new):
        params = yaml.load(path.read_text(encoding="utf-8"))
        try:
            change(params)
        except KeyError as error:  # another command took it out since this one looked
            raise LoraOpsError(f"params.yaml has no {error} any more: look again.") from error
        with new.open("w", encoding="utf-8") as file:
            yaml.dump(params, file)
        try:
            Settings.model_validate(YAML(typ="safe", pure=True).load(new.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise LoraOpsError(f"params.yaml is unchanged: {first_problem(error)}.") from error


def _merge(under: Any, over: Any) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


def _validated(section: str, values: dict[str, Any]) -> Any:
    try:
        return TenantSettings.model_fields[section].annotation.model_validate(values)  # type: ignore[union-attr]
    except ValidationError as error:
        raise LoraOpsError(f"{section}.{first_problem(error)}.") from error

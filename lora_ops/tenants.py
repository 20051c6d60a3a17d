"""Add and remove tenants: check a file, then write its entry into params.yaml, comments kept."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from lora_ops.datasets.prepare import check_rows
from lora_ops.datasets.source import read_source, template_fields
from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.loading import load_tokenizer
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import ContractRecord
from lora_ops.settings.files import first_problem
from lora_ops.settings.params import Settings, load_settings
from lora_ops.settings.tenant import TenantSettings

MOST_LABELS = 50


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
    license: str = "proprietary",
) -> dict[str, Any]:
    """A complete params.yaml entry for a source file, with splits and labels read from the file.

    Its contract leaves room: a text may be twice as long as the longest of today's rows.

    Raises:
        LoraOpsError: the file can't be read or lacks a column, or has too many labels for a task of labels.
    """
    data: dict[str, Any] = {"source": source, "template": template, "target": target, "task": task}
    data |= {name: value for name, value in {"system": system, "group": group}.items() if value is not None}
    read = {"encoding": (encoding, "utf-8"), "delimiter": (delimiter, ",")}
    data |= {name: value for name, (value, usual) in read.items() if value != usual}
    probe = {**data, "labels": ["a", "b"] if task == "labels" else [], "rows": dict.fromkeys(SHARES, 1)}
    frame, _ = read_source(_validated("data", probe, root), root, root / "data/raw")
    if task == "labels":
        labels = sorted(frame[target].dropna().astype(str).str.strip().unique())
        if len(labels) > MOST_LABELS:
            raise LoraOpsError(
                f"{source} has {len(labels)} different values of '{target}': that is free text, "
                "use --task text."
            )
        data["labels"] = labels
    data["rows"] = {split: max(1, int(len(frame) * share)) for split, share in SHARES.items()}
    longest = max(len(template.format_map(row)) for row in frame.fillna("").to_dict("records"))
    longest = max(longest, int(frame[target].astype(str).str.len().max()))
    data["seed"] = 7
    data["contract"] = {
        "min_chars": 1,
        "max_chars": 2 * longest,
        "max_tokens": 512,
        "min_rows": min(30, len(frame)),
    }
    answer = 14 if task == "labels" else 64
    return {
        "data": data,
        "train": {
            "rank": 8,
            "alpha": 16,
            "dropout": 0.05,
            "learning_rate": 0.001,
            "epochs": 1 if len(frame) >= 300 else 3,
            "batch_size": 16,
            "warmup": 0.1,
            "max_grad_norm": 1.0,
            "seed": 0,
            "checkpoint_every": 10,
        },
        "evaluate": {
            "metrics": ["exact_match", "macro_f1"] if task == "labels" else ["token_f1", "exact_match"],
            "max_new_tokens": answer,
            "batch_size": 50,
            "bootstrap": 2000,
            "samples": 20,
            "seed": 0,
            "must_beat_base": True,
        },
        "package": {"license": license, "freshness_days": 365},
    }


SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def check_tenant(name: str, settings: TenantSettings, root: Path) -> ContractRecord:
    """The contract's result for a tenant's source, before anything is trained.

    Token counts are checked only when the base model, whose tokenizer they need, is there already.
    """
    frame, _ = read_source(settings.data, root, root / "data/raw")
    tokenizer = None
    if (root / "models/base").is_dir():
        read_base_model(root / "models/base")
        tokenizer = load_tokenizer(root / "models/base")
    return check_rows(frame, name, settings.data, tokenizer)[2]


def add_tenant(name: str, entry: dict[str, Any], root: Path) -> None:
    """Write `entry` as tenant `name` into params.yaml; nothing is written unless the whole file is valid.

    Raises:
        LoraOpsError: the tenant exists or a value is wrong.
    """
    if name in load_settings(root).tenants:
        raise LoraOpsError(f"params.yaml has a tenant '{name}' already: edit its entry or choose another name.")

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
    path = root / "params.yaml"
    yaml = YAML()
    yaml.width = 112
    yaml.indent(mapping=2, sequence=4, offset=2)
    params = yaml.load(path.read_text(encoding="utf-8"))
    change(params)
    temporary = path.with_name(".params.yaml")
    with temporary.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    try:
        Settings.model_validate(YAML(typ="safe", pure=True).load(temporary.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise LoraOpsError(f"params.yaml is unchanged: {first_problem(error)}.") from error
    else:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _merge(under: Any, over: Any) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value


def _validated(section: str, values: dict[str, Any], root: Path) -> Any:
    template_fields(values["template"])
    try:
        return TenantSettings.model_fields[section].annotation.model_validate(values)  # type: ignore[union-attr]
    except ValidationError as error:
        raise LoraOpsError(f"{section}.{first_problem(error)}.") from error

"""Where params.yaml is, how YAML is read, and how a wrong value is named."""

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lora_ops.errors import LoraOpsError
from lora_ops.settings.section import Section

AnySection = TypeVar("AnySection", bound=Section)


def find_root() -> Path:
    """The repository's root: $LORA_OPS_ROOT, else the nearest folder upwards with params.yaml, else our own.

    A notebook may be opened from any folder, so the folder of the installed package is the last resort.

    Raises:
        LoraOpsError: none of the three holds a params.yaml.
    """
    named = os.environ.get("LORA_OPS_ROOT")
    here = Path.cwd()
    candidates = [Path(named)] if named else [here, *here.parents, Path(__file__).resolve().parents[2]]
    for folder in candidates:
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder.resolve()
    where = f"$LORA_OPS_ROOT ({named})" if named else f"{here} or a folder above it"
    raise LoraOpsError(f"No params.yaml and dvc.yaml in {where}: run this inside a clone of the repository.")


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain values (`1e-3` is a number, as DVC reads it).

    Raises:
        LoraOpsError: the file is missing or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LoraOpsError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LoraOpsError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    return parse_yaml(text, path.name)


def parse_yaml(text: str, name: str) -> Any:
    """Return the plain values of YAML 1.2 that was read before; `name` is for the reader of an error.

    Raises:
        LoraOpsError: the text is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:  # a number or a nesting that Python refuses, too
        reason = " ".join(str(error).split())
        raise LoraOpsError(f"{name} is not valid YAML: {reason}.") from error


def read_section(root: Path, name: str, kind: type[AnySection]) -> AnySection:
    """Read one section of params.yaml, such as `tenants.finance.train`, and look at no other.

    Stages read their sections this way: what a stage doesn't read can't make it run again.

    Raises:
        LoraOpsError: the file is missing, has no such section, or a value is wrong; the text names the value.
    """
    value = read_yaml(root / "params.yaml")
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise LoraOpsError(f"params.yaml has no {name}: add it, or correct the name.")
        value = value[part]
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise LoraOpsError(f"params.yaml: {name}: {first_problem(error)}.") from error


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as `where: what (got value)`."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    what = problem["msg"].removeprefix("Value error, ")
    got = problem.get("input")
    given = repr(got)
    shown = (
        "" if isinstance(got, dict | None) else f" (got {given if len(given) <= 200 else given[:200] + '…'})"
    )
    if problem["type"] == "extra_forbidden":
        what, shown = "is not a setting that exists; check its spelling or remove it", ""
    return f"{where}: {what}{shown}" if where else f"{what}{shown}"

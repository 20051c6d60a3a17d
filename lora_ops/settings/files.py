"""Where params.yaml is, how YAML is read, and how a wrong value is named."""

import copy
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode

from lora_ops.errors import LoraOpsError
from lora_ops.settings.section import Section

AnySection = TypeVar("AnySection", bound=Section)
MOST_VALUES = 100_000
"""Of a YAML file. Ten lines of aliases or merges that name each other would be read as billions."""
MOST_CHARACTERS = 2_000_000
"""Of a YAML file: a million cases would be read for hours, and these for seconds."""
MOST_KEPT = 100_000
"""Characters of a text whose values are kept for whoever reads the same text next."""


def find_root() -> Path:
    """The repository's root: $LORA_OPS_ROOT, else the nearest folder upwards with params.yaml, else our own.

    A notebook may be opened from any folder, so the folder of the installed package is the last resort.

    Raises:
        LoraOpsError: none of the three holds a params.yaml, or it is a folder, a pipe or a symlink to nowhere.
    """
    named = os.environ.get("LORA_OPS_ROOT")
    here = Path.cwd()
    candidates = [Path(named)] if named else [here, *here.parents, Path(__file__).resolve().parents[2]]
    for folder in candidates:
        params, pipeline = folder / "params.yaml", folder / "dvc.yaml"
        if params.is_file() and pipeline.is_file():
            return folder.resolve()
        # Going on upwards, a command would change another clone than the one that somebody stands in.
        if pipeline.is_file() and os.path.lexists(params):
            raise LoraOpsError(f"{params} is no file: bring it back (`git checkout params.yaml`).")
    where = f"$LORA_OPS_ROOT ({named})" if named else f"{here} or a folder above it"
    raise LoraOpsError(f"No params.yaml and dvc.yaml in {where}: run this inside a clone of the repository.")


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain values (`1e-3` is a number, as DVC reads it).

    Raises:
        LoraOpsError: the file is missing, is a pipe, or is not YAML.
    """
    if path.is_fifo():  # reading would wait for somebody who writes into it
        raise LoraOpsError(f"Cannot read {path}: this is a pipe, and no file.")
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
        LoraOpsError: the text is not YAML or too long, or its aliases or a number of it are of no use.
    """
    if len(text) > MOST_CHARACTERS:
        raise LoraOpsError(f"{name} has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read.")
    try:
        if len(text) > MOST_KEPT:
            return _values(text)
        return copy.deepcopy(_kept_values(text))
    except (YAMLError, ValueError, RecursionError) as error:  # a number or a nesting that Python refuses, too
        reason = " ".join(str(error).split())
        raise LoraOpsError(f"{name} is not valid YAML: {reason}.") from error
    except (
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
    ) as error:  # of ruamel, such as `!!bool maybe`
        raise LoraOpsError(
            f"{name} is not valid YAML: a value of it is not what its tag or its escapes say ({error})."
        ) from error


def _values(text: str) -> Any:
    constructor, _ = YAML(typ="safe", pure=True).get_constructor_parser(text)
    node = constructor.composer.get_single_node()
    # Of the nodes: to merge mappings that merge each other would take for ever.
    if _count_nodes(node, {}) > MOST_VALUES:
        raise ValueError(f"with its aliases it has more than {MOST_VALUES:,} values: shorten it")
    value = None if node is None else constructor.construct_document(node)
    _require_small_numbers(value)
    return value


# One command reads params.yaml and owners.yaml several times, and its parser takes a tenth of a second. What it
# returns is changed by nobody.
_kept_values = lru_cache(maxsize=16)(_values)


def _count_nodes(node: Any, counts: dict[int, float]) -> float:
    """Return how many values a node holds, each alias counted in full; infinitely many if it holds itself.

    Args:
        node: of the composed document; None where it is empty.
        counts: the counts of the nodes that were looked at before, by identity.
    """
    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until it is counted: then it is inside itself
        pairs = isinstance(node, MappingNode)
        parts = [one for pair in node.value for one in pair] if pairs else node.value
        counts[id(node)] = 1 + sum(_count_nodes(one, counts) for one in parts)
    return counts[id(node)]


def _require_small_numbers(value: Any) -> None:
    """Refuse a whole number that needs more than 64 bits, which no setting takes and Python may not print.

    Raises:
        ValueError: there is one.
    """
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a whole number has more than 18 digits")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _require_small_numbers(one)


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
    where = ".".join(_cut(str(part)) for part in problem["loc"] if part != "[key]")
    what = _cut(problem["msg"].removeprefix("Value error, "), 400)
    got = problem.get("input")
    given = repr(got)
    shown = "" if isinstance(got, dict | None) else f" (got {_cut(given, 200)})"
    if problem["type"] == "extra_forbidden":
        what, shown = "is not a setting that exists; check its spelling or remove it", ""
    return f"{where}: {what}{shown}" if where else f"{what}{shown}"


def _cut(text: str, most: int = 80) -> str:
    """Return a text, or its beginning: a name in a file may have a million characters."""
    return text if len(text) <= most else f"{text[:most]}…"

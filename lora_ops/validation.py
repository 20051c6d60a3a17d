"""What must hold before anything is trained or served: prompts, schemas, and loading with plain peft.

Three contracts with people outside this repository. A prompt that changes makes every trained adapter wrong. A
field that disappears breaks whoever reads a manifest or calls the gateway. An adapter that plain peft can't
load is of no use to anybody without lora-ops.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator
from pydantic import BaseModel, TypeAdapter

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.data import DataRecord
from lora_ops.records.manifest import Manifest
from lora_ops.settings.data import DataSettings
from lora_ops.settings.params import Settings
from lora_ops.small_files import read_json
from lora_ops.templates import fill_template, template_fields

GOLDEN = "suites/golden/prompts.json"
SCHEMAS = "suites/schemas"
SECONDS = 120
# A file that runs in a process of its own.
PLAIN_PEFT = Path(__file__).with_name("plain_peft.py")


class Checked(NamedTuple):
    """One contract: what it is about, and why it does not hold; None where it does."""

    what: str
    problem: str | None = None


def validate(settings: Settings, root: Path) -> Iterator[Checked]:
    """Yield every contract of the repository, as far as it holds now.

    Raises:
        LoraOpsError: a file of golden prompts or schemas can't be read.
    """
    yield from _prompts(settings, root)
    yield from _schemas(root)
    yield from _tiny_adapter()


def validate_packages(settings: Settings, root: Path) -> Iterator[Checked]:
    """Yield of each packaged adapter whether plain peft loads it on the base model, in a process of its own."""
    for tenant in settings.tenants:
        folder = root / "packages" / tenant
        if all((folder / name).is_file() for name in ADAPTER_FILES):
            yield Checked(f"packages/{tenant} with plain peft", load_problem(root / "models/base", folder))


def golden_prompts(settings: Settings) -> dict[str, Any]:
    """Return the turns that each tenant's template makes of a row whose columns hold their own names."""
    return {name: _turns(tenant.data) for name, tenant in sorted(settings.tenants.items())}


def schemas() -> dict[str, Any]:
    """Return the JSON schemas that others rely on: of a manifest, a data record and the gateway's API."""
    from lora_ops.records.evidence import DOCUMENT
    from lora_ops.serving.request_schemas import ChatRequest, CompletionRequest
    from lora_ops.serving.response_schemas import (
        ChatAnswer,
        ChatChunk,
        CompletionAnswer,
        ErrorAnswer,
        ModelList,
    )

    forms: Mapping[str, type[BaseModel] | TypeAdapter[Any]] = {
        "manifest": Manifest,
        "data": DataRecord,
        "evidence": DOCUMENT,
        "chat_request": ChatRequest,
        "completion_request": CompletionRequest,
        "chat_answer": ChatAnswer,
        "chat_chunk": ChatChunk,
        "completion_answer": CompletionAnswer,
        "model_list": ModelList,
        "error_answer": ErrorAnswer,
    }
    return {
        name: form.json_schema() if isinstance(form, TypeAdapter) else form.model_json_schema()
        for name, form in forms.items()
    }


def write_contracts(settings: Settings, root: Path) -> list[Path]:
    """Write golden prompts and schemas as they are now, and return the files."""
    written = {root / GOLDEN: golden_prompts(settings)}
    written |= {root / SCHEMAS / f"{name}.json": schema for name, schema in schemas().items()}
    for path, value in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
    return list(written)


def load_problem(base: Path, adapter: Path) -> str | None:
    """Return why plain peft can't answer with an adapter on a base model, or None; in a process of its own."""
    return _plain_peft(str(base), str(adapter))


def _plain_peft(*words: str) -> str | None:
    command = [sys.executable, "-I", str(PLAIN_PEFT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it did not load in {SECONDS} seconds"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1][:300]


def losses(kept: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield what a JSON schema of before promised, and the one of now does not.

    New properties, wider types and bounds, and new values of an enumeration are no loss. A property that is
    gone, another type, a value that is not taken any more, and a property that must be there only now are.
    """
    if not isinstance(kept, dict) or not isinstance(now, dict):
        return
    for name in ("properties", "$defs"):
        for key, inner in kept.get(name, {}).items():
            where = f"{place}.{key}" if place else key
            if key not in now.get(name, {}):
                yield f"{where} is gone"
            else:
                yield from losses(inner, now[name][key], where)
    said = place or "it"
    for name in ("type", "const", "$ref"):
        if name in kept and kept[name] != now.get(name):
            yield f"{said} has {name} {now.get(name)!r}, not {kept[name]!r}"
    gone = [one for one in kept.get("enum", []) if one not in now.get("enum", [])]
    if gone:
        yield f"{said} takes {gone[0]!r} no more"
    yield from (f"{said} {one}" for one in _narrowed(kept, now))
    asked = [one for one in now.get("required", []) if one not in kept.get("required", [])]
    if asked and "properties" in kept:
        yield f"{said} must have {asked[0]}, which was optional or unknown"
    for name in ("anyOf", "oneOf"):
        there = now.get(name) or [now]
        if any(not any(_holds(form, one) for one in there) for form in kept.get(name, [])):
            yield f"{said} takes one form less"
    if isinstance(kept.get("items"), dict):
        yield from losses(kept["items"], now.get("items"), f"{said}[]")


def _holds(kept: Any, now: Any) -> bool:
    """Return whether one form of several is there still, as it was or wider."""
    if canonical(kept) == canonical(now):
        return True
    says = isinstance(kept, dict) and not kept.keys().isdisjoint(("type", "enum", "const", "$ref"))
    return says and not any(losses(kept, now))


def _narrowed(kept: Any, now: Any) -> Iterator[str]:
    """Yield which values a schema takes no more because of a bound, a pattern or closed properties."""
    for name in ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"):
        if name in now and (name not in kept or now[name] < kept[name]):
            yield f"has {name} {now[name]}, not {kept.get(name, 'any')}"
    for name in ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"):
        if name in now and (name not in kept or now[name] > kept[name]):
            yield f"has {name} {now[name]}, not {kept.get(name, 'any')}"
    for name in ("pattern", "format", "multipleOf", "uniqueItems"):
        if name in now and now[name] != kept.get(name):
            yield f"has {name} {now[name]}, not {kept.get(name, 'any')}"
    if now.get("additionalProperties") is False and kept.get("additionalProperties") is not False:
        yield "takes no other properties any more"


def _turns(data: DataSettings) -> list[list[str]]:
    row = {name: f"<{name}>" for name in template_fields(data.template)}
    user = fill_template(data.template, [row])[0]
    return [*([["system", data.system]] if data.system else []), ["user", user]]


def _prompts(settings: Settings, root: Path) -> Iterator[Checked]:
    kept = _read(root / GOLDEN) if (root / GOLDEN).is_file() else {}
    for name, turns in golden_prompts(settings).items():
        what = f"golden prompt of {name}"
        if name not in kept:
            yield Checked(
                what, f"{GOLDEN} has none: look at {json.dumps(turns)}, then `lora-ops validate --update`"
            )
        elif kept[name] != turns:
            was = json.dumps(kept[name])
            yield Checked(
                what,
                f"it is {json.dumps(turns)}, and was {was}: an adapter of the other one answers worse; "
                "train again and `lora-ops validate --update`, or put it back",
            )
        else:
            yield Checked(what)


def _schemas(root: Path) -> Iterator[Checked]:
    for name, now in schemas().items():
        path, what = root / SCHEMAS / f"{name}.json", f"schema of {name.replace('_', ' ')}"
        if not path.is_file():
            yield Checked(what, f"there is no {SCHEMAS}/{name}.json: `lora-ops validate --update` writes it")
            continue
        lost = list(losses(_read(path), now))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield Checked(what, f"{lost[0]}{more}: whoever reads it relies on that" if lost else None)


def _tiny_adapter() -> Iterator[Checked]:
    """A tiny model and adapter, made on the spot: whether what peft writes is what it reads."""
    with tempfile.TemporaryDirectory(prefix="validate-") as name:
        problem = _plain_peft("--tiny", str(Path(name) / "base"), str(Path(name) / "adapter"))
        yield Checked("a tiny adapter with plain peft", problem)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if path.parent.name == "schemas":
            Draft202012Validator.check_schema(content)  # else nothing is promised, so nothing is lost
        return content
    except (OSError, ValueError, SchemaError) as error:
        reason = f"it is no JSON schema: {error.message[:200]}" if isinstance(error, SchemaError) else error
        raise LoraOpsError(
            f"{path} can't be read ({reason}): `git checkout {path.name}` brings it back."
        ) from error

"""Each field and each file of a package, left out, renamed or emptied: refused, or named here as free.

Five times a gate compared nothing because something was absent. So each field is tried, also those that a later
release adds: a field that nothing compares must be written down below, with the reason.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.compare import evaluate
from lora_ops.evaluation.recount import require_recounted
from lora_ops.hashing import sha256_file
from lora_ops.page import page_evaluation
from lora_ops.paths import ADAPTER_FILES, ANSWERS, EVALUATION, EVALUATION_PAGE
from lora_ops.records.evaluation import Agreement, ColumnBias, EvaluationRecord, GroupMetric
from lora_ops.records.generation import GenerationRecord
from lora_ops.records.manifest import FileRecord, Manifest, PackagingRecord
from lora_ops.registry.consistency import require_complete, require_consistent
from lora_ops.registry.files import check_package
from lora_ops.registry.loosened import GATES
from lora_ops.registry.store import _valid
from lora_ops.settings.tenant import TenantSettings

from .conftest import GATES as SETTINGS
from .conftest import MORNING, Build, evaluated, interval, write_answers

FREE = {
    "version": "given by the registry",
    "parent": "given by the registry",
    "dvc_lock_sha256": "a note of where it came from; a package without DVC has none",
    "git.commit": "a note of where it came from; a folder without git has none",
    "packages": "a note of where the training ran; a name may be any package's",
    "packaging": "a note of where it was put together",
    "training.planned_steps": "a note; an older training has none",
    "training.best_step": "a note; only with train.patience",
    "training.packages": "a note of where the training ran",
    "training.git": "a note of where the training ran",
    "base_model.origin": "a note for people: the digest says which model it is",
    "base_model.quantization": "a note for people: the digest says which model it is",
    "data.source.script_sha256": "a note: the digests of the splits say which rows they are",
    "data.source.url": "a note for people",
    "data.identifiers": "a note; only with data.on_pii",
    "data.label_shares": "compared with the next data by the contract, which reads its own copy",
    "data.warnings": "a note for people",
    "evaluation.answered_by": "`show` and approvers are told where nobody recorded it",
    "evaluation.agreement": "a note for people; sampled answers of another engine",
    "evaluation.truncated": "a note for people",
    "evaluation.traits": "empty for labels; where answers are written it must follow from them (test_recount)",
    "files.README.md": "the model card, for people; one that is there must follow from the manifest",
    "files.samples.csv": "for people; where it is there it must follow from the answers",
    "files.03_evaluate.html": "the page, for people; a clone with pulled packages lacks it",
}
"""Each field that may be missing, or what begins with it, and why nothing is lost by that."""
NAMED = tuple(f"params.{name}" for name in GATES if not name.startswith(("registry", "rows")))
NAMED += ("params.data.contract",)  # all limits of the contract at once
"""Settings that approvers are told of where a manifest does not record them (test_loosened)."""


@pytest.fixture
def complete(package: Build) -> tuple[Path, Manifest]:
    """Build a package that has every field and every file that there is."""
    folder, manifest = package(1)
    (folder / "samples.csv").write_text("id,text,target,base,adapter\n")
    evaluation = counted(folder, manifest)
    whole = evaluated(folder, manifest, evaluation)
    page = folder / EVALUATION_PAGE
    report = whole.evaluation_report_sha256
    page.write_text(f'<head><meta name="lora-ops-evaluation" content="{report}"></head><body>')
    assert page_evaluation(page) == report
    added = {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in (page, folder / "samples.csv")
    }
    source = whole.data.source.model_copy(update={"url": "https://example.com", "date": "2026-01-01"})
    data = {**whole.params["data"], "published": "2026-01-01"}
    found = whole.model_copy(
        update={
            "files": {**whole.files, **added},
            "data": whole.data.model_copy(
                update={"source": source, "label_shares": {"Food": 1.0}, "settings": data}
            ),
            "params": {**whole.params, "data": data},
            "packaging": PackagingRecord(git=whole.git, packages={"peft": "0.21"}),
            "fresh_until": MORNING.replace(year=2027, month=1, day=1, hour=0),
        }
    )
    register(folder, found.model_dump(mode="json"))
    return folder, found


def counted(folder: Path, manifest: Manifest) -> EvaluationRecord:
    """Evaluate the answers of a package in every way that there is."""
    regions = {name: GroupMetric(rows=150, value=interval(0.5)) for name in ("north", "south")}
    planned = manifest.evaluation.model_copy(update={"bias": {"region": ColumnBias(groups=regions)}})
    write_answers(folder, planned)
    answers = pd.read_csv(folder / ANSWERS, dtype=str, keep_default_na=False)
    asked = {"metrics": ["exact_match", "macro_f1"], "max_gap": 0.3}
    settings = TenantSettings.model_validate({**SETTINGS, "evaluate": {**SETTINGS["evaluate"], **asked}})
    generation = GenerationRecord(
        tenant=manifest.tenant,
        rows=len(answers),
        test_sha256=planned.test_sha256,
        adapter_sha256=planned.adapter_sha256,
        adapter_config_sha256=planned.adapter_config_sha256,
        seconds={"base": 1.0, "adapter": 1.0},
        truncated={"base": 1},
        answered_by="engine",
        agreement={"adapter": Agreement(rows=8, equal=8)},
        settings=settings.evaluate.answering,
    )
    found = evaluate(manifest.tenant, settings, answers, generation)
    return found.model_copy(update={"settings": manifest.evaluation.settings})


def register(folder: Path, stored: Any) -> None:
    """Read a manifest and let it pass all that a new registration asks of a package and its manifest."""
    try:
        manifest = Manifest.model_validate_json(json.dumps(stored))
    except ValueError as error:
        raise LoraOpsError(str(error)) from error
    manifest = _valid(manifest)
    check_package(folder, {name: file.sha256 for name, file in manifest.files.items()})
    require_consistent(folder, manifest)
    require_complete(folder, manifest, MORNING)
    require_recounted(folder, manifest)
    assert manifest.beats_base


def fields(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every field of a document, sections before what is in them."""
    for name, inside in value.items() if isinstance(value, dict) else ():
        yield (*path, name)
        yield from fields(inside, (*path, name))


def changed(stored: Any, path: tuple[str, ...], how: str) -> Any:
    """Return a copy of a document in which one field is removed, renamed or emptied, or None if it was so."""
    copied = copy.deepcopy(stored)
    inside = copied
    for name in path[:-1]:
        inside = inside[name]
    before = inside.pop(path[-1])
    empty = {} if isinstance(before, dict) else [] if isinstance(before, list) else None
    if how == "renamed":
        inside[path[-1].upper() + "_"] = before
    elif how != "removed":
        inside[path[-1]] = empty if how == "emptied" else None
    return None if copied == stored else copied


def is_free(path: tuple[str, ...]) -> bool:
    name = ".".join(path)
    return any(name == one or name.startswith(f"{one}.") for one in (*FREE, *NAMED))


HOW = ("removed", "renamed", "nulled", "emptied")


@pytest.mark.parametrize("how", HOW)
def test_every_field_of_a_manifest_is_compared(complete: tuple[Path, Manifest], how: str) -> None:
    folder, manifest = complete
    stored = manifest.model_dump(mode="json")
    taken = [path for path in fields(stored) if passes(folder, changed(stored, path, how), stored)]
    assert [".".join(path) for path in taken if not is_free(path)] == []


@pytest.mark.parametrize("how", HOW)
def test_every_field_of_an_evaluation_is_compared(complete: tuple[Path, Manifest], how: str) -> None:
    """The file and the manifest say the same, as somebody would write who wants to hide it."""
    folder, manifest = complete
    stored = manifest.model_dump(mode="json")
    (folder / EVALUATION_PAGE).unlink()
    del stored["files"][EVALUATION_PAGE]
    taken = []
    for path in fields(stored["evaluation"]):
        evaluation = changed(stored["evaluation"], path, how)
        if evaluation is None:
            continue
        report = folder / EVALUATION
        report.write_text(json.dumps(evaluation))
        file = {"bytes": report.stat().st_size, "sha256": sha256_file(report)}
        other = {**stored, "evaluation": evaluation, "files": {**stored["files"], EVALUATION: file}}
        other["evaluation_report_sha256"] = file["sha256"]
        other["bias"] = {**stored["bias"], "report_sha256": file["sha256"]}
        if passes(folder, other, stored):
            taken.append(("evaluation", *path))
    assert [".".join(path) for path in taken if not is_free(path)] == []


def test_every_file_of_a_package_is_needed(complete: tuple[Path, Manifest]) -> None:
    folder, manifest = complete
    stored = manifest.model_dump(mode="json")
    for name in stored["files"]:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        assert not passes(folder, stored, None), name
        other = copy.deepcopy(stored)
        del other["files"][name]
        assert passes(folder, other, None) == is_free(("files", name)), name
        (folder / f"x-{name}").write_bytes(content)
        other["files"][f"x-{name}"] = stored["files"][name]
        assert not passes(folder, other, None), name
        (folder / f"x-{name}").unlink()
        (folder / name).write_bytes(content)
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not passes(folder, stored, None), name
        (folder / name).write_bytes(content)
    register(folder, stored)


@pytest.mark.parametrize("name", [EVALUATION, ADAPTER_FILES[1]])
def test_package_whose_json_says_a_thing_twice_is_refused(package: Build, name: str) -> None:
    """Readers take the last one, and people see the first."""
    folder, manifest = package(1)
    text = (folder / name).read_text()
    field = next(iter(json.loads(text)))
    (folder / name).write_text(text.replace("{", f'{{"{field}": null, ', 1))
    file = FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
    stored = manifest.model_copy(update={"files": {**manifest.files, name: file}}).model_dump(mode="json")
    if name != EVALUATION:
        stored["evaluation"]["adapter_config_sha256"] = None  # as an earlier release wrote it
        (folder / EVALUATION).write_text(json.dumps(stored["evaluation"]))
        stored["files"][EVALUATION]["sha256"] = sha256_file(folder / EVALUATION)
    with pytest.raises(LoraOpsError, match=f"{name} can't be read: it has '{field}' twice"):
        register(folder, stored)


@pytest.mark.parametrize("name", ["tokenizer.json", "Adapter_Model.safetensors", "chat_template.jinja", "a.py"])
def test_file_that_no_stage_writes_is_refused(complete: tuple[Path, Manifest], name: str) -> None:
    """vLLM reads a tokenizer beside the weights, and some disks take one name for another."""
    folder, manifest = complete
    stored = manifest.model_dump(mode="json")
    like = ADAPTER_FILES[0]
    (folder / name).write_bytes((folder / like).read_bytes())
    stored["files"][name] = stored["files"][like]
    with pytest.raises(LoraOpsError, match=f"'{name}', which no stage writes"):
        register(folder, stored)


def passes(folder: Path, other: Any, stored: Any) -> bool:
    """Return whether a changed manifest is taken; one that reads as the manifest itself changes nothing."""
    if other is None:
        return False
    try:
        register(folder, other)
    except LoraOpsError:
        return False
    return stored is None or Manifest.model_validate(other) != Manifest.model_validate(stored)

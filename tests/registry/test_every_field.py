"""Each field and each file of a package, left out, renamed or emptied: refused, or named here as free.

Five times a gate compared nothing because something was absent. So each field is tried, also those that a later
release adds: a field that nothing compares must be written down below, with the reason.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.page import page_evaluation
from lora_ops.paths import EVALUATION, EVALUATION_PAGE
from lora_ops.records.evaluation import Agreement, ColumnBias, GroupMetric, Interval
from lora_ops.records.manifest import FileRecord, Manifest, PackagingRecord
from lora_ops.registry.consistency import require_complete, require_consistent
from lora_ops.registry.files import check_package
from lora_ops.registry.loosened import GATES
from lora_ops.registry.store import _valid

from .conftest import MORNING, Build, interval, with_evaluation

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
    "params.train": "the recipe as people read it; the digest of adapter_config.json says what serves",
    "params.data.system": "belongs to the prompt, and not to the numbers",
    "params.data.labels": "belongs to the prompt, and not to the numbers",
    "params.data.contract.min_chars": "how short a row may be: bounds the length of rows, not what they prove",
    "params.data.contract.max_chars": "how long a row may be",
    "params.data.contract.max_tokens": "how long a row may be",
    "files.README.md": "the model card, for people",
    "files.samples.csv": "for people",
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
    north, south = GroupMetric(rows=200, value=interval(0.8)), GroupMetric(rows=100, value=interval(0.7))
    bias = {
        "region": ColumnBias(
            groups={"north": north, "south": south},
            best="north",
            worst="south",
            gap=Interval(value=0.1, low=0.0, high=0.2),
            limit=0.3,
        )
    }
    metrics = {"exact_match": manifest.evaluation.metrics["exact_match"]}
    metrics["macro_f1"] = metrics["exact_match"]
    whole = with_evaluation(
        folder,
        manifest,
        metrics=metrics,
        bias=bias,
        truncated={"base": 1},
        agreement={"adapter": Agreement(rows=8, equal=8)},
    )
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
            "data": whole.data.model_copy(update={"source": source, "label_shares": {"Food": 1.0}}),
            "params": {**whole.params, "data": data},
            "packaging": PackagingRecord(git=whole.git, packages={"peft": "0.21"}),
            "fresh_until": MORNING.replace(year=2027, month=1, day=1, hour=0),
        }
    )
    register(folder, found.model_dump(mode="json"))
    return folder, found


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
        assert passes(folder, other, None) == is_free(("files", name)), name
        (folder / f"x-{name}").unlink()
        (folder / name).write_bytes(content)
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not passes(folder, stored, None), name
        (folder / name).write_bytes(content)
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

"""Two versions on rows that neither was trained on: found, counted, paired, or plainly refused."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.versions import compare_versions
from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.records.manifest import FileRecord
from lora_ops.registry.membership import incomparable
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from tests.conftest import ROOT, run_forked
from tests.registry.conftest import OlderRegistry, build_package, trained_alike, with_evaluation

LABELS = ["hotel", "airline"]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Open a registry that takes packages of few settings, as earlier releases did."""
    return OlderRegistry(tmp_path / ".registry", create=True)


def answers(groups: Iterable[int], right: int) -> pd.DataFrame:
    """Three rows in each group; the adapter is right about the first `right` rows."""
    rows = [(str(group), f"text {group} {row}") for group in groups for row in range(3)]
    frame = pd.DataFrame(rows, columns=["group", "text"]).assign(target="hotel")
    return frame.assign(adapter=["hotel" if row < right else "airline" for row in range(len(frame))])


def register(
    registry: Registry,
    folder: Path,
    seed: int,
    rows: pd.DataFrame | None,
    trained: Iterable[int] | None,
    asked: tuple[str, ...] = ("exact_match", "macro_f1"),
    **data: Any,
) -> Version:
    manifest = build_package(folder, seed)
    [measured] = manifest.evaluation.metrics.values()
    metrics = dict.fromkeys(asked, measured)
    manifest = with_evaluation(folder, manifest, metrics=metrics, primary=asked[0])
    added = []
    if rows is not None:
        rows.to_csv(folder / "answers.csv", index=False)
        added.append(folder / "answers.csv")
    if rows is not None and trained is not None:
        listed = [("train", str(group)) for group in trained]
        listed += [("test", group) for group in sorted(set(rows["group"]))]
        digests = pd.DataFrame(listed, columns=["split", "group"])
        digests["group_sha256"] = digests.pop("group").map(sha256_text)
        digests.assign(rows=3).to_csv(folder / "membership.csv", index=False)
        added.append(folder / "membership.csv")
    for name in {"answers.csv", "membership.csv"} - {path.name for path in added}:
        manifest.files.pop(name)
        (folder / name).unlink()
    files = {path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path)) for path in added}
    params = {
        **manifest.params,
        "train": {"seed": seed},
        "data": {**manifest.params["data"], "labels": LABELS, "group": "code", **data},
        "evaluate": {**manifest.params["evaluate"], "metrics": list(asked)},
    }
    full = manifest.model_copy(update={"files": {**manifest.files, **files}, "params": params})
    return registry.register(folder, full)[0]


def test_compare_takes_rows_that_neither_was_trained_on(registry: Registry, tmp_path: Path) -> None:
    """Groups 0 to 39 and 10 to 49 are tested; the second version was trained on 10 to 14."""
    first = register(registry, tmp_path / "1", 1, answers(range(40), 60), range(100, 200))
    trained = [*range(10, 15), *range(100, 150)]
    second = register(registry, tmp_path / "2", 2, answers(range(10, 50), 110), trained)
    found = compare_versions(registry, first, second)
    assert (found.rows, found.groups) == (75, 25)
    assert found.left_out == 150 - 75
    assert found.metrics["exact_match"][first.id].value == pytest.approx(15 / 75)
    assert found.metrics["exact_match"][second.id].value == 1
    assert found.differences["exact_match"].value == pytest.approx(0.8)
    assert found.verdict.startswith("finance@2 clearly beats finance@1 (exact_match +0.800")
    assert found.gates == {"finance@1": [], "finance@2": []}
    assert found.notes[0] == "finance@2 was trained or tuned on 5 of the 40 test groups of finance@1"


def test_compare_of_the_same_answers_finds_no_difference(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path / "1", 1, answers(range(40), 60), range(100, 200))
    second = register(registry, tmp_path / "2", 2, answers(range(40), 60), range(100, 200))
    found = compare_versions(registry, first, second)
    assert (found.rows, found.left_out) == (120, 0)
    assert found.differences["exact_match"].p_value == 1
    assert "does not clearly differ from" in found.verdict


def trained(registry: Registry, folder: Path, seed: int, rank: int, right: int) -> Version:
    """Register a training of a recipe that differs from the others' in its rank only."""
    manifest, common = build_package(folder, seed + 10 * rank), build_package(folder.parent / "common", 0)
    path = folder / "answers.csv"
    alike = trained_alike(folder, manifest, common, seed, rank, right / 120)
    answers(range(40), right).to_csv(path, index=False)
    file = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
    params = {**alike.params, "data": {"labels": LABELS}, "evaluate": {"metrics": ["exact_match"]}}
    update = {"files": {**alike.files, path.name: file}, "params": params}
    return registry.register(folder, alike.model_copy(update=update))[0]


def test_compare_calls_nothing_clear_that_a_seed_could_make(registry: Registry, tmp_path: Path) -> None:
    """The rows tell 60 from 84 right answers apart; three seeds of the first recipe are as far apart."""
    first = trained(registry, tmp_path / "1", 0, 4, 60)
    wide = trained(registry, tmp_path / "2", 0, 8, 84)
    alone = compare_versions(registry, first, wide)
    assert alone.seed_noise is None
    assert alone.verdict.startswith("finance@2 clearly beats finance@1")
    assert alone.about_seeds.startswith("The intervals cover the test rows, not the training seed")
    again = trained(registry, tmp_path / "3", 1, 4, 72)
    trained(registry, tmp_path / "4", 2, 4, 66)
    found = compare_versions(registry, first, wide)
    assert found.seed_noise == pytest.approx(4.303 * 2**0.5 * 0.05, rel=1e-3)
    assert found.verdict.startswith("finance@2 differs from finance@1 by no more than another training seed")
    assert "finance@1: 3 trainings of this recipe with other seeds" in found.about_seeds
    twins = compare_versions(registry, first, again)
    assert twins.same_recipe and twins.about_seeds.startswith("They have the same recipe")


def test_compare_command_prints_the_difference(registry: Registry, tmp_path: Path) -> None:
    """The command, with a second version that was trained on a test group of the first."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    register(registry, tmp_path / "1", 1, answers(range(40), 60), range(100, 200))
    register(registry, tmp_path / "2", 2, answers(range(40), 110), range(39, 100))
    where = {"cwd": tmp_path, "LORA_OPS_ROOT": str(tmp_path), "COLUMNS": "200"}
    done = run_forked("lora-ops", "compare", "finance@1", "finance@2", **where)
    assert done.returncode == 0, done.stderr
    assert "117 rows of 39 groups that neither was trained on; 3 rows of either don't count" in done.stdout
    assert "finance@2 minus finance@1" in done.stdout
    assert "finance@2 was trained or tuned on 1 of the 40 test groups of finance@1" in done.stdout
    printed = json.loads(run_forked("lora-ops", "compare", "finance@1", "finance@2", "--json", **where).stdout)
    assert f"{printed['verdict']}: 117 rows" in done.stdout and printed["about_seeds"] in done.stdout
    twice = run_forked("lora-ops", "compare", "finance@1", "finance@1", **where)
    assert twice.returncode != 0 and "name two versions" in twice.stderr


def test_compare_refuses_versions_without_a_common_row(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path / "1", 1, answers(range(20), 9), range(100, 120))
    second = register(registry, tmp_path / "2", 2, answers(range(50, 70), 9), range(100, 120))
    with pytest.raises(LoraOpsError, match="finance@1 and finance@2 answered no row in common"):
        compare_versions(registry, first, second)


def test_compare_refuses_an_older_package(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path / "1", 1, None, None)
    second = register(registry, tmp_path / "2", 2, answers(range(20), 9), range(100, 120))
    with pytest.raises(LoraOpsError, match=r"finance@1 keeps no answers \(an older package\)"):
        compare_versions(registry, first, second)
    unknown = "finance@1 keeps no membership.csv (an older package), so it can't be known"
    assert unknown in incomparable(registry, first, second)[0]


def test_incomparable_says_that_groups_have_another_meaning(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path / "1", 1, answers(range(20), 9), range(100, 120))
    second = register(registry, tmp_path / "2", 2, answers(range(20), 9), range(100, 120), group="customer")
    assert incomparable(registry, first, second) == [
        "finance@1 is grouped by code and finance@2 by customer, so it can't be known whether one was trained "
        "on test groups of the other"
    ]


def test_incomparable_finds_nothing_in_twins(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path / "1", 1, answers(range(20), 9), range(100, 120))
    assert incomparable(registry, first, first) == []


def test_compare_measures_written_answers_by_row(registry: Registry, tmp_path: Path) -> None:
    written = ("chrf", "rouge_l")
    options: dict[str, Any] = {"asked": written, "labels": [], "task": "text"}
    first = answers(range(40), 60).assign(target="Keeping pages in a cache", adapter="Caches")
    second = first.assign(adapter="Keeping pages")
    one = register(registry, tmp_path / "1", 1, first, range(100, 200), **options)
    other = register(registry, tmp_path / "2", 2, second, range(100, 200), **options)
    found = compare_versions(registry, one, other)
    assert tuple(found.metrics) == written and found.rows == 120
    assert found.verdict.startswith("finance@2 clearly beats finance@1 (chrf +0.")

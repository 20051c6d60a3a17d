"""How often test rows were looked at: counted over versions, warned of from a limit on."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.records.manifest import FileRecord
from lora_ops.registry.cards import record
from lora_ops.registry.looks import looks
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, Build

# The groups stand in membership.csv alone, not in the splits' counts.
pytestmark = pytest.mark.usefixtures("older_packages")

Register = Callable[[int, Iterable[int] | None], str]


@pytest.fixture
def register(registry: Registry, package: Build) -> Register:
    """Register a version that was tested on some groups; None is a package that names no groups."""

    def register_(seed: int, groups: Iterable[int] | None) -> str:
        folder, manifest = package(seed)
        files = dict(manifest.files)
        path = folder / "membership.csv"
        if groups is None:
            path.unlink()
            del files[path.name]
        else:
            rows = [f"test,{sha256_text(str(group))},3\n" for group in groups]
            path.write_text("split,group_sha256,rows\n" + "".join(rows))
            files[path.name] = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        return registry.register(folder, manifest.model_copy(update={"files": files}), actor=AUTHOR)[0].id

    return register_


def test_looks_counts_versions_with_the_same_test_groups(registry: Registry, register: Register) -> None:
    """One more group is the same test split; another split of the same source isn't."""
    ids = [register(1, range(20)), register(2, range(21)), register(3, range(100, 120)), register(4, range(20))]
    counted = [looks(registry, registry.get(one)) for one in ids]
    assert [(one.number, one.versions) for one in counted] == [(1, 3), (2, 3), (1, 1), (3, 3)]


def test_looks_compares_rows_where_no_groups_are_kept(registry: Registry, register: Register) -> None:
    """The packages of two seeds have other test rows; an older package has no groups to share."""
    register(1, None)
    assert looks(registry, registry.get(register(2, None))).number == 1
    assert looks(registry, registry.get(register(3, range(20)))).number == 1


def test_show_warns_of_rows_that_were_looked_at_often(registry: Registry, register: Register) -> None:
    registry.max_looks = 2
    ids = [register(seed, range(20)) for seed in (1, 2, 3)]
    warned = ["registry.max_looks" in str(record(registry, one).verdict.warnings) for one in ids]
    assert warned == [False, False, True]
    counted = record(registry, ids[2]).performance.looks
    assert counted is not None and (counted.number, counted.limit) == (3, 2)


def test_show_survives_a_damaged_file_of_another_version(registry: Registry, register: Register) -> None:
    register(1, range(20))
    second = register(2, range(21))
    damaged = registry.files.path(registry.get("finance@1").manifest.files["membership.csv"].sha256)
    damaged.chmod(0o644)
    Path(damaged).write_text("split,group_sha256,rows\n")
    with pytest.raises(LoraOpsError, match="membership.csv"):
        looks(registry, registry.get(second))
    card = record(registry, second)
    assert card.performance.looks is None
    assert any("membership.csv" in one for one in card.verdict.warnings)

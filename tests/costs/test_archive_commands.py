"""`lora-ops archive` in a clone: the dry run, the move, the way back, and what a wrong setting says."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.settings.archive import ArchiveSettings
from lora_ops.settings.params import load_settings
from tests.conftest import small_clone, write_params
from tests.registry.conftest import AUTHOR, Clock, build_package

from .archive_kit import age_files, days_before, write_events

NOW = datetime.now(UTC)


@pytest.fixture
def clone(tmp_path: Path, owners: Owners, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """finance@2 is the candidate after finance@1, which nobody asked for in half a year."""
    root = small_clone(tmp_path / "clone")
    (root / "owners.yaml").write_text(owners.model_dump_json())
    with closing(Registry(root / ".registry", create=True, owners=owners, clock=Clock())) as registry:
        for seed in (1, 2):
            folder = tmp_path / f"package-{seed}"
            registry.register(folder, build_package(folder, seed, fresh_days=36500), actor=AUTHOR)
        age_files(registry)
    write_events(root / ".serving", (days_before(NOW, 150), "finance@2"), (NOW, "finance@2"))
    monkeypatch.setenv("LORA_OPS_ROOT", str(root))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ci")
    monkeypatch.chdir(root)
    yield root


def as_json(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["archive", *words, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_archive_command_moves_and_restores(clone: Path) -> None:
    told = as_json()
    assert told["dry_run"] and told["archived"] == [] and not (clone / ".archive").exists()
    assert {one["version"]: one["stays"] for one in told["candidates"]} == {
        "finance@1": None,
        "finance@2": "is candidate",
    }
    moved = as_json("--yes")
    assert (moved["archived"], moved["head_remembered"]) == (["finance@1"], True)
    assert as_json("verify") == {"files": 1, "problems": []}
    assert as_json("restore", "finance@1")["was_missing"]
    with closing(open_registry(clone)) as registry:
        reasons = [one.body.get("reason") for one in registry.history("finance@1")]
        assert reasons[-2:] == ["nobody used it for 90 days", "it is needed"]


def test_archive_command_says_it_to_people(clone: Path) -> None:
    shown = CliRunner().invoke(app, ["archive"], env={"COLUMNS": "200"}).output
    assert "1 versions with" in shown and "`--yes` moves them." in shown
    done = CliRunner().invoke(app, ["archive", "--yes"], env={"COLUMNS": "200"}).output
    assert f"1 versions went to {clone / '.archive'}" in done.replace("\n", "")
    path = next(path for path in (clone / ".archive").rglob("*") if path.is_file())
    path.write_bytes(b"no zstd")
    found = CliRunner().invoke(app, ["archive", "verify"])
    assert found.exit_code == 1 and "finance@1 is damaged at" in found.output.replace("\n", " ")


@pytest.mark.parametrize("words", [["restore", "finance@2"], ["restore", "finance@candidate"]])
def test_restore_of_what_is_here_is_refused(clone: Path, words: list[str]) -> None:
    found = CliRunner().invoke(app, ["archive", *words])
    assert isinstance(found.exception, Refused if words[1] == "finance@2" else LoraOpsError)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"archive.store": "s3://key:secret@bucket/x"}, "give it by the environment"),
        ({"archive.store": "zip://x::ftp://u:secret@host/a.zip"}, "give it by the environment"),
        ({"archive.store": "simplecache::ftp://u:secret@host/a"}, "give it by the environment"),
        ({"archive.store": "abfs://u:secret@account/x"}, "give it by the environment"),
        ({"archive.store": "https://host/a?sig=secret"}, "give it by the environment"),
        ({"archive.store": "ftp:/u:secret@host/x"}, "this is no URL"),
        ({"archive.store": "file://archive"}, "depends on where a command runs"),
        ({"archive.store": "memory://archive"}, "gone with its process"),
        ({"archive.store": "dir::memory://archive"}, "gone with its process"),
        ({"archive.store": "models"}, "that folder is used already"),
        ({"archive.store": ""}, "names no folder"),
        ({"archive.days": 0}, "greater than or equal to 1"),
        ({"archive.keep": ["finance"]}, "archive.keep.0: name exact versions, such as finance@3"),
        ({"archive.codec": "gzip"}, "archive.codec"),
    ],
)
def test_wrong_archive_setting_is_one_sentence(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    root = small_clone(tmp_path / "clone")
    write_params(root, values)
    with pytest.raises(LoraOpsError, match=said):
        load_settings(root)


def test_archive_of_several_machines_is_refused(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a registry at W&B are there; what is here is a copy."""
    monkeypatch.setattr(Registry, "shares_log", True)
    found = CliRunner().invoke(app, ["archive"])
    assert isinstance(found.exception, Refused) and "are at W&B" in str(found.exception)


def test_restore_takes_no_password_in_a_url(clone: Path) -> None:
    found = CliRunner().invoke(app, ["archive", "restore", "finance@1", "--from", "ftp://u:secret@host/x"])
    assert "--from: a user, password or query in the URL" in str(found.exception)
    assert "secret" not in str(found.exception)


@pytest.mark.parametrize(
    "store", ["abfs://container@account/x", "s3://bucket/x", "hdfs://host:8020/x", "file:///a@b"]
)
def test_archive_url_without_a_secret_is_taken(store: str) -> None:
    assert ArchiveSettings(store=store).store == store

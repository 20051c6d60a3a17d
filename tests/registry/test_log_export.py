"""An exported log is signed, and whoever has it can check it without the registry and without lora-ops."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.registry import lifecycle
from lora_ops.registry.audit import Head
from lora_ops.registry.backends import open_registry
from lora_ops.registry.commands import app
from lora_ops.registry.log_export import Format, check_export, export_log
from lora_ops.registry.owners import Owners
from lora_ops.registry.rotation import rotate_key
from lora_ops.registry.store import Registry
from tests.conftest import small_clone

from .conftest import AUTHOR, Build, build_package

FORMATS: tuple[Format, Format] = ("json", "csv")


@pytest.fixture
def told(registry: Registry, package: Build) -> Registry:
    """A registry with entries of several kinds, one with a reason that CSV must quote."""
    registry.register(*package(1), actor=AUTHOR)
    registry.register(*package(2), actor=AUTHOR)
    lifecycle.revoke(registry, "finance@1", actor="ben", reason='leaks "names",\nsays\r\nana; =1+1 – é 𝄞')
    rotate_key(registry, actor="ben", reason="yearly")
    return registry


@pytest.mark.parametrize("form", FORMATS)
def test_exported_log_is_checked_without_the_registry(told: Registry, tmp_path: Path, form: Format) -> None:
    made = export_log(told, tmp_path / "audit", form)
    (tmp_path / "elsewhere").mkdir()
    for path in tmp_path.glob("audit*"):
        shutil.move(path, tmp_path / "elsewhere")
    assert check_export(tmp_path / "elsewhere/audit") == made
    assert (made.head, made.entries, made.key) == (told.log.head(), 5, told.signer.own.fingerprint())


@pytest.mark.parametrize("form", FORMATS)
def test_openssl_checks_the_signature(told: Registry, tmp_path: Path, form: Format) -> None:
    export_log(told, tmp_path / "audit", form)
    command = ["openssl", "dgst", "-sha256", "-verify", "audit.pub", "-signature", "audit.sig", "audit"]
    assert b"Verified OK" in subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout


def change_a_letter(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"yearly", b"weekly"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def change_the_signature(path: Path) -> None:
    path.with_name("audit.sig").write_bytes(b"no signature")


def change_the_key(path: Path) -> None:
    path.with_name("audit.pub").write_bytes(b"no key")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tamper", [change_a_letter, cut, change_the_signature, change_the_key])
def test_changed_export_is_refused(
    told: Registry, tmp_path: Path, form: Format, tamper: Callable[[Path], None]
) -> None:
    export_log(told, tmp_path / "audit", form)
    tamper(tmp_path / "audit")
    with pytest.raises(Damaged, match="was changed: the signature beside it does not fit"):
        check_export(tmp_path / "audit")


def test_signed_log_with_a_broken_chain_is_refused(told: Registry, tmp_path: Path) -> None:
    """Whoever holds the key can sign anything; the hashes still show an entry that was changed."""
    export_log(told, tmp_path / "audit", "json")
    document = json.loads((tmp_path / "audit").read_text())
    document["entries"][1]["actor"] = "mallory"
    text = json.dumps(document)
    (tmp_path / "audit").write_text(text)
    from base64 import b64decode

    (tmp_path / "audit.sig").write_bytes(b64decode(told.signer.sign_text(text)["value"]))
    with pytest.raises(Damaged, match="is not whole: entry 2 .* was changed"):
        check_export(tmp_path / "audit")


@pytest.mark.parametrize("form", FORMATS)
def test_export_of_a_long_owners_file_is_checked(
    told: Registry, tmp_path: Path, owners: Owners, form: Format
) -> None:
    """A field of CSV may have 131,072 characters only, and owners.yaml of a large company has more."""
    crowd = tuple(f"person-{number}@example.com" for number in range(8000))
    told.owners = owners.model_copy(update={"default": owners.default.model_copy(update={"contacts": crowd})})
    lifecycle.revoke(told, "finance@2", actor="ben", reason="leaks")
    made = export_log(told, tmp_path / "audit", form)
    assert check_export(tmp_path / "audit") == made


def test_key_that_is_not_trusted_is_refused(told: Registry, tmp_path: Path) -> None:
    made = export_log(told, tmp_path / "audit", "json")
    assert check_export(tmp_path / "audit", keys=[made.key]).key == made.key
    with pytest.raises(Damaged, match="which is none of those that are trusted here"):
        check_export(tmp_path / "audit", keys=["0" * 64])


def test_export_writes_over_nothing_and_exports_no_changed_log(told: Registry, tmp_path: Path) -> None:
    export_log(told, tmp_path / "audit", "json")
    with pytest.raises(Refused, match="exists already: name a new file"):
        export_log(told, tmp_path / "audit", "csv")
    told.db.rows("DROP TRIGGER audit_keeps")
    told.db.rows("DELETE FROM audit WHERE seq = 4")
    with pytest.raises(Damaged, match="can't be trusted, so it is not exported"):
        export_log(Registry(told.path, owners=told.owners), tmp_path / "again", "json")
    assert not (tmp_path / "again").exists()


def test_missing_signature_is_named(told: Registry, tmp_path: Path) -> None:
    export_log(told, tmp_path / "audit", "json")
    (tmp_path / "audit.sig").unlink()
    with pytest.raises(LoraOpsError, match=r"audit\.sig and audit\.pub belong beside it"):
        check_export(tmp_path / "audit")


def test_pipe_is_no_export(told: Registry, tmp_path: Path) -> None:
    export_log(told, tmp_path / "audit", "json")
    (tmp_path / "audit").unlink()
    os.mkfifo(tmp_path / "audit")
    with pytest.raises(LoraOpsError, match="this is a pipe or a device, and no file"):
        check_export(tmp_path / "audit")


def test_commands_export_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_clone(tmp_path)
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    registry = open_registry(tmp_path, create=True)
    registry.register(tmp_path / "one", build_package(tmp_path / "one", 1), actor="ana.silva")
    head: Head = registry.log.head()
    registry.close()
    target = str(tmp_path / "out/audit.csv")
    done = CliRunner().invoke(app, ["export-log", target, "--format", "csv"])
    assert f"1 entries, the log ends at {head.text}" in done.output
    assert "openssl dgst -sha256 -verify" in done.output
    checked = json.loads(CliRunner().invoke(app, ["check-export", target, "--json"]).output)
    assert (checked["head"], checked["pinned"]) == (head.text, False)
    again = str(tmp_path / "out/again.json")
    printed = json.loads(CliRunner().invoke(app, ["export-log", again, "--json"]).output)
    assert Path(printed["signature"]).is_file() and Path(printed["public_key"]).is_file()
    shutil.rmtree(tmp_path / ".registry")
    assert "signed by key" in CliRunner().invoke(app, ["check-export", target]).output


@pytest.mark.parametrize("name", ["", ".", "/", "folder"])
def test_export_into_what_is_no_file_is_refused(
    told: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for call in (lambda: export_log(told, Path(name), "json"), lambda: check_export(Path(name))):
        with pytest.raises(LoraOpsError, match="is no file: name a file, such as audit-2026.json"):
            call()
    assert not list(tmp_path.glob("**/*.sig"))

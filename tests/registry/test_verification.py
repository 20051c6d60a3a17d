"""`verify` recomputes everything: state by replay, digests, signatures."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import Damaged
from lora_ops.hashing import sha256_file
from lora_ops.paths import EVALUATION_PAGE
from lora_ops.records.manifest import FileRecord
from lora_ops.registry import packages, store
from lora_ops.registry.audit import Anchor, Head, entry_hash
from lora_ops.registry.cards import record
from lora_ops.registry.signing import Signer
from lora_ops.registry.signing_keys import make_key
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.registry import SigningSettings

from . import processes
from .conftest import AUTHOR, Build, Story


@pytest.fixture
def serving(registry: Registry, package: Build, story: Story) -> Registry:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    return registry


def test_an_untouched_registry_verifies_and_says_what_was_read(serving: Registry) -> None:
    result = verify(serving)
    assert result.ok
    assert (result.entries, result.versions) == (10, 2)
    # Two signatures, weights, evaluations, lists of answers and cards; one configuration and list of groups
    # for both; four documents and what they were counted from (shadow and canary from the same).
    assert result.files == 2 + 2 + 2 + 2 + 2 + 2 + 7
    assert result.head == serving.log.head().text


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE versions SET state = 'production' WHERE number = 2", "the state of finance@2 was changed"),
        ("UPDATE versions SET author = 'eve' WHERE number = 1", "the author of finance@1 was changed"),
        (
            "UPDATE versions SET fresh_until = '2099-01-01' WHERE number = 1",
            "the fresh_until of finance@1 was changed: it is '2099-01-01', and was '2027-03-02T09:00:00+00:00'",
        ),
        (
            "UPDATE versions SET next_review_due = NULL WHERE number = 1",
            "the next_review_due of finance@1 was changed",
        ),
        (
            "UPDATE versions SET primary_value = 0.99 WHERE number = 2",
            "the primary_value of finance@2 was changed",
        ),
        (
            "UPDATE manifests SET manifest = replace(manifest, '0.51', '0.91') WHERE number = 1",
            "the manifest of finance@1 was changed",
        ),
        ("DELETE FROM manifests WHERE number = 1", "the manifest of finance@1 was removed"),
        (
            "UPDATE aliases SET number = 2 WHERE alias = 'production'",
            "alias finance@production was changed: it names 2, and the audit log says 1",
        ),
        (
            "DELETE FROM aliases WHERE alias = 'production'",
            "alias finance@production was changed: it names nothing, and the audit log says 1",
        ),
        (
            "INSERT INTO aliases VALUES ('finance', 'canary', 2)",
            "alias finance@canary was changed: it names 2, and the audit log says nothing",
        ),
        (
            "INSERT INTO versions SELECT tenant, 3, 'x', state, author, registered_at, fresh_until,"
            " next_review_due, primary_metric, primary_value, size_bytes, signature"
            " FROM versions WHERE number = 2",
            "finance@3 was added by something that is not lora-ops",
        ),
    ],
)
def test_a_changed_row_is_named(serving: Registry, statement: str, says: str) -> None:
    serving.db.rows(statement)
    assert verify(serving).problems[0].startswith(says)


def test_a_removed_version_is_named(serving: Registry) -> None:
    for table in ("manifests", "aliases", "versions"):
        serving.db.rows(f"DELETE FROM {table} WHERE number = 2")
    assert verify(serving).problems[0] == "finance@2, registered by entry 10, was removed"


def kept(registry: Registry, name: str) -> Path:
    return registry.files.path(registry.get("finance@1").manifest.files[name].sha256)


def test_a_changed_file_is_named(serving: Registry) -> None:
    kept(serving, "adapter_model.safetensors").write_bytes(b"poison")
    assert any("was changed on disk" in problem for problem in verify(serving).problems)
    assert any("signature of finance@1 does not verify" in problem for problem in verify(serving).problems)
    assert verify(serving, files=False).ok


def test_a_file_on_a_bad_disk_is_named_beside_others(serving: Registry) -> None:
    """Verifying ended at the first file that can't be read, and named no other."""
    for name in ("adapter_model.safetensors", "README.md"):
        kept(serving, name).unlink()
    kept(serving, "adapter_model.safetensors").symlink_to("/proc/self/mem")  # reading it is an I/O error
    said = "\n".join(verify(serving).problems)
    assert "can't be read (Input/output error)" in said and "The registry has lost file" in said


def test_a_lost_file_is_named_once(serving: Registry) -> None:
    kept(serving, "adapter_model.safetensors").unlink()
    (problem,) = verify(serving).problems
    assert "has lost" in problem


def test_a_lost_report_is_named(serving: Registry) -> None:
    serving.files.path(serving.history("finance@1")[1].body["evidence"][0]["sha256"]).unlink()
    (problem,) = verify(serving).problems
    assert "has lost" in problem


def test_a_changed_signature_is_named(serving: Registry) -> None:
    signature = serving.get("finance@1").summary.signature
    assert signature
    serving.files.path(signature).write_text("{}")
    assert any("was changed on disk" in problem for problem in verify(serving).problems)


def test_a_registry_verifies_while_others_write(serving: Registry, package: Build) -> None:
    packages = [package(seed) for seed in range(10, 30)]
    path, owners, clock = serving.path, serving.owners, serving.clock
    serving.close()

    def write() -> None:
        registry = Registry(path, owners=owners, clock=clock)
        for one in packages:
            registry.register(*one)

    writers = [processes.start(write) for _ in range(2)]
    reader = Registry(path, owners=owners, clock=clock)
    results = [verify(reader) for _ in range(15)]
    assert [processes.wait(writer) for writer in writers] == [processes.DONE] * 2
    assert [result.problems for result in results] == [()] * 15
    assert len(verify(reader).problems) == 0
    assert len(reader.summaries()) == 22


def forge(registry: Registry, *, names_own_key: bool) -> None:
    """Make somebody else the author, as one who can write in the folder but has not its private key."""
    forger = Signer(registry.signer.folder, SigningSettings(key="own.key"))
    make_key(forger.own.path)
    (mine,) = registry.signer.known()
    ((trigger,),) = registry.db.rows("SELECT sql FROM sqlite_master WHERE name = 'audit_stays'")
    registry.db.rows("DROP TRIGGER audit_stays")
    registry.db.rows("UPDATE versions SET author = 'eve'")
    last = Head()
    for *fields, body, _, _ in registry.log.rows():
        body = body.replace('"ana"', '"eve"')
        if names_own_key:
            body = body.replace(mine, forger.own.fingerprint())
        values = (*fields, body, last.hash)
        last = Head(fields[0], entry_hash(*values))
        changed = (*values[-2:], last.hash, last.seq)
        registry.db.rows("UPDATE audit SET body = ?, previous = ?, hash = ? WHERE seq = ?", changed)
    registry.db.rows(trigger)  # a missing one would show
    Anchor(registry.anchor.path, forger).confirm(last)


def test_a_history_that_was_forged_with_another_key_is_named_once_keys_are_pinned(serving: Registry) -> None:
    (mine,) = serving.signer.known()
    clean = verify(serving)
    assert clean.ok
    assert f"no key is pinned, so whoever can write in {serving.path}" in clean.warnings[0]
    assert mine in clean.warnings[0]
    forge(serving, names_own_key=True)
    assert verify(serving).ok  # which is why it warns
    pinned = Registry(
        serving.path,
        owners=serving.owners,
        clock=serving.clock,
        signing=SigningSettings(trusted_keys=(mine,)),
    )
    result = verify(pinned)
    assert not any("key" in warning for warning in result.warnings)
    assert result.problems == (
        "audit.head, which says where the log ends, was changed: its signature does not fit",
    )


def test_forged_history_that_names_the_true_key_is_named(serving: Registry) -> None:
    forge(serving, names_own_key=False)
    (problem,) = verify(serving).problems
    assert problem.startswith("audit.head is signed by key ")


def test_a_registry_whose_key_is_pinned_verifies_without_a_word(serving: Registry, package: Build) -> None:
    settings = SigningSettings(trusted_keys=tuple(serving.signer.known()))
    pinned = Registry(serving.path, owners=serving.owners, clock=serving.clock, signing=settings)
    pinned.register(*package(3), actor=AUTHOR)
    result = verify(pinned)
    assert result.ok and not any("key" in warning for warning in result.warnings)


def test_verify_compares_the_page_with_its_evaluation(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that does not check it registered a page of other numbers than the package has."""
    folder, manifest = package(1)
    page = folder / EVALUATION_PAGE
    page.write_text(f'<head><meta name="lora-ops-evaluation" content="{"0" * 64}"></head><body>')
    file = FileRecord(bytes=page.stat().st_size, sha256=sha256_file(page))
    whole = manifest.model_copy(update={"files": {**manifest.files, page.name: file}})
    with monkeypatch.context() as patched:
        patched.setattr(store, "require_consistent", lambda *_: None)
        registry.register(folder, whole, actor=AUTHOR)
    told = "the page of finance@1 (03_evaluate.html) is of another evaluation than its package"
    assert verify(registry).problems == (told,)


def test_verify_compares_the_stated_weights(registry: Registry, package: Build, tmp_path: Path) -> None:
    """A machine with other code states the weights that it likes, and signs its entry."""

    class Liar(Registry):
        def _insert(self, *given: Any) -> None:
            change, action, manifest, signature, _, *rest = given
            super()._insert(change, action, manifest, signature, "ab" * 32, *rest)

    with closing(Liar(registry.path, owners=registry.owners, clock=registry.clock)) as liar:
        liar.register(*package(1), actor=AUTHOR)
    told = "audit log says that the weights of finance@1 are abababababab…, and its file has "
    assert told in " ".join(verify(registry).problems)
    assert told in " ".join(record(registry, "finance@1").verdict.reasons)
    with pytest.raises(Damaged, match=told):
        packages.export(registry, "finance@1", tmp_path / "out", for_review=True)
    assert not (tmp_path / "out").exists()


def test_verify_names_a_database_open_to_all(registry: Registry, package: Build) -> None:
    registry.register(*package())
    assert not [one for one in verify(registry).warnings if "keep it locked" in one]
    registry.db.path.chmod(0o644)
    assert [one for one in verify(registry).warnings if "keep it locked" in one]

"""A model's name means what the registry says at this moment."""

import asyncio
import json
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest

from lora_ops.errors import Damaged
from lora_ops.hashing import canonical, sha256_text
from lora_ops.records.base_model import read_base_model
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.backends import open_registry, open_to_accept
from lora_ops.registry.head_acceptance import accept_head
from lora_ops.registry.integrity import LogFollower
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.registry.versions import Version
from lora_ops.serving.router import NotServed, OutOfService, Router, UnknownModel
from tests.conftest import run
from tests.serving.conftest import Clone


@pytest.fixture
def reader(clone: Clone) -> Registry:
    return open_registry(clone.root)


def router(clone: Clone, reader: Registry, *, candidates: bool = False) -> Router:
    return Router(reader, read_base_model(clone.base), allow_candidates=candidates)


def test_a_tenant_means_production_and_before_that_its_candidate(clone: Clone, reader: Registry) -> None:
    routes = router(clone, reader, candidates=True)
    assert (routes.route("finance").name, routes.route("finance").decision) == ("finance@2", "candidate")
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    assert (routes.route("finance").name, routes.route("finance").decision) == ("finance@1", "production")


def test_route_names_the_entry_of_the_log_that_it_knew(clone: Clone, reader: Registry) -> None:
    routes = router(clone, reader)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
        before = writer.log.head().seq
        assert routes.route("finance").epoch == routes.route("base").epoch == before
        clone.story(writer).to("finance@2", "production")
        assert routes.route("finance").epoch == writer.log.head().seq > before


def test_without_allow_candidates_only_approved_versions_answer(clone: Clone, reader: Registry) -> None:
    routes = router(clone, reader)
    for name in ("finance", "finance@1"):
        with pytest.raises(NotServed, match="only shadow, canary and production serve"):
            routes.route(name)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "shadow")
    assert routes.route("finance@1").decision == "pinned"
    assert routes.route("base").decision == "base"
    assert [name for name, _ in asyncio.run(routes.served())] == ["finance@1", "tiny-random"]


@pytest.mark.parametrize("deleted", [("wal",), ("shm",), ("wal", "shm")], ids="-".join)
def test_a_revocation_holds_though_the_wal_was_deleted(
    clone: Clone, reader: Registry, deleted: tuple[str, ...]
) -> None:
    """The gateway saw no commit any more, and closing its old files took the revocation back."""
    routes = router(clone, reader)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    assert routes.route("finance").name == "finance@1"
    for end in deleted:
        (clone.root / f".registry/registry.sqlite-{end}").unlink()
    command = ("lora-ops", "registry", "revoke", "finance@1", "--reason=leaks", "--actor=ben")
    done = run(*command, cwd=clone.root)
    assert done.returncode == 0, done.stderr
    assert routes.damage() is None
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        routes.route("finance")
    reader.close()
    with clone.registry() as later:
        assert verify(later).ok
        assert later.get("finance@1").state == "revoked"


def test_an_alias_is_no_model(clone: Clone, reader: Registry) -> None:
    """Any key of the tenant reached its canary by that name, whatever share of requests it should get."""
    routes = router(clone, reader, candidates=True)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "canary")
    for alias in ("production", "canary", "shadow", "candidate"):
        with pytest.raises(UnknownModel, match=f"'finance@{alias}' is an alias of the registry and no model"):
            routes.route(f"finance@{alias}")
    assert routes.route("finance@1").decision == "pinned"


def test_a_rollback_holds_for_the_very_next_request(clone: Clone, reader: Registry) -> None:
    routes = router(clone, reader)
    with clone.registry() as writer:
        story = clone.story(writer)
        story.to("finance@1", "production")
        story.to("finance@2", "production")
        assert routes.route("finance").name == "finance@2"
        lifecycle.promote(
            writer,
            "finance@1",
            "production",
            actor="ben",
            reason="finance@2 is wrong",
            evidence=story.evidence("incident", about="finance@2"),
        )
    assert routes.route("finance").name == "finance@1"


def test_route_follows_a_head_that_was_accepted(clone: Clone, reader: Registry) -> None:
    """After an older backup was restored and accepted, a gateway that ran on saw no revocation any more."""
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    shutil.copytree(reader.path, clone.root / "backup")
    with clone.registry() as writer:
        clone.story(writer).file("policy", about="finance@1")
    routes = router(clone, reader)
    assert routes.route("finance").name == "finance@1"
    reader.path.rename(clone.root / "lost")
    shutil.copytree(clone.root / "backup", reader.path)
    assert "replaced by an older copy" in str(routes.damage())
    restored, memory = open_to_accept(clone.root, actor="ben", reason="the disk died")
    with closing(restored):
        accept_head(restored, memory, actor="ben", reason="the disk died")
    assert routes.damage() is None
    with clone.registry() as writer:
        lifecycle.revoke(writer, "finance@1", actor="ben", reason="leaks card numbers")
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        routes.route("finance")


def test_route_follows_what_was_verified_alone(clone: Clone, reader: Registry) -> None:
    """A page that was written past SQLite, and read later, put a revoked version on air."""
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
        writer.db.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        before = writer.db.path.read_bytes()
        lifecycle.revoke(writer, "finance@1", actor="ben", reason="leaks card numbers")
        writer.db.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    routes = router(clone, reader)
    assert routes.damage() is None
    with reader.db.path.open("r+b") as file:
        file.write(before)
        file.truncate()
    reader.db.rows("PRAGMA cache_size = 1")
    reader.db.rows("PRAGMA shrink_memory")
    for name in ("finance", "finance@1"):
        with pytest.raises((Damaged, OutOfService, NotServed, UnknownModel)):
            routes.route(name)


def test_route_that_changes_while_it_is_read_is_not_kept(
    clone: Clone, reader: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody changed between verifying and reading counted as verified from then on."""
    with clone.registry() as writer:
        story = clone.story(writer)
        story.to("finance@1", "production")
        story.to("finance@2", "canary")
    routes = router(clone, reader)
    assert routes.damage() is None
    read = reader.get

    def get(reference: str) -> Version:
        monkeypatch.undo()
        db = sqlite3.connect(reader.db.path, isolation_level=None)
        db.execute("UPDATE aliases SET number = 2 WHERE tenant = 'finance' AND alias = 'production'")
        db.close()
        return read(reference)

    monkeypatch.setattr(reader, "get", get)
    for _ in range(2):
        with pytest.raises(Damaged, match="was not verified before"):
            routes.route("finance")


def test_route_never_falls_back_to_a_candidate(clone: Clone, reader: Registry) -> None:
    """The README's own incident command put an unreviewed version on air."""
    routes = router(clone, reader, candidates=True)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
        with pytest.raises(NotServed, match="has had a version in production"):
            routes.route("finance@2")
        lifecycle.revoke(writer, "finance@1", actor="ben", reason="leaks card numbers")
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        routes.route("finance")
    assert "finance" not in dict(asyncio.run(routes.served()))


def rewrite(reader: Registry, seq: int, **fields: object) -> None:
    """Write another entry in the place of an old one, with the hash that fits it, past the trigger."""
    row = reader.log.rows(seq - 1)[0]._replace(**fields)  # type: ignore[arg-type]
    with closing(sqlite3.connect(reader.db.path, isolation_level=None)) as db:
        [trigger] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'audit_stays'").fetchone()
        db.execute("DROP TRIGGER audit_stays")
        change = "UPDATE audit SET action = ?, body = ?, hash = ? WHERE seq = ?"
        db.execute(change, (row.action, row.body, row.expected_hash(), seq))
        db.execute(trigger)


def test_route_takes_no_candidate_for_a_rewritten_entry(clone: Clone, reader: Registry) -> None:
    """Without the entry that production was in the log, a running gateway served what nobody had reviewed."""
    routes = router(clone, reader, candidates=True)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
        lifecycle.revoke(writer, "finance@1", actor="ben", reason="leaks card numbers")
    assert routes.damage() is None
    [entry] = [row for row in reader.log.rows() if row.action == "production"]
    rewrite(reader, entry.seq, action="noted")
    for name in ("finance", "finance@2"):
        with pytest.raises((Damaged, NotServed)):
            routes.route(name)
    assert not {"finance", "finance@2"} & dict(asyncio.run(routes.served())).keys()


def test_route_refuses_a_rewritten_registration(clone: Clone, reader: Registry) -> None:
    """A running gateway gave production another system prompt; it goes on as verified, and loads nothing."""
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    routes = router(clone, reader)
    assert routes.route("finance").system == "Name the merchant category."
    text = str(reader.manifest_text("finance", 1)).replace("Name the merchant category.", "Insult the client.")
    [entry] = [row for row in reader.log.rows() if (row.action, row.subject) == ("registered", "finance@1")]
    body = json.loads(entry.body) | {"manifest_sha256": sha256_text(text)}
    rewrite(reader, entry.seq, body=canonical(body))
    with closing(sqlite3.connect(reader.db.path, isolation_level=None)) as db:
        db.execute("UPDATE manifests SET manifest = ? WHERE tenant = 'finance' AND number = 1", (text,))
    assert f"entry {entry.seq} (registered finance@1" in str(routes.damage())
    assert routes.route("finance").system == "Name the merchant category."
    with pytest.raises(Damaged, match="entry .* was changed"):
        routes.route("finance@1")
    with pytest.raises(Damaged, match="can't be trusted"):
        router(clone, reader).route("finance")


def catching_up(
    clone: Clone, reader: Registry, monkeypatch: pytest.MonkeyPatch
) -> tuple[Router, list[threading.Thread]]:
    """A router that has verified all there is, and the threads that verify from now on."""

    def copy() -> Registry:
        return Registry(reader.path, owners=reader.owners, clock=reader.clock)

    routes = Router(reader, read_base_model(clone.base), allow_candidates=False, copy=copy)
    assert routes.damage() is None
    threads, problem = [], LogFollower.problem

    def noted(follower: LogFollower) -> str | None:
        threads.append(threading.current_thread())
        return problem(follower)

    monkeypatch.setattr(LogFollower, "problem", noted)
    return routes, threads


def test_router_catches_up_in_one_thread_for_all(
    clone: Clone, reader: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change held up all answers while the whole log was read: 0.1 s at 10,000 versions."""
    routes, threads = catching_up(clone, reader, monkeypatch)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")

        async def ask() -> str:
            await routes.catch_up()
            return routes.route("finance").name

        async def both() -> list[str]:
            return await asyncio.gather(ask(), ask())

        assert asyncio.run(both()) == ["finance@1"] * 2
        lifecycle.revoke(writer, "finance@1", actor="ben", reason="leaks card numbers")
        with pytest.raises(OutOfService, match="finance@1 was revoked"):
            asyncio.run(ask())
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_router_finds_a_changed_entry_in_a_thread(
    clone: Clone, reader: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    routes, threads = catching_up(clone, reader, monkeypatch)
    assert routes.route("finance").name == "finance@1"
    [entry] = [row for row in reader.log.rows() if (row.action, row.subject) == ("registered", "finance@1")]
    rewrite(reader, entry.seq, action="noted")
    asyncio.run(routes.catch_up())
    assert f"entry {entry.seq} (noted finance@1" in str(routes.damage())
    assert threading.main_thread() not in threads
    assert routes.route("finance").name == "finance@1"
    with pytest.raises(Damaged):
        routes.route("finance@2")


def test_route_of_expired_production_is_out_of_service(clone: Clone, reader: Registry) -> None:
    from datetime import UTC, datetime

    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    reader.clock = lambda: datetime(2500, 1, 1, tzinfo=UTC)
    with pytest.raises(OutOfService, match="finance@1 expired on"):
        router(clone, reader, candidates=True).route("finance")


@pytest.mark.parametrize("attack", ["alias", "state", "head", "cut", "no versions", "no aliases", "no audit"])
def test_route_goes_on_as_verified_while_damaged(clone: Clone, reader: Registry, attack: str) -> None:
    routes = router(clone, reader, candidates=True)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
    assert routes.route("finance").name == "finance@1"
    head = reader.anchor.path.read_bytes()
    db = sqlite3.connect(reader.db.path, isolation_level=None)
    if attack == "alias":
        db.execute("UPDATE aliases SET number = 2 WHERE tenant = 'finance' AND alias = 'production'")
    elif attack == "state":
        db.execute("UPDATE versions SET state = 'production' WHERE tenant = 'healthcare'")
    elif attack == "cut":
        db.execute("DROP TRIGGER audit_keeps")
        db.execute("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)")
    elif attack.startswith("no "):
        db.execute(f"DROP TABLE {attack.removeprefix('no ')}")
    else:
        reader.anchor.path.unlink()
    assert routes.damage()
    assert routes.route("finance").name == "finance@1"
    with pytest.raises(Damaged, match="can't be trusted"):
        routes.route("healthcare@1")
    assert routes.route("base").decision == "base"
    if attack == "alias":
        db.execute("UPDATE aliases SET number = 1 WHERE tenant = 'finance' AND alias = 'production'")
    elif attack == "head":
        reader.anchor.path.write_bytes(head)
    else:
        return
    assert routes.damage() is None


def test_route_of_a_newer_release_is_read_and_unserved(clone: Clone, reader: Registry) -> None:
    """A state and subjects that this release does not know stop one version, and damage nothing."""
    routes = router(clone, reader, candidates=True)
    with clone.registry() as writer:
        clone.story(writer).to("finance@1", "production")
        assert routes.route("finance").name == "finance@1"
        with writer.change("ci") as change:
            change.record("frozen", "finance", 1, states={1: "frozen"})  # type: ignore[dict-item]
            for kind in ("route", "runbook", "drift"):
                change.note("changed", kind, "finance", effects={"states": {"1": "production"}})
    assert routes.damage() is None
    with pytest.raises(OutOfService, match="finance@1 is 'frozen', and only shadow, canary and production"):
        routes.route("finance")
    with pytest.raises(NotServed, match="finance@1 is 'frozen'"):
        routes.route("finance@1")
    assert routes.route("healthcare").name == "healthcare@1"


def test_a_revoked_version_does_not_answer_even_when_pinned(clone: Clone, reader: Registry) -> None:
    routes = router(clone, reader, candidates=True)
    assert routes.route("finance@2").name == "finance@2"
    with clone.registry() as writer:
        lifecycle.revoke(writer, "finance@2", actor="ben", reason="leaks")
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        routes.route("finance@2")


def test_an_expired_version_does_not_answer(clone: Clone) -> None:
    from datetime import UTC, datetime

    reader = open_registry(clone.root)
    reader.clock = lambda: datetime(2500, 1, 1, tzinfo=UTC)
    with pytest.raises(NotServed, match="expired on"):
        router(clone, reader, candidates=True).route("finance")


@pytest.mark.parametrize(
    "name", ["", "nobody", "finance@3", "finance@stable", "Finance", "finance@1 ", "../x", "@1"]
)
def test_what_names_nothing_is_unknown(clone: Clone, reader: Registry, name: str) -> None:
    with pytest.raises(UnknownModel):
        router(clone, reader, candidates=True).route(name)


def test_router_remembers_the_head_it_verified(clone: Clone, reader: Registry) -> None:
    remembered = clone.root / ".serving/head.json"
    remembered.unlink(missing_ok=True)
    router(clone, reader, candidates=True).route("finance")
    assert json.loads(remembered.read_text())[".registry"] == list(reader.log.head())


def test_replayed_registry_serves_no_adapter(clone: Clone) -> None:
    """A8: an older copy of the folder was served, with the version that had been revoked since."""
    shutil.copytree(clone.root / ".registry", clone.root / "before")
    with clone.registry() as writer:
        lifecycle.revoke(writer, "finance@2", actor="ben", reason="leaks")
    shutil.rmtree(clone.root / ".registry")
    shutil.copytree(clone.root / "before", clone.root / ".registry")
    with clone.registry() as replayed:
        routes = router(clone, replayed, candidates=True)
        with pytest.raises(Damaged, match="replaced by an older copy"):
            routes.route("finance@2")
        assert routes.route("base").decision == "base"
        assert "knows entry " in str(routes.damage())
        with pytest.raises(Damaged, match="replaced by an older copy"):
            packages.verified_path(replayed, "finance@2")

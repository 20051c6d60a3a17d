"""A revocation holds on this machine at once, whatever keeps W&B from taking it, and reaches W&B once."""

import base64
import json
import os
import re
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from lora_ops import incidents
from lora_ops.clock import utc
from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.hashing import canonical
from lora_ops.registry import lifecycle, packages, routes
from lora_ops.registry.backup import backup
from lora_ops.registry.cards import record
from lora_ops.registry.closing import settle
from lora_ops.registry.eligibility import reasons_against
from lora_ops.registry.gc import collect_garbage
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import make
from lora_ops.registry.restoring import restore
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.signing_keys import key_fingerprint, public_pem
from lora_ops.registry.status import status
from lora_ops.registry.store import Registry
from lora_ops.registry.unread import stop_by_hold
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback
from lora_ops.serving.router import OutOfService, Router
from lora_ops.settings.registry import SigningSettings
from tests.wandb_server import WandbServer

from . import processes
from .conftest import Build, Clock, Story
from .test_shared import Connect, fingerprint

Opens = Callable[..., SharedRegistry]
MACHINES = ("laptop", "ci", "stranger")


@pytest.fixture
def opens(tmp_path: Path, owners: Owners, clock: Clock, connect: Connect) -> Opens:
    """Open the registry on a machine that trusts `laptop` and `ci`, and those of `trusts`, with its memory."""
    keys = {name: fingerprint(tmp_path / name) for name in MACHINES}

    def opened(name: str, *trusts: str) -> SharedRegistry:
        signing = SigningSettings(trusted_keys=tuple(keys[one] for one in {"laptop", "ci", *trusts}))
        memory = HeadMemory(tmp_path / f"{name}.serving" / "head.json", name)
        return SharedRegistry(
            tmp_path / name, connect(), owners=owners, signing=signing, memory=memory, clock=clock
        )

    return opened


def revoked(registry: Registry) -> list[tuple[str, str, str | None, str | None]]:
    """Each revocation that the log has: of what, by whom, why and held since when."""
    return [
        (entry.subject.id, entry.actor, entry.body.get("reason"), entry.body.get("held_at"))
        for entry in registry.log.entries()
        if entry.action == "revoked"
    ]


def files(registry: Registry) -> list[Path]:
    folders = filter(None, (registry.holds.inside, registry.holds.outside))
    return [path for folder in folders for path in sorted(folder.glob("*"))]


def let_down(server: WandbServer, kind: str, opens: Opens, package: Build) -> None:
    """Bring the log at W&B into a state in which no machine but the one that did it can change anything."""
    if kind == "down":
        server.fail(".", times=10_000)
    elif kind == "unlisted":  # a well-formed entry by a key that nobody else lists
        stranger = opens("stranger", "stranger")
        stranger.pull()
        stranger.register(*package(7), actor="ana")
    elif kind == "gap":
        ci = opens("ci")
        for seed in (7, 8):
            ci.register(*package(seed), actor="ana")
        server.collection("audit").versions[1].metadata = "{}"
    else:  # another log in the place of ours
        server.clear()
        opens("stranger", "stranger").register(*package(7), actor="ana")


def put_right(server: WandbServer, kind: str, opens: Opens) -> SharedRegistry:
    server.faults.clear()
    if kind == "gap":
        opens("ci").mirror.sync(whole=True)
    return opens("laptop", *(["stranger"] if kind == "unlisted" else []))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("down", "can't be reached"),
        ("unlisted", "is not trusted here.*list it under registry.signing.trusted_keys"),
        ("gap", "Entry 2 of the audit log was changed or deleted at W&B"),
        ("fork", "belongs to another registry"),
    ],
)
def test_revocation_holds_here_whatever_wandb_says(
    opens: Opens, package: Build, server: WandbServer, clock: Clock, kind: str, why: str
) -> None:
    laptop = opens("laptop")
    laptop.register(*package(1), actor="ana")
    laptop.allow_candidates = True
    packages.verified_path(laptop, "finance@1")
    let_down(server, kind, opens, package)
    before, decided = laptop.log.head(), clock().isoformat()
    found = lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")
    assert (found.state, laptop.log.head()) == ("candidate", before)
    assert laptop.not_sent and re.search(why, laptop.not_sent)
    [hold] = laptop.held()
    assert hold.text.startswith("finance@1 was revoked on this machine by ben on ")
    [reason] = record(laptop, "finance@1").verdict.reasons
    assert reason == f"{hold.text}: it does not answer here any more"
    for refused in (
        lambda: packages.verified_path(laptop, "finance@1"),
        lambda: packages.export(laptop, "finance@1", laptop.path.parent / "out", for_review=True),
    ):
        with pytest.raises(Refused, match="was revoked on this machine by ben"):
            refused()
    assert status(laptop, ["finance"])[0].next_version is None
    assert (verify(laptop).problems, hold.text in verify(laptop).warnings) == ((), True)
    if kind == "fork":
        return
    clock.move(hours=3)
    laptop = put_right(server, kind, opens)
    assert settle(laptop) == []
    assert revoked(laptop) == [("finance@1", "ben", "it leaks", decided)]
    assert (laptop.held(), files(laptop), settle(laptop)) == ([], [], [])
    assert verify(laptop).ok
    ci = opens("ci", "stranger")
    ci.pull()
    assert ci.get("finance@1").state == "revoked"


def test_revocation_that_wandb_takes_leaves_no_hold(opens: Opens, package: Build) -> None:
    laptop = opens("laptop")
    laptop.register(*package(1), actor="ana")
    assert lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks").state == "revoked"
    assert (laptop.not_sent, files(laptop)) == (None, [])
    assert revoked(laptop) == [("finance@1", "ben", "it leaks", None)]
    with pytest.raises(Refused, match="is 'revoked': it can't become 'revoked'"):
        lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")


def held_by_one_of_two(
    opens: Opens, package: Build, server: WandbServer
) -> tuple[SharedRegistry, SharedRegistry]:
    """Two machines share finance@1; one has revoked it while W&B was down, and the other does not know."""
    laptop = opens("laptop")
    laptop.register(*package(1), actor="ana")
    server.fail(".", times=10_000)
    lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")
    server.faults.clear()
    ci = opens("ci")
    ci.pull()
    return laptop, ci


def test_hold_goes_where_another_machine_revoked(opens: Opens, package: Build, server: WandbServer) -> None:
    laptop, ci = held_by_one_of_two(opens, package, server)
    lifecycle.revoke(ci, "finance@1", actor="ana", reason="it insults")
    assert settle(laptop) == []
    assert revoked(laptop) == [("finance@1", "ana", "it insults", None)]
    assert files(laptop) == []


def test_hold_stays_where_another_machine_archived(opens: Opens, package: Build, server: WandbServer) -> None:
    """What was put away counts as good: the hold went, and nobody ever heard of the revocation."""
    laptop, ci = held_by_one_of_two(opens, package, server)
    lifecycle.reject(ci, "finance@1", actor="ben", reason="worse")
    lifecycle.archive(ci, "finance@1", actor="ben", reason="old")
    assert settle(laptop) == []
    assert [who for _, who, *_ in revoked(laptop)] == ["ben"] and laptop.get("finance@1").state == "revoked"
    assert files(laptop) == []


def test_hold_is_there_before_wandb_is_asked(opens: Opens, package: Build, server: WandbServer) -> None:
    """A network that swallows each request must not hold it up for minutes."""
    laptop = opens("laptop")
    laptop.register(*package(1), actor="ana")
    seen: list[int] = []
    server.meanwhile(".", lambda: seen.append(len(files(laptop))))
    lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")
    assert seen == [2]


def test_next_change_sends_what_is_held(opens: Opens, package: Build, server: WandbServer) -> None:
    laptop = opens("laptop")
    laptop.register(*package(1), actor="ana")
    server.fail(".", times=10_000)
    lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")
    server.faults.clear()
    laptop.register(*package(2), actor="ana")
    assert [entry.action for entry in laptop.log.entries()][-2:] == ["revoked", "registered"]
    assert [one.state for one in laptop.summaries()] == ["revoked", "candidate"]


# Without a network the states of a log are quick to make: an embedded registry, opened as a shared one.


@pytest.fixture
def served(
    registry: Registry, story: Story, package: Build, owners: Owners, clock: Clock, connect: Connect
) -> SharedRegistry:
    """finance@2 in production after finance@1, and finance@3, a candidate; W&B is not asked for anything."""
    for seed in (1, 2, 3):
        registry.register(*package(seed), actor="ana")
    for version in ("finance@1", "finance@2"):
        story.to(version, "production")
    memory = HeadMemory(registry.path.parent / ".serving" / "head.json", "registry")
    return SharedRegistry(registry.path, connect(), owners=owners, memory=memory, clock=clock)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> None:
    """W&B is not asked for anything."""
    monkeypatch.setenv("WANDB_MODE", "offline")


def stop(registry: Registry, actor: str = "ben") -> None:
    lifecycle.revoke(registry, "finance@2", actor=actor, reason="it leaks")


@pytest.mark.usefixtures("offline")
def test_hold_is_refused_to_whoever_may_not_revoke(served: SharedRegistry) -> None:
    with pytest.raises(Refused, match="mallory may not make finance@2 'revoked'"):
        stop(served, "mallory")
    with pytest.raises(LoraOpsError, match="Say why"):
        lifecycle.revoke(served, "finance@2", actor="ben", reason=" ")
    assert (served.held(), files(served)) == ([], [])


@pytest.mark.usefixtures("offline")
def test_held_production_gives_way_to_nothing(served: SharedRegistry, story: Story) -> None:
    served.allow_candidates = True
    stop(served)
    assert served.get("finance").id == "finance@2"
    assert not record(served, "finance@2").verdict.may_serve
    assert not record(served, "finance@3").verdict.may_serve  # reviewed by nobody


@pytest.mark.usefixtures("offline")
def test_held_version_is_no_target(served: SharedRegistry, story: Story) -> None:
    lifecycle.revoke(served, "finance@1", actor="ben", reason="it leaks")
    with pytest.raises(Refused, match="finance@1 was revoked on this machine by ben"):
        rollback.plan(served, "finance@2")
    lifecycle.revoke(served, "finance@3", actor="ben", reason="it leaks")
    embedded = Registry(served.path, owners=served.owners, clock=served.clock)
    with pytest.raises(Refused, match="finance@3 was revoked on this machine by ben"):
        lifecycle.promote(
            embedded,
            "finance@3",
            "validated",
            actor="ci",
            reason="next",
            evidence=story.evidence("policy", about="finance@3"),
        )


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("place", ["inside", "outside"])
def test_hold_that_somebody_removed_still_stops(served: SharedRegistry, place: str) -> None:
    stop(served)
    folder = served.holds.inside if place == "inside" else served.holds.outside
    assert folder
    [path] = folder.glob("*")
    path.unlink()
    assert [hold.version for hold in served.held()] == ["finance@2"]
    said = [one for one in verify(served).problems if "was removed from the registry" in one]
    assert bool(said) is (place == "inside")
    settle(served)
    assert path.is_file()
    assert verify(served).ok


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "content", ["", "{}", '{"hold": {}, "signature": null}', "other actor", "other version"]
)
def test_hold_that_somebody_changed_still_stops(served: SharedRegistry, content: str) -> None:
    stop(served)
    for path in files(served):
        text = path.read_text()
        changed = {"other actor": ('"ben"', '"dana"'), "other version": ("finance@2", "finance@3")}.get(content)
        path.write_text(text.replace(*changed) if changed else content)
    again = SharedRegistry(served.path, served.mirror.project, owners=served.owners, memory=served.memory)
    assert [(hold.version, hold.is_signed) for hold in again.held()] == [("finance@2", False)]
    [waiting] = settle(again)
    assert "no key that is trusted here signed its hold" in waiting
    assert not record(again, "finance@2").verdict.may_serve
    stop(again)
    [hold] = again.held()
    assert (hold.is_signed, hold.problem) == (True, None)


@pytest.mark.usefixtures("offline")
def test_damaged_log_stops_no_hold(served: SharedRegistry) -> None:
    (served.path / "audit.head").write_text("{}")
    stop(served)
    assert "can't be trusted" in str(served.not_sent) or "is not asked" in str(served.not_sent)
    assert [hold.version for hold in served.held()] == ["finance@2"]


@pytest.mark.usefixtures("offline")
def test_row_that_says_closed_takes_no_hold_away(served: SharedRegistry) -> None:
    """Whoever can write the row could close it, let the hold go, and open it again."""
    stop(served)
    served.db.rows("UPDATE versions SET state = 'revoked' WHERE number = 2")
    settle(served)
    served.db.rows("UPDATE versions SET state = 'production' WHERE number = 2")
    assert [hold.version for hold in served.held()] == ["finance@2"]


@pytest.mark.usefixtures("offline")
def test_hold_is_about_one_content(served: SharedRegistry) -> None:
    """After W&B was restored, a number may be given to another version."""
    stop(served)
    for path in files(served):
        path.rename(path.with_name(f"finance@2-{'f' * 64}.json"))
    assert served.held() == []
    assert len(settle(served)) == 1


@pytest.mark.usefixtures("offline")
def test_evidence_of_a_hold_is_no_garbage(served: SharedRegistry, tmp_path: Path) -> None:
    story = tmp_path / "incident.json"
    story.write_text("It repeated a card number, and we looked at it again.")
    given = make(served, "finance@2", "incident", story)
    lifecycle.revoke(served, "finance@2", actor="ben", reason="it leaks", evidence=[given])
    [hold] = served.held()
    assert hold.statement and len(hold.statement.evidence) == 1
    collect_garbage(served, grace=timedelta(0))
    assert served.files.holds(hold.statement.evidence[0].sha256)
    embedded = Registry(served.path, owners=served.owners, memory=served.memory, clock=served.clock)
    assert settle(embedded) == []
    [entry] = [one for one in embedded.log.entries() if one.action == "revoked"]
    assert entry.evidence == hold.statement.evidence


@pytest.mark.usefixtures("offline")
def test_backup_takes_holds_along(served: SharedRegistry, tmp_path: Path) -> None:
    backup(served, str(tmp_path / "backups"))
    stop(served)
    backup(served, str(tmp_path / "backups"))  # no entry of the log came with it
    restore(str(tmp_path / "backups"), tmp_path / "elsewhere")
    restored = Registry(tmp_path / "elsewhere")
    assert [(hold.version, hold.is_signed) for hold in restored.held()] == [("finance@2", True)]
    assert verify(restored).ok


@pytest.mark.usefixtures("offline")
def test_machine_that_cannot_sign_holds_all_the_same(served: SharedRegistry) -> None:
    served.signer.own.load()
    served.signer.own.path.rename(served.signer.own.path.with_suffix(".away"))
    stop(served)
    assert [(hold.version, hold.is_signed) for hold in served.held()] == [("finance@2", False)]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("calls", range(1, 160, 12))
def test_killed_revocation_is_held_or_was_never_said(served: SharedRegistry, calls: int) -> None:
    served.close()
    ended = processes.run(lambda: stop(_again(served)), kill_at=calls)
    assert ended in (processes.KILLED, processes.DONE)
    registry = _again(served)
    assert not [one for one in verify(registry).problems if "hold" in one]
    stop(registry)
    assert [(hold.version, hold.problem) for hold in registry.held()] == [("finance@2", None)]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("calls", range(1, 400, 33))
def test_killed_settling_is_ended_by_the_next_run(served: SharedRegistry, calls: int) -> None:
    """Killed between the hold and the log, or between the log and the end of the hold."""
    stop(served)
    served.close()
    ended = processes.run(lambda: settle(_again(served, Registry)), kill_at=calls)
    assert ended in (processes.KILLED, processes.DONE)
    registry = _again(served, Registry)
    assert registry.held() or registry.get("finance@2").state == "revoked"
    assert settle(registry) == []
    assert [one[0] for one in revoked(registry)] == ["finance@2"]
    assert (files(registry), verify(registry).ok) == ([], True)


def _again(served: SharedRegistry, kind: type[Registry] = SharedRegistry) -> Registry:
    given = {"owners": served.owners, "memory": served.memory, "clock": served.clock}
    if kind is SharedRegistry:
        return SharedRegistry(served.path, served.mirror.project, **given)  # type: ignore[arg-type]
    return Registry(served.path, **given)  # type: ignore[arg-type]


def test_rollback_stops_at_once_and_ends_when_wandb_answers(
    served: SharedRegistry, server: WandbServer, tmp_path: Path
) -> None:
    def roll_back(folder: Path) -> str:
        planned = rollback.plan(served, "finance@2")
        why = {"actor": "ci", "reason": "it leaks"}
        path = incidents.write_record(served, planned, folder, captured={}, **why)
        return rollback.roll_back(served, "finance@2", path, **why).id

    server.fail(".", times=10_000)
    assert roll_back(tmp_path / "first") == "finance@1"
    assert served.not_sent and [hold.version for hold in served.held()] == ["finance@2"]
    told = incidents.summary(served, "finance@2", tmp_path / "first", done=True)
    assert (told["done"], told["returns"], told["held"]["actor"]) == (False, "finance@1", "ci")
    server.faults.clear()
    assert roll_back(tmp_path / "second") == "finance@1"
    # On no machine a moment without production.
    assert [entry.action for entry in served.log.entries("finance")][-2:] == ["production", "revoked"]
    assert served.named("finance", "production") == 1
    assert incidents.summary(served, "finance@2", tmp_path / "second", done=True)["done"] is True
    assert verify(served).ok


def test_rollback_ends_though_another_machine_registers(
    opens: Opens, package: Build, server: WandbServer, tmp_path: Path
) -> None:
    """Any entry of another machine at that moment left the tenant without production until the next try."""
    ci = opens("ci")
    for seed in (1, 2):
        ci.register(*package(seed), actor="ana")
        Story(ci, tmp_path / "reports").to(f"finance@{seed}", "production")
    why = {"actor": "ci", "reason": "it leaks"}
    path = incidents.write_record(ci, rollback.plan(ci, "finance@2"), tmp_path / "told", captured={}, **why)
    other = package(9, tenant="healthcare")

    def register() -> None:
        with closing(opens("laptop")) as registry:
            registry.register(*other, actor="ana")

    server.meanwhile("CreateArtifact$", register)
    assert rollback.roll_back(ci, "finance@2", path, **why).state == "production"
    assert (ci.not_sent, ci.held(), ci.get("finance@2").state) == (None, [], "revoked")
    assert [entry.action for entry in ci.log.entries()][-3:] == ["registered", "production", "revoked"]


@pytest.mark.usefixtures("offline")
def test_rollback_by_whoever_may_not_promote_stops_nothing(served: SharedRegistry, tmp_path: Path) -> None:
    planned = rollback.plan(served, "finance@2")
    why = {"actor": "eve", "reason": "it leaks"}
    path = incidents.write_record(served, planned, tmp_path / "incident", captured={}, **why)
    with pytest.raises(Refused, match="eve may not make finance@1 'production'"):
        rollback.roll_back(served, "finance@2", path, **why)
    assert served.held() == []


@pytest.mark.usefixtures("offline")
def test_second_half_of_a_rollback_waits_alone(served: SharedRegistry, story: Story, tmp_path: Path) -> None:
    """A killed rollback of an earlier release had put the earlier version back, and revoked nothing."""
    given = story.evidence("incident", about="finance@2")
    lifecycle.promote(story.registry, "finance@1", "production", actor="ci", reason="it leaks", evidence=given)
    why = {"actor": "ci", "reason": "it leaks"}
    planned = rollback.plan(served, "finance@2")
    path = incidents.write_record(served, planned, tmp_path / "incident", captured={}, **why)
    rollback.roll_back(served, "finance@2", path, **why)
    told = incidents.summary(served, "finance@2", tmp_path / "incident", done=True)
    assert (told["done"], told["returned"], told["held"]["actor"]) == (False, True, "ci")


@pytest.mark.usefixtures("offline")
def test_two_processes_that_revoke_at_once_agree(served: SharedRegistry, tmp_path: Path) -> None:
    stop(served)
    inside, outside = files(served)
    first = inside.read_bytes()
    inside.unlink(), outside.unlink()
    stop(_again(served), "dana")
    outside.write_bytes(first)
    [hold] = _again(served).held()
    assert (hold.is_signed, hold.problem) == (True, None)


def test_rollback_that_another_machine_made_is_ended(
    served: SharedRegistry, connect: Connect, clock: Clock, tmp_path: Path
) -> None:
    why = {"actor": "ci", "reason": "it leaks"}
    planned = rollback.plan(served, "finance@2")
    path = incidents.write_record(served, planned, tmp_path / "incident", captured={}, **why)
    served.pull()
    signing = SigningSettings(trusted_keys=tuple(fingerprint(one) for one in (served.path, tmp_path / "there")))
    there = SharedRegistry(tmp_path / "there", connect(), owners=served.owners, signing=signing, clock=clock)
    there.pull()
    rollback.roll_back(there, "finance@2", path, **why)
    served.signer.settings = signing
    assert rollback.roll_back(served, "finance@2", path, **why).id == "finance@1"
    assert (served.not_sent, served.held(), files(served)) == (None, [], [])
    assert served.get("finance@2").state == "revoked"


@pytest.mark.parametrize("kind", ["unlisted", "gap"])
def test_rollback_stops_whatever_wandb_says(
    served: SharedRegistry, server: WandbServer, opens: Opens, package: Build, tmp_path: Path, kind: str
) -> None:
    """What W&B refuses is no outage, so the second half is asked for, and waits as well."""
    if kind == "unlisted":
        opens("laptop").register(*package(7), actor="ana")
    else:
        served.pull()
        for sent in server.collection("audit").versions[3:5]:
            sent.metadata = "{}"
        served.set_mirrored(served.mirror.project.target, None)
    why = {"actor": "ci", "reason": "it leaks"}
    planned = rollback.plan(served, "finance@2")
    path = incidents.write_record(served, planned, tmp_path / "incident", captured={}, **why)
    assert rollback.roll_back(served, "finance@2", path, **why).id == "finance@1"
    if kind == "unlisted":
        assert served.not_sent and [hold.version for hold in served.held()] == ["finance@2"]
    else:  # this machine has what was lost there, and sends it again
        assert served.get("finance@2").state == "revoked"


def sql(registry: Registry, *statements: str) -> None:
    """Write past lora-ops, as whoever may write in the registry's folder can."""
    with closing(sqlite3.connect(registry.db.path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)


DAMAGES = {
    "another state": "UPDATE versions SET state = 'revoked'",
    "no row": "DELETE FROM versions",
    "no manifests": "DROP TABLE manifests",
    "an alias": "DELETE FROM aliases WHERE alias = 'production'",
}


@pytest.fixture
def settled(registry: Registry, tmp_path: Path) -> Registry:
    """A registry as `open_registry` opens it."""
    registry.settle = settle
    registry.remember_in(HeadMemory(tmp_path / "serving" / "head.json", "registry"))
    return registry


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_revocation_holds_while_the_log_is_damaged(
    settled: Registry, package: Build, story: Story, damage: str
) -> None:
    """Whoever could write one byte of the registry stopped every revocation, and the gateway went on."""
    settled.register(*package(), actor="ana")
    story.to("finance@1", "production")
    router = Router(settled, settled.get("finance@1").manifest.base_model, allow_candidates=False)
    assert router.route("finance").name == "finance@1"
    sql(settled, damage)
    assert router.damage()
    assert router.route("finance").name == "finance@1"
    with pytest.raises(Damaged, match="can't be trusted"):
        lifecycle.revoke(settled, "finance@1", actor="mallory", reason="leaks")
    assert router.route("finance").name == "finance@1"
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    assert settled.not_sent and "can't be trusted" in settled.not_sent
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        router.route("finance")


def test_held_revocation_enters_the_mended_log_once(
    settled: Registry, package: Build, story: Story, clock: Clock
) -> None:
    for seed in (1, 2):
        settled.register(*package(seed), actor="ana")
    story.to("finance@1", "production")
    sql(settled, "UPDATE versions SET state = 'canary' WHERE number = 1")
    decided = utc(clock())
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    [hold] = settled.held()
    assert hold.text.endswith("and not yet in the audit log")
    sql(settled, "UPDATE versions SET state = 'production' WHERE number = 1")
    clock.move(hours=1)
    lifecycle.reject(settled, "finance@2", actor="ben", reason="worse")
    assert revoked(settled) == [("finance@1", "ben", "leaks", decided)]
    assert not files(settled)
    assert verify(settled).ok


def test_revocation_holds_while_another_process_locks(settled: Registry, package: Build, story: Story) -> None:
    settled.register(*package(), actor="ana")
    story.to("finance@1", "production")
    settled.db.rows("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(settled.db.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
        assert settled.not_sent and "busy" in settled.not_sent
        assert [hold.version for hold in settled.held()] == ["finance@1"]
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks again")
    assert settled.not_sent is None
    assert [one[:3] for one in revoked(settled)] == [("finance@1", "ben", "leaks")]
    with pytest.raises(Refused, match="can't become 'revoked'"):
        lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")


def test_rollback_stops_the_bad_version_of_a_damaged_log(
    settled: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    for seed in (1, 2):
        settled.register(*package(seed), actor="ana")
        story.to(f"finance@{seed}", "production")
    planned = rollback.plan(settled, "finance@2")
    why = {"actor": "ben", "reason": "it leaks"}
    record = incidents.write_record(settled, planned, tmp_path / "incident", **why, captured={})
    sql(settled, "UPDATE versions SET state = 'revoked' WHERE number = 2")
    assert rollback.roll_back(settled, "finance@2", record, **why).id == "finance@1"
    assert settled.not_sent and incidents.summary(settled, "finance@2", tmp_path, done=True)["held"]
    sql(settled, "UPDATE versions SET state = 'production' WHERE number = 2")
    assert rollback.roll_back(settled, "finance@2", record, **why).state == "production"
    assert [one[:2] for one in revoked(settled)] == [("finance@2", "ben")]
    assert settled.named("finance", "production") == 1 and not files(settled)
    assert verify(settled).ok


def test_hold_is_seen_by_a_gateway_of_another_account(settled: Registry, package: Build) -> None:
    """Whoever had a umask of 077 made a folder that the gateway couldn't read: it served the version on."""
    settled.register(*package(), actor="ana")
    settled.path.chmod(0o755)
    sql(settled, "UPDATE versions SET state = 'canary'")
    before = os.umask(0o077)
    try:
        lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    finally:
        os.umask(before)
    assert settled.holds.inside.stat().st_mode & 0o777 == 0o755


def test_hold_opens_no_folder_that_a_link_leads_to(settled: Registry, tmp_path: Path, clock: Clock) -> None:
    """Whoever can write in the registry could have opened another folder of whoever is on call."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    settled.holds.inside.symlink_to(private)
    assert settled.owners
    stop_by_hold(settled.holds, settled.owners, "finance@1", actor="ben", reason="leaks", at=clock())
    assert private.stat().st_mode & 0o777 == 0o700


def test_hold_of_any_content_stops_no_later_version(settled: Registry, package: Build, clock: Clock) -> None:
    """After the restore of an older backup its number was given to another version, which it revoked."""
    assert settled.owners
    settled.register(*package(1), actor="ana")
    for reference in ("finance@1", "finance@2"):
        why = {"actor": "ben", "reason": "leaks"}
        for path in settled.path.parent.rglob("*"):  # the clock of this test is not that of its files
            os.utime(path, (clock().timestamp(), clock().timestamp()))
        stop_by_hold(settled.holds, settled.owners, reference, **why, at=clock())
    clock.move(hours=1)
    settled.register(*package(2), actor="ana")
    lifecycle.reject(settled, "finance@2", actor="ben", reason="worse")
    assert [one[0] for one in revoked(settled)] == ["finance@1"]


def test_hold_stops_where_its_folder_cannot_be_listed(settled: Registry, package: Build, story: Story) -> None:
    """A gateway whose clients had taken its last file descriptor served the stopped version."""
    settled.register(*package(), actor="ana")
    story.to("finance@1", "production")
    router = Router(settled, settled.get("finance@1").manifest.base_model, allow_candidates=False)
    assert router.route("finance").name == "finance@1"
    sql(settled, "UPDATE versions SET state = 'canary'")
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        router.route("finance")
    taken, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.scandir(settled.holds.inside)
        with pytest.raises(OutOfService, match="finance@1 was revoked"):
            router.route("finance")
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("lost", ["rows", "versions", "audit"])
def test_revocation_holds_where_no_record_is_left(
    settled: Registry, package: Build, story: Story, lost: str
) -> None:
    """Whoever removed a version from the rows and from the log stopped its revocation; the gateway went on."""
    router = served_by(settled, package, story)
    remove = ("DELETE FROM audit", "DELETE FROM versions") if lost == "rows" else (f"DROP TABLE {lost}",)
    sql(settled, *unguarded(settled), *remove)
    assert router.route("finance").name == "finance@1"
    with pytest.raises(LoraOpsError):
        lifecycle.revoke(settled, "finance@1", actor="mallory", reason="leaks")
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    assert [hold.version for hold in settled.holds.all()] == ["finance@1"]
    with pytest.raises(LoraOpsError, match="finance@1 was revoked"):
        router.route("finance")


def test_hold_in_a_damaged_log_is_for_any_content(settled: Registry, package: Build, story: Story) -> None:
    """Whoever changed the digest, and wrote it back after the hold, had the version on air again."""
    router, other = served_by(settled, package, story), "f" * 64
    digest = settled.get("finance@1").summary.content_digest
    again = unguarded(settled, "sql")
    for one in (other, digest):
        sql(
            settled,
            *unguarded(settled),
            f"UPDATE versions SET content_digest = '{one}'",
            f"UPDATE audit SET body = json_set(body, '$.content_digest', '{one}') WHERE action = 'registered'",
        )
        if one == other:
            lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    sql(settled, *again)
    assert router.damage() is None
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        router.route("finance")
    assert settle(settled) == []
    assert [one[:2] for one in revoked(settled)] == [("finance@1", "ben")]


@pytest.mark.usefixtures("offline")
def test_row_that_says_closed_stops_no_revocation(served: SharedRegistry) -> None:
    """One byte of a row kept the version on air in every gateway that ran."""
    router = Router(served, served.get("finance@2").manifest.base_model, allow_candidates=False)
    assert router.route("finance").name == "finance@2"
    sql(served, "UPDATE versions SET state = 'revoked'")
    assert router.route("finance").name == "finance@2"
    stop(served)
    with pytest.raises(OutOfService, match="finance@2 was revoked"):
        router.route("finance")


def served_by(registry: Registry, package: Build, story: Story) -> Router:
    """A gateway's router that has served finance@1."""
    registry.register(*package(), actor="ana")
    story.to("finance@1", "production")
    router = Router(registry, registry.get("finance@1").manifest.base_model, allow_candidates=False)
    assert router.route("finance").name == "finance@1"
    return router


def unguarded(registry: Registry, what: str = "'DROP TRIGGER ' || name") -> list[str]:
    """What removes the triggers that keep the log as it is, or makes them again."""
    return [text for (text,) in registry.db.rows(f"SELECT {what} FROM sqlite_master WHERE type = 'trigger'")]


def test_verify_names_the_files_of_a_hold_in_doubt(settled: Registry, package: Build, story: Story) -> None:
    """A file that anybody could write kept a version out, and only the revocation of that version was named."""
    router = served_by(settled, package, story)
    digest = settled.get("finance@1").summary.content_digest
    names = [f"finance@1-{digest}.json", f"finance@1-{'f' * 64}.json", f"finance@9-{digest}.json"]
    settled.holds.inside.mkdir()
    for name in names:
        said = {"version": name.partition("-")[0], "content_digest": name[-69:-5], "actor": "ben"}
        hold = {"kind": "hold", **said, "reason": "leaks", "at": "2026-03-02T10:00:00+00:00"}
        (settled.holds.inside / name).write_text(json.dumps({"hold": hold, "signature": None}))
    with pytest.raises(OutOfService):
        router.route("finance")
    waiting = settle(settled)
    assert len(waiting) == 3
    assert sorted(path.name for path in files(settled)) == sorted([*names, *names])  # each is in both places
    for path in files(settled):
        assert any(str(path) in text for text in verify(settled).warnings)
        assert any(str(path) in text for text in waiting)
    for path in files(settled):
        path.unlink()
    with pytest.raises(OutOfService):  # whoever removed them may not be allowed to: it is started again first
        router.route("finance")
    base = settled.get("finance@1").manifest.base_model
    assert Router(settled, base, allow_candidates=False).route("finance").name == "finance@1"
    assert settle(settled) == []
    found = verify(settled)
    assert found.ok and not [text for text in found.warnings if "hold" in text]


def test_held_version_is_not_put_away(settled: Registry, package: Build, story: Story) -> None:
    """Once archived it lost its hold: the log never had the revocation, and its weights came back."""
    router = served_by(settled, package, story)
    settled.register(*package(2), actor="ana")
    story.to("finance@2", "production")
    key = settled.signer.own.path
    key.rename(key.with_suffix(".away"))
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    key.with_suffix(".away").rename(key)
    with pytest.raises(Refused, match="finance@1 was revoked on this machine by ben .*: revoke it instead"):
        lifecycle.archive(settled, "finance@1", actor="chen", reason="old")
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    assert settled.get("finance@1").state == "revoked" and router.route("finance").name == "finance@2"
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was revoked"):
        settled.register(*package(1, tenant="ledger"), actor="ana")


def test_hold_of_a_lost_version_names_its_files(settled: Registry, package: Build, clock: Clock) -> None:
    settled.register(*package(), actor="ana")
    assert settled.owners
    stop_by_hold(settled.holds, settled.owners, "finance@9", actor="ben", reason="leaks", at=clock())
    [waiting] = settle(settled)
    assert all(str(path) in waiting for path in files(settled))


def test_revocation_waits_for_a_lock_once(settled: Registry, package: Build, clock: Clock) -> None:
    """Each hold that was queued waited for the lock before the next one could be written: 30 seconds each."""
    for seed in range(1, 9):
        settled.register(*package(seed), actor="ana")
    assert settled.owners
    for number in range(1, 8):
        why = {"actor": "ben", "reason": "leaks"}
        stop_by_hold(settled.holds, settled.owners, f"finance@{number}", **why, at=clock())
    settled.db.rows("PRAGMA busy_timeout = 500")
    with closing(sqlite3.connect(settled.db.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        lifecycle.revoke(settled, "finance@8", actor="ben", reason="leaks")
        revocation = time.monotonic() - began
        waiting = settle(settled)
        both = time.monotonic() - began
    assert (len(waiting), len(settled.held())) == (8, 8)
    assert revocation < 2 and both < 3  # 4 and 8 seconds, when each hold waited
    assert settle(settled) == []
    assert len(revoked(settled)) == 8


def foreign_signature(registry: Registry, said: dict[str, object]) -> dict[str, str]:
    """Sign as whoever may write in the registry's folder: by a key of one's own, put beside the others."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = public_pem(key)
    (registry.signer.folder / f"{key_fingerprint(public)}.pub").write_bytes(public)
    value = key.sign(canonical(said).encode(), ec.ECDSA(hashes.SHA256()))
    return {"key": key_fingerprint(public), "value": base64.b64encode(value).decode()}


@pytest.mark.parametrize("is_signed", [True, False])
def test_copy_of_a_hold_frees_no_version(
    settled: Registry, package: Build, story: Story, is_signed: bool
) -> None:
    """Whoever wrote an early time into the copy in the registry had the stopped version on air again."""
    router, right = served_by(settled, package, story), "UPDATE versions SET state = 'production'"
    sql(settled, "UPDATE versions SET state = 'canary'")
    if not is_signed:
        settled.signer.own.path.rename(settled.path.parent / "elsewhere.key")
    lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks")
    sql(settled, right)
    [copy] = settled.holds.inside.glob("*")
    said = {**json.loads(copy.read_text())["hold"], "at": "2000-01-01T00:00:00+00:00"}
    signature = foreign_signature(settled, said) if is_signed else None
    other = settled.path / "other.json"
    other.write_text(json.dumps({"hold": said, "signature": signature}))
    other.replace(copy)
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        router.route("finance")


def test_hold_by_a_foreign_key_becomes_no_revocation(settled: Registry, package: Build, story: Story) -> None:
    """Whoever could write in the registry's folder let anybody of a team revoke a version in the log."""
    served_by(settled, package, story)
    said = {
        "kind": "hold",
        "version": "finance@1",
        "content_digest": settled.get("finance@1").summary.content_digest,
    }
    said |= {"actor": "ben", "reason": "leaks", "at": "2026-03-02T10:00:00+00:00", "evidence": []}
    content = {"hold": said, "signature": foreign_signature(settled, said)}
    settled.holds.inside.mkdir()
    (settled.holds.inside / f"finance@1-{said['content_digest']}.json").write_text(json.dumps(content))
    [waiting] = settle(settled)
    assert "no key that is trusted here signed its hold" in waiting
    assert not revoked(settled)


@pytest.mark.parametrize("kind", ["junk", "folder"])
def test_revocation_counts_though_the_outer_head_is_damaged(
    settled: Registry, package: Build, story: Story, kind: str
) -> None:
    """The log took the revocation and the command said so, and a gateway went on with the version."""
    router = served_by(settled, package, story)
    assert settled.memory
    path = settled.memory.path
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("junk")
    assert router.route("finance").name == "finance@1"
    assert lifecycle.revoke(settled, "finance@1", actor="ben", reason="leaks").state == "revoked"
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        router.route("finance")
    sql(settled, *unguarded(settled), "DELETE FROM audit WHERE action = 'revoked'")
    with pytest.raises(OutOfService, match="finance@1 was revoked"):
        router.route("finance")
    assert router.damage()


def stopped(registry: Registry, reference: str = "finance@2") -> routes.Routed:
    return routes.stop(registry, reference, actor="eve", reason="it insults")


@pytest.mark.usefixtures("offline")
def test_stop_holds_here_while_wandb_is_away(served: SharedRegistry) -> None:
    """The gateway refuses it at its next request; nothing is closed, and no other version is touched."""
    router = Router(served, served.get("finance@2").manifest.base_model, allow_candidates=False)
    assert router.route("finance").name == "finance@2"
    head = served.log.head()
    assert stopped(served).route.stopped == ()
    assert served.not_sent and "WANDB_MODE is 'offline'" in served.not_sent and served.log.head() == head
    with pytest.raises(OutOfService, match="finance@2 was stopped: it answers nobody"):
        router.route("finance")
    assert not served.held()
    [why] = reasons_against(served, served.get("finance@2").summary, served.clock())
    assert why.startswith("finance@2 was stopped on this machine by eve on ")
    assert verify(served).ok and any("stopped on this machine by eve" in one for one in verify(served).warnings)
    stopped(served)
    assert len(served.stops.all()) == 1


@pytest.mark.usefixtures("offline")
def test_stop_is_refused_to_strangers_while_wandb_is_away(served: SharedRegistry) -> None:
    with pytest.raises(Refused, match="mallory may not change the route of 'finance'"):
        routes.stop(served, "finance@2", actor="mallory", reason="it insults")
    with pytest.raises(LoraOpsError, match="Say why"):
        routes.stop(served, "finance@2", actor="eve", reason=" ")
    assert served.stops.all() == ()


def test_stop_is_sent_once_wandb_is_back(
    opens: Opens, package: Build, server: WandbServer, clock: Clock
) -> None:
    """By whoever settles first: it is the entry of the one who decided it, and a resume after it stays."""
    laptop, ci = opens("laptop"), opens("ci")
    laptop.register(*package(1), actor="ana")
    server.fail(".", times=10_000)
    stopped(laptop, "finance@1")
    assert laptop.not_sent and len(settle(laptop)) == 1
    server.faults.clear()
    clock.move(hours=3)
    assert settle(laptop) == [] and laptop.stops.all() == ()
    [entry] = [one for one in laptop.log.entries() if one.action == "stopped"]
    assert (entry.actor, entry.body["reason"]) == ("eve", "it insults")
    ci.pull()
    assert ci.route("finance").stopped == (1,)
    routes.resume(ci, "finance@1", actor="ci", reason="it doesn't")
    laptop.pull()
    assert settle(laptop) == [] and laptop.route("finance").stopped == () and verify(laptop).ok


def test_stop_that_wandb_takes_is_queued_nowhere(opens: Opens, package: Build) -> None:
    laptop = opens("laptop")
    laptop.register(*package(1), actor="ana")
    assert stopped(laptop, "finance@1").route.stopped == (1,)
    assert laptop.stops.all() == () and laptop.not_sent is None


@pytest.mark.usefixtures("offline")
def test_stop_file_is_no_revocation(served: SharedRegistry) -> None:
    """Whoever moves it where revocations are makes none of it: its kind is signed, too."""
    stopped(served)
    shutil.copytree(served.path / "stops", served.path / "holds")
    [hold] = served.held()
    assert not hold.is_signed

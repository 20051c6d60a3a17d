"""Routes under faults: two writers, kill -9, locks, a wrong clock, an older backup, another machine."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.registry import lifecycle, routes
from lora_ops.registry.backup import backup
from lora_ops.registry.head_acceptance import accept_head
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.integrity import LogFollower
from lora_ops.registry.owners import Owners
from lora_ops.registry.restoring import restore
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from tests.wandb_server import WandbServer

from . import processes
from .conftest import Build, Clock, Story
from .test_shared import Machine, machine  # noqa: F401 - a fixture
from .test_store import give_up_root, public_folder  # noqa: F401 - a fixture

WHY = {"actor": "ci", "reason": "next step"}


@pytest.fixture
def registry(staged: Path, tmp_path: Path, owners: Owners, clock: Clock) -> Iterator[Registry]:
    """Return a registry with finance@1 in production, finance@2 in canary and finance@3 in shadow."""
    shutil.copytree(staged, tmp_path / "registry")
    with closing(Registry(tmp_path / "registry", owners=owners, clock=clock)) as opened:
        yield by_hand(opened)


def again(registry: Registry, clock: Clock | None = None) -> Registry:
    return by_hand(Registry(registry.path, owners=registry.owners, clock=clock or registry.clock))


def by_hand(registry: Registry) -> Registry:
    """Let people give versions any share, without a rollout."""
    registry.least = registry.least.model_copy(update={"rollout": "optional"})
    return registry


def test_of_controllers_that_expect_the_same_entry_one_wins(registry: Registry) -> None:
    def move(percent: float) -> None:
        routes.set_canary(again(registry), "finance@2", percent, expect_seq=0, **WHY)

    started = [processes.start(lambda one=one: move(one)) for one in (5, 25, 50)]
    ended = sorted(processes.wait(one) for one in started)
    assert ended == [processes.DONE, processes.REFUSED, processes.REFUSED]
    assert [one.action for one in registry.log.of_kind("route")] == ["canary_set"]
    assert verify(registry).ok


def test_writers_without_expectation_all_count(registry: Registry) -> None:
    def pin(name: str) -> None:
        for count in range(5):
            routes.pin(again(registry), "finance@2", users=[f"{name}{count}"], **WHY)

    started = [processes.start(lambda one=one: pin(one)) for one in "abcd"]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 4
    assert len(registry.route("finance").users) == 20
    assert verify(registry).ok


CHANGES: dict[str, Callable[[Registry], object]] = {
    "canary": lambda registry: routes.set_canary(registry, "finance@2", 25, **WHY),
    "stop": lambda registry: routes.stop(registry, "finance@2", **WHY),
    "revoke": lambda registry: lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("calls", range(5, 200, 24))
def test_route_change_killed_is_there_whole_or_not(registry: Registry, change: str, calls: int) -> None:
    """The row, the entry and, for a revocation, the state come together."""
    routes.set_canary(registry, "finance@2", 5, **WHY)
    before = registry.route("finance")
    registry.close()
    ended = processes.run(lambda: CHANGES[change](again(registry)), kill_at=calls)
    assert ended in (processes.KILLED, processes.DONE)
    with closing(again(registry)) as found:
        assert verify(found, files=False).ok
        route, state = found.route("finance"), found.get("finance@2").state
        assert (state == "revoked") == (change == "revoke" and route.canary is None)
        assert route == before or found.log.head().seq > before.canary.number  # type: ignore[union-attr]
        with pytest.raises(Refused) if state == "revoked" else closing(again(registry)):
            CHANGES[change](found)


def test_lock_is_named_with_the_way_to_stop_all_the_same(registry: Registry) -> None:
    registry.db.rows("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(registry.path / "registry.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LoraOpsError, match=r"busy.*`lora-ops registry revoke finance@1 --reason TEXT`"):
            routes.stop(registry, "finance@1", **WHY)
        with pytest.raises(LoraOpsError, match="busy"):
            routes.set_canary(registry, "finance@2", 5, **WHY)
    assert registry.route("finance").is_empty


def read_only(path: Path, owners: Owners, clock: Clock) -> None:
    give_up_root()
    with closing(Registry(path, owners=owners, clock=clock)) as registry:
        assert routes.current(registry, "finance").route.canary
        with pytest.raises(LoraOpsError, match=r"on a read-only disk.*`lora-ops registry revoke finance@1"):
            routes.stop(registry, "finance@1", **WHY)
        with pytest.raises(LoraOpsError, match="on a read-only disk or folder: nothing was changed"):
            routes.set_canary(registry, "finance@2", 25, **WHY)


def test_reader_reads_routes_and_changes_none(
    registry: Registry,
    public_folder: Path,  # noqa: F811
    owners: Owners,
    clock: Clock,
) -> None:
    routes.set_canary(registry, "finance@2", 5, **WHY)
    registry.close()
    path = public_folder / "registry"
    shutil.copytree(registry.path, path)
    for found in sorted([path, *path.rglob("*")]):
        found.chmod(0o555 if found.is_dir() else 0o444)
    assert processes.run(lambda: read_only(path, owners, clock)) == processes.DONE


def test_clock_set_back_stops_no_change_of_a_route(registry: Registry, clock: Clock) -> None:
    first = routes.set_canary(registry, "finance@2", 5, **WHY)
    clock.move(days=-30)
    routes.set_canary(registry, "finance@2", 25, expect_seq=first.seq, **WHY)
    routes.stop(registry, "finance@1", **WHY)
    entries = registry.log.of_kind("route")
    assert [bool(one.body.get("clock_behind_seconds")) for one in entries] == [False, True, False]
    assert LogFollower(registry).problem() is None
    assert verify(registry, files=False).ok


def test_restored_backup_brings_its_own_route_back(
    registry: Registry, tmp_path: Path, owners: Owners, clock: Clock
) -> None:
    """A gateway follows the older log once somebody accepted it, and the lost change of the route is gone."""
    memory = HeadMemory(tmp_path / "head.json", "registry")
    registry.remember_in(memory)
    routes.set_canary(registry, "finance@2", 5, **WHY)
    backup(registry, str(tmp_path / "backups"))
    routes.set_canary(registry, "finance@2", 50, **WHY)
    routes.stop(registry, "finance@1", **WHY)
    follower = LogFollower(registry)
    assert follower.problem() is None
    registry.close()
    shutil.rmtree(registry.path)
    restore(str(tmp_path / "backups"), registry.path)
    older = Registry(registry.path, owners=owners, clock=clock, memory=memory)
    with closing(older), pytest.raises(Damaged, match="older copy"):
        routes.set_canary(older, "finance@2", 25, **WHY)
    with closing(Registry(registry.path, owners=owners, clock=clock)) as accepted:
        accept_head(accepted, memory, actor="ben", reason="restored after a crash")
        follower = follower.over(accepted)
        assert follower.problem() is None
        route = follower.route("finance")
        assert route == accepted.route("finance")
        assert route.canary and (route.canary.percent, route.stopped) == (5, ())


def test_trigger_that_drops_a_row_is_found_before_the_commit(registry: Registry) -> None:
    follower = registry.follower
    assert follower.problem() is None
    refused = pytest.raises(Damaged, match=r"did not take the change.*the route of finance was removed")
    with refused, registry.change("ci") as change:
        change.reroute("stopped", "finance", {"stopped": [1]}, replaces=0)
        registry.db.rows("DELETE FROM routes")
    assert registry.log.of_kind("route") == []


@pytest.mark.parametrize("tenant", ["a", "finance-eu", "f" * 40, "x_-b"])
def test_route_of_a_tenant_with_an_odd_name(
    registry: Registry, story: Story, package: Build, tenant: str
) -> None:
    """A tenant whose name begins like another one's has a route of its own."""
    registry.register(*package(9, tenant=tenant), actor="ana")
    routes.stop(registry, f"{tenant}@1", **WHY)
    routes.set_canary(registry, "finance@2", 5, **WHY)
    assert registry.route(tenant).stopped == (1,)
    assert routes.current(registry, "finance").route.stopped == ()
    assert len(registry.log.about_routes("finance")) == len(registry.log.about_routes(tenant)) == 1


# At W&B.


@pytest.fixture
def ci(machine: Machine, package: Build, tmp_path: Path) -> SharedRegistry:  # noqa: F811
    """Return the registry on the machine `ci`, with finance@1 in canary."""
    opened = machine("ci")
    opened.register(*package(1), actor="ana")
    Story(opened, tmp_path / "reports").to("finance@1", "canary")
    return opened


def test_route_at_wandb_follows_on_the_other_machine(
    ci: SharedRegistry,
    machine: Machine,  # noqa: F811
    server: WandbServer,
) -> None:
    laptop = machine("laptop")
    laptop.pull()
    routes.set_canary(ci, "finance@1", 5, **WHY)
    routes.pin(ci, "finance@1", users=["ann"], segments=["beta"], **WHY)
    [sent] = server.collection("finance").versions
    assert json.loads(sent.metadata)["route"] == [
        "answers 5 % of the users",
        "answers 1 pinned user",
        "answers 1 pinned segment",
    ]
    laptop.pull()
    assert laptop.route("finance") == ci.route("finance")
    routes.stop(laptop, "finance@1", actor="ben", reason="says odd things")
    ci.pull()
    assert ci.route("finance").stopped == (1,)
    lifecycle.revoke(laptop, "finance@1", actor="ben", reason="leaks")
    ci.pull()
    assert ci.route("finance") == laptop.route("finance")
    assert ci.route("finance").canary is None
    assert ci.log.entries() == laptop.log.entries()
    assert verify(ci).ok and verify(laptop).ok


def test_route_lost_race_is_tried_again_or_refused(
    ci: SharedRegistry,
    machine: Machine,  # noqa: F811
    server: WandbServer,
) -> None:
    def meanwhile() -> None:
        # In the thread of W&B's server, where a registry is opened anew.
        laptop = by_hand(machine("laptop"))
        routes.pin(laptop, "finance@1", segments=["beta"], actor="ben", reason="they test it")

    server.meanwhile("CreateArtifact$", meanwhile)
    route = routes.set_canary(ci, "finance@1", 5, **WHY).route
    assert route.canary and route.segments == {"beta": 1}, "tried again after the other one"
    seen = routes.current(ci, "finance").seq
    server.meanwhile(
        "CreateArtifact$",
        lambda: routes.set_canary(by_hand(machine("laptop")), "finance@1", 25, actor="ben", reason="next"),
    )
    with pytest.raises(Refused, match=r"changed meanwhile: entry \d+ \(canary_set by ben\)"):
        routes.set_canary(ci, "finance@1", 50, expect_seq=seen, **WHY)
    assert ci.route("finance").canary.percent == 25  # type: ignore[union-attr]


def test_changed_row_here_stops_nothing_from_wandb(
    ci: SharedRegistry,
    machine: Machine,  # noqa: F811
) -> None:
    """Another machine's revocation is taken though somebody changed the row of the route here."""
    routes.set_canary(ci, "finance@1", 5, **WHY)
    laptop = machine("laptop")
    laptop.pull()
    with closing(sqlite3.connect(laptop.path / "registry.sqlite")) as db:
        db.execute("UPDATE routes SET route = '{}'")
        db.commit()
    lifecycle.revoke(ci, "finance@1", actor="ben", reason="leaks")
    laptop.pull()
    assert laptop.get("finance@1").state == "revoked"
    assert verify(laptop).ok

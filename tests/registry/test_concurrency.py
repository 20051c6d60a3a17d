"""CI and a laptop on one folder: separate processes never lose a version or count one twice."""

from pathlib import Path

from lora_ops.registry import lifecycle, packages
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from . import processes
from .conftest import AUTHOR, FIRST, Build, Clock, Story, ssh_key


def open_again(registry: Registry) -> Registry:
    again = Registry(registry.path, owners=registry.owners, clock=registry.clock)
    again.least = registry.least
    return again


def test_writers_that_start_together_get_one_number_each(tmp_path: Path, package: Build) -> None:
    packages = [[package(10 * writer + i) for i in range(5)] for writer in range(4)]
    path = tmp_path / "shared"

    def write(mine: list) -> None:
        registry = Registry(path, create=True)
        for one in mine:
            registry.register(*one)

    started = [processes.start(lambda mine=mine: write(mine)) for mine in packages]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 4
    registry = Registry(path)
    versions = registry.versions()
    assert [one.number for one in versions] == list(range(1, 21))
    assert {one.manifest.params["train"]["seed"] for one in versions} == {
        manifest.params["train"]["seed"] for mine in packages for _, manifest in mine
    }
    assert verify(registry).ok


def test_writers_of_the_same_content_make_one_version(tmp_path: Path, package: Build) -> None:
    folder, manifest = package()
    path = tmp_path / "shared"

    def write() -> None:
        Registry(path, create=True).register(folder, manifest)

    started = [processes.start(write) for _ in range(5)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 5
    registry = Registry(path)
    assert [one.id for one in registry.summaries()] == ["finance@1"]
    assert registry.log.head().seq == 1
    assert verify(registry).ok


def test_of_two_promotions_that_expect_the_same_one_wins(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    for seed in (2, 3):
        registry.register(*package(seed), actor=AUTHOR)
        reference = f"finance@{seed}"
        story.to(reference, "canary")
        story.file("canary", about=reference)
        story.approve(reference)
        if seed == 2:
            lifecycle.promote(registry, reference, "production", actor="ci", reason="next")
    story.file("incident", about="finance@2")

    def move(reference: str) -> None:
        lifecycle.promote(
            open_again(registry), reference, "production", actor="ci", reason="race", expect="finance@2"
        )

    started = [processes.start(lambda one=one: move(one)) for one in ("finance@1", "finance@3")]
    assert sorted(processes.wait(one) for one in started) == [processes.DONE, processes.REFUSED]
    assert registry.get("finance@2").state == "superseded"
    assert verify(registry).ok


def test_of_many_approvals_by_one_person_one_counts(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "canary")
    story.file("canary")
    key = ssh_key(FIRST)

    def approve() -> None:
        lifecycle.approve(open_again(registry), "finance@1", actor=FIRST, reason="ok", key=key)

    started = [processes.start(approve) for _ in range(4)]
    ended = sorted(processes.wait(one) for one in started)
    assert ended == [processes.DONE, *[processes.REFUSED] * 3]
    assert len(lifecycle.approvals(registry, registry.get("finance@1"))) == 1


def test_loaders_that_start_together_share_one_verified_folder(
    registry: Registry, package: Build, owners: Owners, clock: Clock
) -> None:
    registry.register(*package(1))
    started = [
        processes.start(lambda: packages.verified_path(open_again(registry), "finance")) for _ in range(5)
    ]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 5
    assert registry.copies.names() == ["finance@1"]


def test_writers_in_quick_turns_agree_where_the_log_ends(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1))
    (incident,) = story.evidence("incident")

    def link() -> None:
        mine = open_again(registry)
        for _ in range(60):
            lifecycle.link_incident(mine, "finance@1", evidence=[incident], actor="oncall", reason="again")

    started = [processes.start(link) for _ in range(4)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 4
    assert registry.log.head().seq == 242
    assert verify(registry).ok

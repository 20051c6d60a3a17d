"""Approvals: what was seen is signed by the approver's own key, and what changed since makes it void."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_text
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners, Person
from lora_ops.registry.ssh_signatures import fingerprint, signer_of
from lora_ops.registry.steps import record_step
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from . import processes
from .conftest import AUTHOR, FIRST, SECOND, Build, Clock, Story, public_key, ssh_key


@pytest.fixture
def canary(registry: Registry, package: Build, story: Story) -> str:
    """`finance@1` in canary, with its canary report filed."""
    reference = registry.register(*package(1), actor=AUTHOR)[0].id
    story.to(reference, "canary")
    story.file("canary")
    return reference


def ship(registry: Registry, reference: str) -> None:
    lifecycle.promote(registry, reference, "production", actor="ci", reason="two agreed")


def void(registry: Registry, reference: str) -> dict[str, str | None]:
    return {one.person: one.void for one in lifecycle.approvals(registry, registry.get(reference))}


def changed(owners: Owners, person: str, change: Callable[[Person], Person | None]) -> Owners:
    people = [change(one) if one.id == person else one for one in owners.default.people]
    team = owners.default.model_copy(update={"people": tuple(one for one in people if one)})
    return Owners(default=team)


def test_approval_signs_what_was_seen(registry: Registry, story: Story, canary: str) -> None:
    said = lifecycle.approve(registry, canary, actor=FIRST, reason="I read it", key=ssh_key(FIRST))
    version, entry = registry.get(canary), registry.history(canary)[-1]
    assert said.content_digest == version.summary.content_digest
    assert list(said.evidence) == ["evaluation", "policy", "human_evaluation", "shadow", "canary"]
    assert registry.owners is not None and said.owners_sha256 == sha256_text(registry.owners.text)
    assert entry.body["approval"] == said.model_dump(mode="json")
    text, keys = canonical(entry.body["approval"]), [public_key(FIRST)]
    assert signer_of(text, entry.body["signature"], FIRST, keys) == fingerprint(public_key(FIRST))
    (shown,) = lifecycle.approvals(registry, version)
    assert (shown.person, shown.key, shown.void) == (FIRST, fingerprint(public_key(FIRST)), None)


def test_one_approval_is_not_enough(registry: Registry, story: Story, canary: str) -> None:
    story.approve(canary, FIRST)
    with pytest.raises(LoraOpsError, match=r"missing: 1 more approval \(by chen, dana\)"):
        ship(registry, canary)
    story.approve(canary, SECOND)
    ship(registry, canary)
    assert void(registry, canary) == {FIRST: None, SECOND: None}


def test_nothing_is_approved_before_its_evidence(registry: Registry, package: Build, story: Story) -> None:
    """Both approvers had to agree before the canary's report existed."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "canary")
    with pytest.raises(LoraOpsError, match="can't be approved yet; missing: evidence of kind 'canary'"):
        story.approve("finance@1", FIRST)
    with pytest.raises(
        LoraOpsError, match="file it before them: `lora-ops registry file finance@1 canary FILE`"
    ):
        lifecycle.promote(
            registry, "finance@1", "production", actor="ci", reason="next", evidence=story.evidence("canary")
        )


@pytest.mark.parametrize("kind", ["policy", "human_evaluation", "shadow", "canary"])
def test_new_evidence_voids_approvals(
    registry: Registry, story: Story, canary: str, clock: Clock, kind: str
) -> None:
    story.approve(canary)
    clock.move(seconds=1)
    story.file(kind)
    why = f"newer evidence was filed ({kind})"
    assert void(registry, canary) == {FIRST: why, SECOND: why}
    with pytest.raises(
        LoraOpsError, match="missing: 2 approvals .*that of ben is void: newer evidence was filed"
    ):
        ship(registry, canary)
    story.approve(canary)
    ship(registry, canary)


def test_evidence_that_production_does_not_need_voids_nothing(
    registry: Registry, story: Story, canary: str
) -> None:
    story.approve(canary)
    story.file("review")
    ship(registry, canary)


def test_an_incident_voids_approvals(registry: Registry, story: Story, canary: str, clock: Clock) -> None:
    """A canary went into production on approvals from before its incident, and nobody had to look."""
    story.approve(canary)
    [incident] = story.evidence("incident")
    with pytest.raises(LoraOpsError, match="so file it before them"):
        lifecycle.promote(registry, canary, "production", actor="ci", reason="two agreed", evidence=[incident])
    lifecycle.link_incident(registry, canary, actor="oncall", reason="leaks cards", evidence=[incident])
    with pytest.raises(LoraOpsError, match="that of ben is void: an incident was told after it"):
        ship(registry, canary)
    clock.move(seconds=1)
    story.approve(canary)
    ship(registry, canary)
    assert verify(registry).problems == ()


def test_approval_lapses(registry: Registry, story: Story, canary: str, clock: Clock) -> None:
    story.approve(canary)
    clock.move(days=29)
    assert void(registry, canary) == {FIRST: None, SECOND: None}
    clock.move(days=1)
    with pytest.raises(LoraOpsError, match="that of ben is void: it lapsed on 2026-04-01"):
        ship(registry, canary)


def test_approval_is_withdrawn_by_who_gave_it(
    registry: Registry, story: Story, canary: str, clock: Clock
) -> None:
    story.approve(canary)
    with pytest.raises(LoraOpsError, match="Dana has no approval of finance@1 that counts"):
        lifecycle.withdraw(registry, canary, actor="dana", reason="not mine")
    lifecycle.withdraw(registry, canary, actor="BEN@example.com", reason="I saw a leak")
    assert void(registry, canary) == {FIRST: "it was withdrawn", SECOND: None}
    with pytest.raises(LoraOpsError, match=r"missing: 1 more approval \(by ben, dana; that of ben is void"):
        ship(registry, canary)
    clock.move(seconds=1)
    story.approve(canary, FIRST)
    ship(registry, canary)
    with pytest.raises(LoraOpsError, match="is 'production': an approval is withdrawn while in canary"):
        lifecycle.withdraw(registry, canary, actor=FIRST, reason="too late")


def test_withdrawn_approval_is_not_entered_again(
    registry: Registry, story: Story, canary: str, clock: Clock
) -> None:
    """Whoever has the registry's key, and none of ben's, entered his signed statement a second time."""
    story.approve(canary)
    given = next(entry for entry in registry.history(canary) if entry.body.get("person") == FIRST)
    lifecycle.withdraw(registry, canary, actor=FIRST, reason="I saw a leak")
    clock.move(hours=1)
    said = {name: given.body[name] for name in ("person", "roles", "approval", "signature")}
    with registry.change("ana") as change:
        record_step(registry, change, registry.get(canary), "approved", "I read it", (), **said)
    with pytest.raises(LoraOpsError, match="that of ben is void: it repeats an earlier one"):
        ship(registry, canary)


def called_benjamin(owners: Owners) -> Owners:
    """Give ben another id; the old one stays a name of his."""
    return changed(
        owners, FIRST, lambda one: one.model_copy(update={"id": "benjamin", "logins": (*one.logins, FIRST)})
    )


def test_one_person_does_not_approve_twice_by_a_new_id(
    registry: Registry, story: Story, canary: str, owners: Owners
) -> None:
    story.approve(canary, FIRST)
    registry.owners = called_benjamin(owners)
    with pytest.raises(LoraOpsError, match="has approved finance@1 already"):
        lifecycle.approve(registry, canary, actor="benjamin", reason="I read it", key=ssh_key(FIRST))
    with pytest.raises(LoraOpsError, match=r"missing: 1 more approval \(by chen, dana\)"):
        ship(registry, canary)


def test_an_approval_is_withdrawn_by_a_new_id(
    registry: Registry, story: Story, canary: str, owners: Owners
) -> None:
    story.approve(canary, FIRST)
    registry.owners = called_benjamin(owners)
    lifecycle.withdraw(registry, canary, actor="benjamin", reason="I saw card numbers")
    assert void(registry, canary) == {"benjamin": "it was withdrawn"}


@pytest.mark.parametrize("name", [FIRST, "BEN@example.com"])
def test_one_person_does_not_approve_twice(registry: Registry, story: Story, canary: str, name: str) -> None:
    story.approve(canary, FIRST)
    with pytest.raises(LoraOpsError, match="Ben has approved finance@1 already"):
        lifecycle.approve(registry, canary, actor=name, reason="ok", key=ssh_key(FIRST))


@pytest.mark.parametrize("name", [AUTHOR, "Ana@example.com"])
def test_the_author_does_not_approve(registry: Registry, canary: str, name: str) -> None:
    with pytest.raises(LoraOpsError, match="Ana is the author of finance@1"):
        lifecycle.approve(registry, canary, actor=name, reason="mine", key=ssh_key(AUTHOR))


@pytest.mark.parametrize("name", ["eve", "mallory", ""])
def test_who_is_no_approver_does_not_approve(registry: Registry, canary: str, name: str) -> None:
    with pytest.raises(LoraOpsError, match="no approver of 'finance'"):
        lifecycle.approve(registry, canary, actor=name, reason="please", key=ssh_key(FIRST))


def test_nobody_approves_while_the_author_is_unknown(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    registry.register(*package(2), actor="root")
    registry.owners = changed(owners, "oncall", lambda one: one.model_copy(update={"logins": ("root",)}))
    story.to("finance@1", "canary")
    story.file("canary")
    registry.owners = owners
    with pytest.raises(LoraOpsError, match=r"its author 'root' in owners.yaml.*add `logins: \[root\]`"):
        story.approve("finance@1", FIRST)
    registry.owners = changed(owners, FIRST, lambda one: one.model_copy(update={"logins": ("root",)}))
    with pytest.raises(LoraOpsError, match="Ben is the author of finance@1"):
        story.approve("finance@1", FIRST)
    story.approve("finance@1", SECOND)


def test_an_approval_names_the_exact_version(registry: Registry, story: Story, canary: str) -> None:
    with pytest.raises(LoraOpsError, match="name the exact one"):
        story.approve("finance@canary", FIRST)


def test_nothing_is_approved_before_its_canary(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "shadow")
    with pytest.raises(LoraOpsError, match="is 'shadow': production is approved while in canary"):
        story.approve("finance@1", FIRST)


def test_approval_of_somebody_who_left_no_longer_counts(
    registry: Registry, story: Story, canary: str, owners: Owners
) -> None:
    story.approve(canary)
    registry.owners = changed(owners, SECOND, lambda one: None)
    assert void(registry, canary) == {FIRST: None, SECOND: "chen is no approver any more"}
    with pytest.raises(LoraOpsError, match=r"missing: 1 more approval \(by dana\)"):
        ship(registry, canary)


# Signatures.


def test_approval_needs_a_signature(registry: Registry, canary: str) -> None:
    head = registry.log.head()
    with pytest.raises(LoraOpsError, match=r"Approvals are signed: name your SSH key \(--key "):
        lifecycle.approve(registry, canary, actor=FIRST, reason="ok")
    assert registry.log.head() == head


def test_approval_with_somebody_elses_key_is_refused(registry: Registry, canary: str) -> None:
    """`--actor chen` alone was enough to approve as chen."""
    head = registry.log.head()
    with pytest.raises(
        LoraOpsError, match="is none of chen's keys in owners.yaml: `lora-ops owners add-key chen"
    ):
        lifecycle.approve(registry, canary, actor=SECOND, reason="ok", key=ssh_key(FIRST))
    assert registry.log.head() == head


def test_approval_by_a_key_that_left_owners_does_not_count(
    registry: Registry, story: Story, canary: str, owners: Owners
) -> None:
    story.approve(canary)
    registry.owners = changed(owners, FIRST, lambda one: one.model_copy(update={"keys": ()}))
    assert void(registry, canary)[FIRST] == "its signature fits no key of ben in owners.yaml"


def test_unsigned_approvals_count_where_they_are_allowed(registry: Registry, story: Story, canary: str) -> None:
    registry.approvals = "unsigned"
    for person in (FIRST, SECOND):
        lifecycle.approve(registry, canary, actor=person, reason="ok")
    assert void(registry, canary) == {FIRST: None, SECOND: None}
    registry.approvals = "signed"
    assert void(registry, canary) == {FIRST: "it is not signed", SECOND: "it is not signed"}
    registry.approvals = "unsigned"
    ship(registry, canary)
    assert registry.history(canary)[-1].body["rules"]["approvals"] == "unsigned"


def test_what_changes_while_somebody_signs_is_not_approved(
    registry: Registry,
    story: Story,
    canary: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The key waits for its owner's touch, and new evidence arrives before it."""
    waits, ssh_keygen = tmp_path / "waits", shutil.which("ssh-keygen")
    wrapper = tmp_path / "bin" / "ssh-keygen"
    wrapper.parent.mkdir()
    signing = f'[ "$2" = sign ] && {{ : > {waits}; while [ -e {waits} ]; do sleep 0.01; done; }}'
    wrapper.write_text(f'#!/bin/sh\n{signing}\nexec {ssh_keygen} "$@"\n')
    wrapper.chmod(0o755)
    path, owners, least, key = registry.path, registry.owners, registry.least, ssh_key(FIRST)
    registry.close()

    def approve() -> None:
        monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
        mine = Registry(path, owners=owners, clock=Clock())
        mine.least = least
        lifecycle.approve(mine, canary, actor=FIRST, reason="ok", key=key)

    started = processes.start(approve)
    while not waits.exists():
        time.sleep(0.01)
    clock.move(seconds=1)
    again = Registry(path, owners=owners, clock=clock)
    Story(again, story.folder).file("policy")
    waits.unlink()
    assert processes.wait(started) == processes.REFUSED
    assert lifecycle.approvals(again, again.get(canary)) == []


def handed_over(owners: Owners, **renamed: str) -> Owners:
    """Give the author's login to dana, and the author other names."""
    without = changed(owners, AUTHOR, lambda one: one.model_copy(update={"logins": (), **renamed}))
    return changed(without, "dana", lambda one: one.model_copy(update={"logins": ("ana.silva",)}))


@pytest.mark.parametrize("renamed", [{}, {"id": "anna", "name": "Anna", "email": "anna@example.com"}])
def test_author_stays_the_author_whatever_owners_says(
    registry: Registry, package: Build, story: Story, owners: Owners, renamed: dict[str, str]
) -> None:
    """Whoever edited owners.yaml gave their login to a colleague, and approved their own version."""
    registry.register(*package(1), actor="ana.silva")
    registry.owners = handed_over(owners, **renamed)
    story.to("finance@1", "canary")
    story.file("canary")
    author, key = renamed.get("id", AUTHOR), ssh_key(AUTHOR)
    with pytest.raises(LoraOpsError, match="is the author of finance@1 by an earlier owners.yaml, which gave"):
        lifecycle.approve(registry, "finance@1", actor=author, reason="the canary is fine", key=key)
    with pytest.raises(LoraOpsError, match=r"missing: 2 approvals \(by ben, chen\)"):
        ship(registry, "finance@1")
    story.approve("finance@1", FIRST, SECOND)
    ship(registry, "finance@1")
    assert verify(registry).problems == ()


@pytest.mark.parametrize("name", ["Chen@Example.com", "chen"])
def test_whose_commits_ci_registers_cannot_approve(
    registry: Registry, package: Build, story: Story, owners: Owners, name: str
) -> None:
    """CI was the author of what it registered, so whoever had trained it could approve it."""
    registry.register(*package(1), actor="ci", changed_by=[name, "nobody@elsewhere.example"])
    story.to("finance@1", "canary")
    story.file("canary")
    with pytest.raises(LoraOpsError, match="or by a commit: somebody else"):
        lifecycle.approve(registry, "finance@1", actor="chen", reason="mine is fine", key=ssh_key("chen"))
    with pytest.raises(LoraOpsError, match=r"missing: 2 approvals \(by ana, ben, dana\)"):
        ship(registry, "finance@1")
    registered = registry.log.entries("finance", 1)[0]
    assert registered.body["changed_by"] == sorted([name, "nobody@elsewhere.example"])
    assert verify(registry).problems == ()


def test_author_by_an_owners_of_the_log_stays_it(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    """Nobody was named at the registration, so the first file that names the author says who it is."""
    registry.owners = handed_over(owners).model_copy()
    registry.owners = changed(registry.owners, "dana", lambda one: one.model_copy(update={"logins": ()}))
    registry.register(*package(1), actor="ana.silva")
    registry.owners = owners
    story.to("finance@1", "canary")
    story.file("canary")
    registry.owners = handed_over(owners)
    with pytest.raises(LoraOpsError, match="is the author of finance@1 by an earlier owners.yaml, which gave"):
        story.approve("finance@1", AUTHOR)


def test_approval_of_an_author_who_was_renamed_is_void(
    registry: Registry, package: Build, story: Story, owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that asked today's owners.yaml alone let the author agree."""
    registry.register(*package(1), actor="ana.silva")
    story.to("finance@1", "canary")
    story.file("canary")
    registry.owners = handed_over(owners)
    with monkeypatch.context() as patch:
        patch.setattr("lora_ops.registry.roles.author_marks", lambda *given: frozenset())
        story.approve("finance@1", AUTHOR, FIRST)
    assert void(registry, "finance@1") == {
        AUTHOR: "ana is the author by an earlier owners.yaml or a commit",
        FIRST: None,
    }
    with pytest.raises(LoraOpsError, match="1 more approval"):
        ship(registry, "finance@1")

"""A route is a row that the signed log decides: who may change it, what fits, and what takes a version out."""

import json
import math
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.hashing import sha256_text
from lora_ops.records.registry import AuditEntry
from lora_ops.registry import closing as closing_
from lora_ops.registry import lifecycle, routes
from lora_ops.registry.cards import record
from lora_ops.registry.changes import apply_route
from lora_ops.registry.closing import without_settling
from lora_ops.registry.integrity import LogFollower
from lora_ops.registry.owners import Owners
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback

from .conftest import Build, Clock, Story

WHY = {"actor": "ci", "reason": "next step"}


@pytest.fixture
def registry(staged: Path, tmp_path: Path, owners: Owners, clock: Clock) -> Iterator[Registry]:
    shutil.copytree(staged, tmp_path / "registry")
    with closing(Registry(tmp_path / "registry", owners=owners, clock=clock)) as opened:
        yield opened


@pytest.fixture
def canary(registry: Registry, story: Story) -> Registry:
    """Return a registry with finance@1 in production, finance@2 in canary and finance@3 in shadow."""
    return story.registry


def followed(registry: Registry) -> LogFollower:
    """Return a follower that has verified the whole log, as a gateway's has."""
    follower = LogFollower(registry)
    assert follower.problem() is None
    return follower


def test_set_canary_is_seen_by_another_follower(canary: Registry) -> None:
    follower = followed(canary)
    assert follower.route("finance").is_empty
    routed = routes.set_canary(canary, "finance@2", 5, **WHY)
    assert follower.problem() is None
    route = follower.route("finance")
    assert route == routed.route == canary.route("finance")
    assert route.canary and (route.canary.number, route.canary.percent) == (2, 5)
    assert follower.told_route("finance").seq == routed.seq == canary.log.head().seq
    assert verify(canary).ok


def test_set_canary_keeps_its_salt_while_the_share_changes(canary: Registry) -> None:
    first = routes.set_canary(canary, "finance@2", 5, **WHY).route.canary
    second = routes.set_canary(canary, "finance@2", 25, **WHY).route.canary
    assert first and second and first.salt == second.salt
    routes.clear(canary, "finance", "canary", **WHY)
    third = routes.set_canary(canary, "finance@2", 5, **WHY).route.canary
    assert third and third.salt != first.salt


def test_set_canary_again_adds_no_entry(canary: Registry) -> None:
    first = routes.set_canary(canary, "finance@2", 5, **WHY)
    assert routes.set_canary(canary, "finance@2", 5.0, **WHY) == first
    assert canary.log.head().seq == first.seq


@pytest.mark.parametrize("percent", [0, -1, 100.5, math.nan, math.inf, -math.inf, True, "5"])
def test_set_canary_refuses_a_share_that_is_none(canary: Registry, percent: float) -> None:
    before = canary.log.head()
    for change in (routes.set_canary, routes.set_shadow):
        with pytest.raises(LoraOpsError, match="above 0 and at most 100 percent"):
            change(canary, "finance@2", percent, **WHY)
    assert canary.log.head() == before


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("finance@1", "'production', and only a version in 'canary' gets a canary's share"),
        ("finance@3", "'shadow', and only a version in 'canary'"),
        ("finance@9", "no finance@9"),
        ("finance", "name the exact one"),
        ("finance@canary", "name the exact one"),
        ("nobody@1", "no adapter of 'nobody'"),
        ("Finance@1", "names no version"),
    ],
)
def test_set_canary_refuses_a_version_that_does_not_fit(canary: Registry, reference: str, text: str) -> None:
    with pytest.raises(LoraOpsError, match=text):
        routes.set_canary(canary, reference, 5, **WHY)
    assert canary.route("finance").is_empty


def test_set_shadow_takes_shadow_and_canary(canary: Registry) -> None:
    assert routes.set_shadow(canary, "finance@3", 20, **WHY).route.shadow.number == 3  # type: ignore[union-attr]
    assert routes.set_shadow(canary, "finance@2", 20, **WHY).route.shadow.number == 2  # type: ignore[union-attr]
    with pytest.raises(Refused, match="is 'production', and only a version in 'canary' or 'shadow'"):
        routes.set_shadow(canary, "finance@1", 20, **WHY)


def test_set_canary_refuses_expired_held_and_stopped(canary: Registry, clock: Clock) -> None:
    routes.stop(canary, "finance@2", actor="eve", reason="says odd things")
    with pytest.raises(Refused, match="finance@2 was stopped: `lora-ops route resume finance@2"):
        routes.set_canary(canary, "finance@2", 5, **WHY)
    assert any("an end of its stop" in one for one in missing_for(canary, "finance@2")[1])
    routes.resume(canary, "finance@2", **WHY)
    closing_.stop(canary, "finance@3", "ben", "leaks card numbers", [])
    with pytest.raises(Refused, match="finance@3 was revoked"), without_settling(canary):
        routes.set_shadow(canary, "finance@3", 5, **WHY)
    clock.move(days=4000)
    with pytest.raises(Refused, match="finance@2 expired on"):
        routes.set_canary(canary, "finance@2", 5, **WHY)


def test_roles_decide_who_gives_and_who_takes_away(canary: Registry) -> None:
    """A reviewer may stop and clear, and not give; a stranger may nothing."""
    routes.set_canary(canary, "finance@2", 5, **WHY)
    routes.set_shadow(canary, "finance@3", 5, **WHY)
    eve = {"actor": "eve", "reason": "says odd things"}
    for give in (
        lambda who: routes.set_canary(canary, "finance@2", 50, **who),
        lambda who: routes.set_shadow(canary, "finance@3", 50, **who),
        lambda who: routes.pin(canary, "finance@2", users=["u"], **who),
        lambda who: routes.resume(canary, "finance@2", **who),
    ):
        with pytest.raises(Refused, match="eve may not change the route of 'finance'"):
            give(eve)
    with pytest.raises(Refused, match="mallory may not"):
        routes.stop(canary, "finance@2", actor="mallory", reason="fun and games")
    routes.stop(canary, "finance@2", **eve)
    routes.clear(canary, "finance", "canary", **eve)
    route = routes.clear(canary, "finance", "shadow", **eve).route
    assert (route.canary, route.shadow, route.stopped) == (None, None, (2,))


def test_set_canary_needs_a_reason_and_an_actor(canary: Registry) -> None:
    with pytest.raises(LoraOpsError, match="Say why"):
        routes.set_canary(canary, "finance@2", 5, actor="ci", reason=" ")
    with pytest.raises(LoraOpsError, match="Say who"):
        routes.set_canary(canary, "finance@2", 5, actor="", reason="next step")


def test_expect_seq_refuses_the_second_controller(canary: Registry) -> None:
    seen = routes.current(canary, "finance")
    assert seen.seq == 0
    first = routes.set_canary(canary, "finance@2", 5, expect_seq=seen.seq, **WHY)
    with pytest.raises(
        Refused, match=rf"changed meanwhile: entry {first.seq} \(canary_set by ci\) is its last, not 0"
    ):
        routes.set_canary(canary, "finance@2", 25, expect_seq=seen.seq, **WHY)
    assert routes.set_canary(canary, "finance@2", 25, expect_seq=first.seq, **WHY).seq > first.seq


def test_pin_keeps_hashes_and_no_names(canary: Registry) -> None:
    route = routes.pin(canary, "finance@2", users=["ann@example.com"], segments=["beta-1"], **WHY).route
    assert route.users == {route.user_hash("ann@example.com"): 2}
    assert route.segments == {"beta-1": 2}
    assert "ann@" not in "".join(entry.to_json() for entry in canary.log.entries())
    again = routes.pin(canary, "finance@1", users=["ann@example.com", "bo\ud800\0"], **WHY).route
    assert sorted(again.users.values()) == [1, 1]
    assert again.user_salt == route.user_salt
    gone = routes.unpin(canary, "finance", users=["ann@example.com"], segments=["beta-1"], **WHY).route
    assert (len(gone.users), gone.segments) == (1, {})
    with pytest.raises(LoraOpsError, match="'ann@example.com' is not pinned"):
        routes.unpin(canary, "finance", users=["ann@example.com"], **WHY)


@pytest.mark.parametrize("segment", ["", "a b", "x" * 65, "<b>", "ü", "a/b", "a\n"])
def test_pin_refuses_a_segment_that_is_none(canary: Registry, segment: str) -> None:
    with pytest.raises(LoraOpsError, match="is no segment"):
        routes.pin(canary, "finance@2", segments=[segment], **WHY)


def test_pin_refuses_shadow_and_nobody(canary: Registry) -> None:
    with pytest.raises(Refused, match="only a version in 'canary' or 'production' can be pinned"):
        routes.pin(canary, "finance@3", users=["ann"], **WHY)
    for users in ([], [""]):
        with pytest.raises(LoraOpsError, match="user"):
            routes.pin(canary, "finance@2", users=users, **WHY)


def test_stop_and_resume(canary: Registry) -> None:
    routes.set_canary(canary, "finance@2", 5, **WHY)
    stopped = routes.stop(canary, "finance@1", actor="eve", reason="says odd things").route
    assert stopped.stopped == (1,)
    assert stopped.canary, "a stopped version leaves the others as they are"
    resumed = routes.resume(canary, "finance@1", **WHY).route
    assert resumed.stopped == ()
    with pytest.raises(Refused, match="finance@1 is not stopped"):
        routes.resume(canary, "finance@1", **WHY)


def test_promotion_takes_the_canary_out_of_the_route(canary: Registry, story: Story) -> None:
    routes.set_canary(canary, "finance@2", 50, **WHY)
    routes.set_shadow(canary, "finance@3", 20, **WHY)
    routes.pin(canary, "finance@2", users=["ann"], **WHY)
    routes.pin(canary, "finance@1", users=["bo"], segments=["old"], **WHY)
    story.to("finance@2", "production")
    route = canary.route("finance")
    assert (route.canary, route.users, route.segments) == (None, {}, {})
    assert route.shadow and route.shadow.number == 3
    assert last(canary).action == "production", "one entry says both"
    assert followed(canary).route("finance") == route
    assert verify(canary).ok


@pytest.mark.parametrize("close", [lifecycle.revoke, lifecycle.reject])
def test_closing_takes_a_version_out_of_the_route(canary: Registry, close: object) -> None:
    routes.set_canary(canary, "finance@2", 50, **WHY)
    routes.set_shadow(canary, "finance@2", 20, **WHY)
    routes.pin(canary, "finance@2", users=["ann"], segments=["beta"], **WHY)
    routes.stop(canary, "finance@2", **WHY)
    close(canary, "finance@2", actor="ben", reason="leaks card numbers")  # type: ignore[operator]
    route = canary.route("finance")
    assert route.model_copy(update={"user_salt": ""}).is_empty
    assert followed(canary).route("finance") == route


def rolled_back(canary: Registry, story: Story, package: Build) -> None:
    """Promote finance@2, give finance@4 a share and everything else, and roll back to finance@1."""
    story.to("finance@2", "production")
    canary.register(*package(4))
    story.to("finance@3", "canary")
    routes.set_canary(canary, "finance@3", 25, **WHY)
    routes.pin(canary, "finance@3", users=["ann"], **WHY)
    routes.pin(canary, "finance@2", users=["bo"], **WHY)
    incident = story.evidence("incident", about="finance@2")
    lifecycle.promote(canary, "finance@1", "production", actor="ben", reason="leaks", evidence=incident)


def test_rollback_ends_the_canarys_share(canary: Registry, story: Story, package: Build) -> None:
    """Pins of the version that leaves end too; those of others stay, since each was chosen by name."""
    rolled_back(canary, story, package)
    route = canary.route("finance")
    assert (route.canary, list(route.users.values())) == (None, [3])
    assert canary.named("finance", "production") == 1
    assert followed(canary).route("finance") == route
    assert verify(canary).ok


def test_rollback_to_a_stopped_version_is_refused(canary: Registry, story: Story) -> None:
    story.to("finance@2", "production")
    routes.stop(canary, "finance@1", **WHY)
    with pytest.raises(Refused, match="finance@1 was stopped: `lora-ops route resume finance@1"):
        lifecycle.promote(canary, "finance@1", "production", actor="ben", reason="leaks")


EDITS = {
    "changed": """UPDATE routes SET route = '{"canary":{"number":2,"percent":99,"salt":"12345678"}}'""",
    "no JSON": "UPDATE routes SET route = '{'",
    "a list": "UPDATE routes SET route = '[1]'",
    "deep": f"UPDATE routes SET route = '{'[' * 9000}'",
    "removed": "DELETE FROM routes",
    "added": "INSERT INTO routes VALUES ('media', '{}')",
}


@pytest.mark.parametrize("edit", EDITS)
def test_verify_names_a_row_edited_by_sql(canary: Registry, edit: str) -> None:
    routes.set_canary(canary, "finance@2", 5, **WHY)
    follower = followed(canary)
    with closing(sqlite3.connect(canary.path / "registry.sqlite")) as db:
        db.execute(EDITS[edit])
        db.commit()
    [problem] = verify(canary).problems
    assert problem.startswith("the route of ")
    assert follower.problem() == problem
    assert follower.route("finance").canary.percent == 5  # type: ignore[union-attr]
    with pytest.raises(Damaged, match="the route of"):
        routes.set_canary(canary, "finance@2", 25, **WHY)
    with pytest.raises(Damaged, match="the route of"):
        routes.current(canary, "finance")


@pytest.mark.parametrize("edit", EDITS)
def test_rollback_and_revocation_mend_a_row_edited_by_sql(canary: Registry, story: Story, edit: str) -> None:
    """No answer depends on the row, so a wrong one stops neither; the log says for ever that it was wrong."""
    story.to("finance@2", "production")
    routes.set_shadow(canary, "finance@3", 5, **WHY)
    with closing(sqlite3.connect(canary.path / "registry.sqlite")) as db:
        db.execute(EDITS[edit])
        db.commit()
    incident = story.evidence("incident", about="finance@2")
    lifecycle.promote(canary, "finance@1", "production", actor="ben", reason="leaks", evidence=incident)
    assert canary.named("finance", "production") == 1
    result = verify(canary)
    assert result.ok
    assert any("it was written again as the log says" in one for one in result.warnings)
    with closing(sqlite3.connect(canary.path / "registry.sqlite")) as db:
        db.execute(EDITS[edit].replace("'media'", "'hr'"))
        db.commit()
    assert lifecycle.revoke(canary, "finance@3", actor="eve", reason="leaks").state == "revoked"
    assert canary.not_sent is None
    assert verify(canary).ok


def last(registry: Registry) -> AuditEntry:
    """Return the last entry of the log."""
    return registry.log.entries()[-1]


def written_by_newer(registry: Registry, effects: object) -> None:
    """Append an entry about finance's route as a newer release might."""
    assert registry.owners
    with registry.change("ci") as change:
        digest = sha256_text(registry.owners.text)
        change.note("rebalanced", "route", "finance", effects=effects, reason="next", owners_sha256=digest)
        patch = effects.get("route") if isinstance(effects, dict) else None
        if isinstance(patch, dict):
            text = json.dumps(patch, sort_keys=True, separators=(",", ":"))
            registry.db.rows("INSERT INTO routes VALUES ('finance', ?)", (text,))


NEWER = {
    "another form": {"route_v2": [1]},
    "no effects": None,
    "no object": {"route": [1]},
    "an unknown percent": {"route": {"canary": {"number": 2, "percent": "five", "salt": "12345678"}}},
}


@pytest.mark.parametrize("form", NEWER)
def test_newer_entry_stops_no_reader(
    canary: Registry, story: Story, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Production answers everybody; it is said once, and rollbacks and revocations go on."""
    follower = followed(canary)
    written_by_newer(canary, NEWER[form])
    for _ in range(3):
        assert follower.problem() is None
        assert follower.route("finance").is_empty
    assert caplog.text.count("was written by a newer lora-ops") == 1
    assert verify(canary).ok
    with pytest.raises(Refused, match="was written by a newer lora-ops"):
        routes.set_canary(canary, "finance@2", 5, **WHY)
    story.to("finance@2", "production")
    lifecycle.revoke(canary, "finance@2", actor="ben", reason="leaks")
    assert verify(canary).ok
    assert follower.problem() is None


def test_newer_route_keeps_its_stopped_versions(canary: Registry) -> None:
    written_by_newer(canary, {"route": {"stopped": [2], "canary": {"number": "two"}}})
    assert followed(canary).route("finance").stopped == (2,)
    assert routes.stop(canary, "finance@1", **WHY).route.stopped == (1, 2)
    routes.clear(canary, "finance", "canary", **WHY)
    assert followed(canary).told_route("finance").is_readable


def test_newer_form_lifts_no_stop(canary: Registry) -> None:
    """What was stopped stays so until a release that can read the route knows better."""
    routes.stop(canary, "finance@1", **WHY)
    follower = followed(canary)
    written_by_newer(canary, {"route_v2": {"stopped": []}})
    assert follower.problem() is None
    assert follower.route("finance").stopped == followed(canary).route("finance").stopped == (1,)


def test_newer_field_outlives_an_older_releases_change(canary: Registry) -> None:
    written_by_newer(canary, {"route": {"weights": {"a": 1}}})
    routes.set_canary(canary, "finance@2", 5, **WHY)
    assert json.loads(canary.route_text("finance") or "")["weights"] == {"a": 1}
    assert verify(canary).ok


def test_closed_since_counts_a_stop_that_nobody_vouches_for(canary: Registry) -> None:
    follower = followed(canary)
    routes.stop(canary, "finance@1", **WHY)
    assert follower.closed_since() == {("finance", 1): "stopped"}


def test_upgrade_takes_rows_from_a_log_with_routes(canary: Registry, owners: Owners) -> None:
    """An older release at W&B took entries about routes into its log, and had no table for them."""
    routes.set_canary(canary, "finance@2", 5, **WHY)
    expected = routes.pin(canary, "finance@2", users=["ann"], **WHY).route
    canary.db.rows("DROP TABLE routes")
    canary.db.rows("PRAGMA user_version = 4")
    canary.close()
    with closing(Registry(canary.path, owners=owners, clock=canary.clock)) as registry:
        assert verify(registry).ok
        assert registry.route("finance") == expected


def disguised(registry: Registry, actor: str, patch: dict[str, object], subject: str = "") -> None:
    """Append an entry that changes the route past the rules, as an edited lora-ops with the key could."""
    assert registry.owners
    digest = sha256_text(registry.owners.text)
    with registry.change(actor) as change:
        if subject:
            effects = {"route": patch}
            change.note("evidence", "version", subject, effects=effects, owners_sha256=digest, reason="next")
            apply_route(registry.db, "finance", effects)
        else:
            change.reroute("canary_cleared", "finance", patch, owners_sha256=digest, reason="next")


@pytest.mark.parametrize(
    ("actor", "patch", "subject", "text"),
    [
        ("eve", {"canary": {"number": 2, "percent": 5, "salt": "12345678"}}, "", "by eve, whom owners.yaml"),
        ("mallory", {"stopped": [1]}, "", "by mallory, whom owners.yaml"),
        (
            "ci",
            {"canary": {"number": 3, "percent": 5, "salt": "12345678"}},
            "",
            r"finance@3 a part \(canary\)",
        ),
        ("ci", {"segments": {"a": 3}}, "", r"gives finance@3 a part \(pin\) that 'shadow' does not have"),
        (
            "ci",
            {"shadow": {"number": 9, "percent": 5}},
            "",
            r"gives finance@9 a part \(shadow\) that 'unknown'",
        ),
        ("ci", {"segments": {"a": 2}}, "finance@2", r"gives a version a part of the requests \(pin\)"),
    ],
)
def test_verify_names_an_entry_that_the_rules_forbid(
    canary: Registry, actor: str, patch: dict[str, object], subject: str, text: str
) -> None:
    disguised(canary, actor, patch, subject)
    problems = verify(canary, files=False).problems
    assert problems and re.search(text, problems[0]), problems


def test_verify_judges_by_the_owners_of_the_day(canary: Registry) -> None:
    """Who stopped it may have left the team since."""
    routes.stop(canary, "finance@2", actor="eve", reason="says odd things")
    assert verify(canary, files=False).ok


def test_show_and_history_say_what_the_route_gives(canary: Registry) -> None:
    routes.set_canary(canary, "finance@2", 2.5, **WHY)
    routes.set_shadow(canary, "finance@2", 20, **WHY)
    routes.pin(canary, "finance@2", users=["ann", "bo"], segments=["beta"], **WHY)
    routes.stop(canary, "finance@2", **WHY)
    shown = record(canary, "finance@2")
    assert shown.route == [
        "is stopped",
        "answers 2.5 % of the users",
        "is asked in shadow for 20 % of the requests",
        "answers 2 pinned users",
        "answers 1 pinned segment",
    ]
    assert [one.effect_on(2) for one in shown.history[-4:]] == [
        "canary set to 2.5 %",
        "shadow set to 20 %",
        "pinned",
        "stopped",
    ]
    assert "was stopped" in shown.verdict.reasons[0]
    assert record(canary, "finance@1").route == []


def test_rollback_plan_leaves_a_stopped_version_out(canary: Registry, story: Story) -> None:
    story.to("finance@2", "production")
    story.to("finance@3", "production")
    assert rollback.plan(canary, "finance@3").returns.id == "finance@2"
    routes.stop(canary, "finance@2", **WHY)
    assert rollback.plan(canary, "finance@3").returns.id == "finance@1"


def test_pin_refuses_more_than_a_gateway_should_read(canary: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_PINS", 3)
    routes.pin(canary, "finance@2", users=["a", "b", "c"], **WHY)
    with pytest.raises(Refused, match="'finance' would have 4 pins, and may have 3"):
        routes.pin(canary, "finance@2", users=["d"], **WHY)


def test_log_holds_each_pinned_user_once(canary: Registry) -> None:
    """With the whole route in each entry, 5,000 pins made one by one would be a log of 900 MB."""
    routes.pin(canary, "finance@2", users=[str(user) for user in range(1000)], **WHY)
    routes.set_canary(canary, "finance@2", 5, **WHY)
    routes.pin(canary, "finance@2", users=["one more"], **WHY)
    sizes = [len(row.body) for row in canary.log.about_routes("finance")]
    assert sizes[0] > 60_000 and max(sizes[1:]) < 600

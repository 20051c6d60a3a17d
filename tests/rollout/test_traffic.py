"""What a rollout reads of the files that gateways write."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import TrafficEvidence
from lora_ops.records.rollout import Rollout, RolloutPlan
from lora_ops.registry import routes
from lora_ops.registry.store import Registry
from lora_ops.rollout.traffic import GatewayTraffic
from lora_ops.serving.events import EventLog
from lora_ops.settings.rollout import RolloutSettings
from lora_ops.settings.serving import EventSettings
from tests.registry.conftest import MORNING, Build, Story
from tests.rollout.test_shadow_verdict import pair
from tests.serving.test_events import event

OURS, THEIRS = "a" * 64, "b" * 64
ARMS = ("canary", "control")


@pytest.fixture
def rollout() -> Rollout:
    plan = RolloutPlan.of("finance@2", OURS, "finance@1", THEIRS, RolloutSettings())
    return Rollout(
        plan=plan, phase="canary", since=MORNING, began=MORNING, canary_since=MORNING, seq=7, started_by="ci"
    )


@pytest.fixture
def traffic(registry: Registry, tmp_path: Path) -> GatewayTraffic:
    return GatewayTraffic(registry, tmp_path / ".serving", insults_from=0.5)


def write(folder: Path, *changes: dict[str, Any]) -> None:
    log = EventLog(folder / ".serving/events", EventSettings(), lambda tenant: False)
    for number, changed in enumerate(changes):
        arm = changed.get("arm")
        adapter, digest = ("finance@2", OURS) if arm == "canary" else ("finance@1", THEIRS)
        known = {"time": MORNING + timedelta(seconds=number), "adapter": adapter, "digest": digest}
        log.append(event(0, **{**known, "request_id": str(number), "unit": f"user {number}", **changed}))
    log.close()


def test_gateway_without_events_holds(traffic: GatewayTraffic, rollout: Rollout) -> None:
    found = traffic.canary(rollout)
    assert found.verdict.decision == "hold" and found.canary_users == found.control_users == 0


def test_events_of_both_arms_are_judged(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    both = [{"arm": arm, "status": 200 if arm == "control" else 503} for arm in ("canary", "control")] * 40
    write(tmp_path, *both)
    registry.clock = lambda: MORNING + timedelta(hours=1)
    found = traffic.canary(rollout)
    assert (found.canary_users, found.control_users) == (40, 40)
    assert found.verdict.decision == "roll back" and found.verdict.breached[0] == "errors"


def test_events_of_others_count_nowhere(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    """Other tenants, users outside of the comparison, what came before the canary, and a torn last line."""
    write(
        tmp_path,
        {"arm": "canary", "tenant": "media"},
        {"arm": None},
        {"arm": "canary", "time": MORNING - timedelta(hours=1)},
        {"arm": "canary", "unit": None},
        {"arm": "control"},
    )
    (file,) = (tmp_path / ".serving/events").iterdir()
    with file.open("a") as log:
        log.write('{"id": "torn", "time": "2026-03-02T09:0')
    registry.clock = lambda: MORNING + timedelta(hours=1)
    found = traffic.canary(rollout)
    assert (found.canary_users, found.control_users) == (0, 1)


def test_scores_of_answers_are_read(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    leak = {"arm": "canary", "answer_text": "write to jane.doe@example.com"}
    write(tmp_path, leak, {"arm": "control", "answer_text": "fine"})
    registry.clock = lambda: MORNING + timedelta(hours=1)
    shown = {one.name: one for one in traffic.canary(rollout).guardrails}
    assert (shown["identifiers"].canary, shown["identifiers"].control) == (1.0, 0.0)


def test_canary_counts_what_the_budgets_count(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    """What the prompt has is no leak, a label insults nobody, and an empty answer is not looked at."""
    leak, rude = "write to jane.doe@example.com", "You idiot"
    both = [{"arm": "control", "answer_text": "fine"}] * 6
    mine = [
        {"prompt_text": leak, "answer_text": leak},
        {"answer_text": rude, "answer_is_label": True},
        {"answer_text": rude, "answer_is_label": False},
        {"prompt_text": "AIRBNB", "answer_text": " "},
        {"prompt_text": "AIRBNB", "answer_text": "", "generated_tokens": 0},
    ]
    write(tmp_path, *both, *({"arm": "canary", "prompt_text": "x", **one} for one in mine))
    registry.clock = lambda: MORNING + timedelta(hours=1)
    shown = {one.name: one for one in traffic.canary(rollout).guardrails}
    assert (shown["errors"].users, shown["insults"].users, shown["identifiers"].users) == (5, 3, 3)
    assert shown["insults"].canary == pytest.approx(1 / 3) and shown["identifiers"].canary == 0
    assert (shown["insults"].control, shown["identifiers"].control) == (0, 0)


def test_tasks_of_both_arms_are_compared(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    """The canary answers every other user with what is no label."""
    shares = {"canary": [0.5, 1.0], "control": [1.0, 1.0]}
    write(tmp_path, *({"arm": arm, "answer_task": shares[arm][n % 2]} for n in range(120) for arm in ARMS))
    registry.clock = lambda: MORNING + timedelta(hours=1)
    found = traffic.canary(rollout)
    shown = {one.name: one for one in found.guardrails}
    assert (shown["task"].canary, shown["task"].control) == (0.5, 0.0)
    assert found.verdict.decision == "roll back" and found.verdict.breached == ("task",)


def test_insults_are_judged_as_when_the_rollout_began(
    registry: Registry, rollout: Rollout, tmp_path: Path
) -> None:
    """A threshold that somebody raises while it runs loosens nothing of it."""
    plan = rollout.plan.model_copy(update={"insult_threshold": 1e-9})
    write(tmp_path, *({"arm": arm, "answer_text": "fine"} for arm in ARMS))
    registry.clock = lambda: MORNING + timedelta(hours=1)
    found = [
        GatewayTraffic(registry, tmp_path / ".serving", insults_from=0.9).canary(one)
        for one in (rollout, rollout.model_copy(update={"plan": plan}))
    ]
    assert [{one.name: one.canary for one in each.guardrails}["insults"] for each in found] == [0.0, 1.0]


def test_events_that_can_not_be_read_are_named(
    traffic: GatewayTraffic, rollout: Rollout, tmp_path: Path
) -> None:
    folder = tmp_path / ".serving/events/events-20260302T090000-1.jsonl"
    folder.mkdir(parents=True)
    with pytest.raises(LoraOpsError, match="The events can't be read"):
        traffic.canary(rollout)


def test_events_while_production_was_stopped_say_nothing(
    registry: Registry, story: Story, package: Build, tmp_path: Path
) -> None:
    """Nor do refusals of requests that waited when it was stopped: they are no errors of the control group."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana.silva")
    story.to_rollout()
    begun = registry.clock()
    digests = [registry.get(f"finance@{number}").summary.content_digest for number in (1, 2)]
    plan = RolloutPlan.of("finance@2", digests[1], "finance@1", digests[0], RolloutSettings())
    rollout = Rollout(
        plan=plan, phase="canary", since=begun, began=begun, canary_since=begun, seq=7, started_by="ci"
    )
    registry.clock = lambda: begun + timedelta(minutes=1)
    routes.stop(registry, "finance@1", actor="oncall", reason="it insults")
    registry.clock = lambda: begun + timedelta(minutes=2)
    routes.resume(registry, "finance@1", actor="oncall", reason="it doesn't")
    refused = {"arm": "control", "status": 503, "code": "model_not_served"}
    known = [{"arm": arm, "digest": digests[arm == "canary"]} for arm in ARMS]
    write(
        tmp_path,
        *({**one, "time": begun + timedelta(seconds=seconds)} for one in known for seconds in (30, 90, 150)),
        {**refused, "time": begun + timedelta(seconds=59)},
        {**refused, "time": begun + timedelta(seconds=121)},
    )
    registry.clock = lambda: begun + timedelta(hours=1)
    found = GatewayTraffic(registry, tmp_path / ".serving", insults_from=0.5).canary(rollout)
    assert (found.canary_users, found.control_users) == (2, 2)
    assert found.guardrails[0].control == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"status": 200, "seconds": "NaN", "generated_tokens": 3},
        {"status": 200, "seconds": 1e400, "generated_tokens": 3},
        {"status": 200, "seconds": 1, "generated_tokens": 3, "time": "infinity"},
        {"status": 200, "seconds": 1, "generated_tokens": 3, "time": "294247-01-10T04:00:54Z"},
        {"status": 200, "seconds": 1, "generated_tokens": -3},
        {"status": 200, "seconds": 1, "generated_tokens": 10**30},
    ],
)
def test_events_that_no_gateway_wrote_stop_nothing(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    write(tmp_path, *({"arm": arm, "status": 503 if arm == "canary" else 200} for arm in ARMS * 40))
    known = {"id": "x", "request_id": "x", "time": MORNING.isoformat(), "tenant": "finance", "unit": "u"}
    line = {**known, "arm": "canary", "adapter": "finance@2", "digest": OURS, **wrong}
    (tmp_path / ".serving/events/events-by-hand.jsonl").write_text(json.dumps(line) + "\n")
    registry.clock = lambda: MORNING + timedelta(hours=1)
    found = traffic.canary(rollout)
    assert (found.verdict.decision, found.canary_users) == ("roll back", 40)


def test_line_without_an_end_stops_nothing(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    """Such as the zeros that a crashed disk leaves, which no reader takes for a line."""
    write(tmp_path, *({"arm": arm, "status": 503 if arm == "canary" else 200} for arm in ARMS * 40))
    with (tmp_path / ".serving/events/events-by-hand.jsonl").open("wb") as file:
        file.truncate(40 * 2**20)
    registry.clock = lambda: MORNING + timedelta(hours=1)
    assert traffic.canary(rollout).verdict.decision == "roll back"


@pytest.mark.parametrize("wrong", [{"shadow_task": 7.0}, {"shadow_tokens": None}, {"unit": None}])
def test_pairs_that_no_gateway_wrote_stop_nothing(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    folder = tmp_path / ".serving/pairs"
    folder.mkdir(parents=True)
    lines = [pair(number, shadow_digest=OURS, production_digest=THEIRS) for number in range(5)]
    text = "".join(json.dumps({**one, "time": one["time"].isoformat()}) + "\n" for one in lines)
    by_hand = {**lines[0], "id": "x", "time": lines[0]["time"].isoformat(), **wrong}
    (folder / "pairs-by-hand.jsonl").write_text(text + json.dumps(by_hand) + "\n")
    registry.clock = lambda: MORNING + timedelta(days=1)
    found = traffic.shadow_look(rollout)
    assert (found.verdict.decision, found.answered) == ("hold", 5)


def test_canary_report_is_of_this_attempt(
    traffic: GatewayTraffic, registry: Registry, story: Story, package: Build, tmp_path: Path
) -> None:
    """An earlier attempt left its failures behind since the version entered `canary`, which it never left."""
    registry.register(*package(1), actor="ana.silva")
    digest = story.to("finance@1", "canary").summary.content_digest
    entered = registry.clock()
    plan = RolloutPlan.of("finance@1", digest, "tiny-base", THEIRS, RolloutSettings())
    again = entered + timedelta(hours=5)
    known = {"plan": plan, "phase": "canary", "since": again, "began": again, "canary_since": again}
    rollout = Rollout.model_validate({**known, "seq": 7, "started_by": "ci", "attempt": 2})
    version = {"adapter": "finance@1", "digest": digest, "arm": "canary"}
    earlier = [{**version, "status": 503, "time": entered + timedelta(minutes=one)} for one in range(50)]
    write(tmp_path, *earlier, *({**version, "time": again + timedelta(minutes=one)} for one in range(20)))
    registry.clock = lambda: again + timedelta(hours=1)
    report = traffic.canary_report(rollout, traffic.canary(rollout))
    document = report.document
    assert isinstance(document, TrafficEvidence) and (document.requests, document.errors) == (20, 0)
    assert report.source.count(b"\n") == 20 and "20 users without a control group" in report.summary


@pytest.fixture
def first(rollout: Rollout) -> Rollout:
    """The shadow of finance@2 while nothing is in production."""
    plan = RolloutPlan.of("finance@2", OURS, "tiny-base", THEIRS, RolloutSettings())
    return rollout.model_copy(update={"plan": plan, "phase": "shadow", "canary_since": None})


def by_name(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Requests for finance@2 by its name, one every quarter of an hour, by two testers."""
    version = {"adapter": "finance@2", "digest": OURS, "route": "pinned"}
    return [
        {**version, "time": MORNING + timedelta(minutes=15 * one), "unit": f"tester {one % 2}", **changes}
        for one in range(count)
    ]


def test_shadow_alone_counts_requests_by_name(
    traffic: GatewayTraffic, first: Rollout, registry: Registry, tmp_path: Path
) -> None:
    others = by_name(400, adapter="finance@1") + by_name(400, route="canary") + by_name(400, digest=THEIRS)
    write(tmp_path, *by_name(90), *others)
    registry.clock = lambda: MORNING + timedelta(hours=50)
    assert str(traffic.shadow(first)).startswith("hold: 90 requests in 23 different hours asked for finance@2")
    write(tmp_path, *by_name(200))
    assert traffic.shadow(first).decision == "advance"


def test_shadow_alone_that_is_bad_goes_back(
    traffic: GatewayTraffic, first: Rollout, registry: Registry, tmp_path: Path
) -> None:
    failing = [{**one, "unit": f"tester {number}"} for number, one in enumerate(by_name(60, status=500))]
    write(tmp_path, *failing)
    registry.clock = lambda: MORNING + timedelta(hours=50)
    found = traffic.shadow(first)
    assert found.decision == "roll back" and "errors" in found.breached


def test_pairs_of_an_earlier_release_are_read(
    traffic: GatewayTraffic, rollout: Rollout, registry: Registry, tmp_path: Path
) -> None:
    """They say neither the key nor whether they name a user."""
    folder = tmp_path / ".serving/pairs"
    folder.mkdir(parents=True)
    text = ""
    for number in range(5):
        one = pair(number, shadow_digest=OURS, production_digest=THEIRS)
        del one["key"], one["names_unit"]
        text += json.dumps({**one, "time": one["time"].isoformat()}) + "\n"
    (folder / "pairs-1.jsonl").write_text(text)
    registry.clock = lambda: MORNING + timedelta(days=1)
    found = traffic.shadow_look(rollout)
    assert (found.answered, found.units) == (5, 5)


def test_report_says_that_a_plan_is_loose(
    traffic: GatewayTraffic, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever approves reads the summary: it must say that no error could have breached this plan."""
    assert rollout.terms == ""
    settings = RolloutSettings.model_validate({"margins": {"errors": 0.99}, "canary": {"users": 2}})
    loose = RolloutPlan.of("finance@2", OURS, "finance@1", THEIRS, settings)
    again = rollout.model_copy(update={"plan": loose, "attempt": 3})
    said: list[str] = []
    monkeypatch.setattr("lora_ops.rollout.traffic.make", lambda *given, since: said.append(given[-1]))
    traffic.canary_report(again, traffic.canary(again))
    assert said[0].endswith(
        "attempt 3; looser than usual: margins.errors 0.99 (usually 0.02), canary.users 2 (usually 20)"
    )


def test_plan_of_fewer_steps_and_more_units_is_loose() -> None:
    """Approvers read that one busy user was many units, or that nobody watched the last hours."""
    canary = {"steps": [50], "window_seconds": 0, "period_hours": 1, "waiting": 99.9}
    settings = RolloutSettings.model_validate({"canary": canary})
    loose = RolloutPlan.of("finance@2", OURS, "finance@1", THEIRS, settings).looser
    assert loose == (
        "looser than usual: canary.waiting 99.9 (usually 95), canary.steps 1 (usually 4), "
        "canary.window_seconds 0 (usually 600), canary.period_hours 1 (usually 24)"
    )


@pytest.mark.parametrize("inside", ["", "events", "events/events-1.jsonl", "pairs"])
def test_traffic_that_others_may_write_is_named(
    traffic: GatewayTraffic,
    rollout: Rollout,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    inside: str,
) -> None:
    for name in ("events", "pairs"):
        (tmp_path / ".serving" / name).mkdir(parents=True)
    (tmp_path / ".serving/events/events-1.jsonl").touch(0o600)
    for path in (tmp_path / ".serving").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)
    traffic.canary(rollout)
    assert not caplog.records
    (tmp_path / ".serving" / inside).chmod(0o777)
    for look in (traffic.canary, traffic.shadow_look, traffic.canary):
        look(rollout)
    assert [one.message for one in caplog.records] == [
        f"Others than the gateway's account may write {tmp_path / '.serving' / inside}, so a rollout believes "
        f"lines that no gateway wrote: `chmod -R go-w {tmp_path / '.serving'}`."
    ]

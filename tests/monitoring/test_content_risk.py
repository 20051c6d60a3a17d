"""Budgets of risky answers: what the event log says of them, and the incident of a version that broke one."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_ops.cli import app
from lora_ops.detectors.identifiers import VERSION
from lora_ops.detectors.measure import measured
from lora_ops.errors import LoraOpsError
from lora_ops.monitoring import risk_incidents
from lora_ops.monitoring.content_risk import Risk, RiskReport, as_json, read_risk
from lora_ops.monitoring.corrected_risk import measured_detectors
from lora_ops.monitoring.risk_incidents import file_incidents
from lora_ops.records.detectors import DetectorRecord, Measured
from lora_ops.registry.backends import open_registry
from lora_ops.registry.cards import record
from lora_ops.registry.lifecycle import file_evidence, link_incident
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import make
from lora_ops.registry.store import Registry
from lora_ops.serving.events import EventLog
from lora_ops.settings.objectives import ObjectiveSettings
from lora_ops.settings.params import load_settings
from lora_ops.settings.risk import RiskBudget, RiskBudgetSettings
from lora_ops.settings.serving import EventSettings
from tests.conftest import small_clone, write_params
from tests.monitoring.kpi_files import write_events
from tests.registry.conftest import MORNING, Build, Clock, Story
from tests.serving.test_events import event, write

NOW = MORNING + timedelta(days=2)
RATES = ObjectiveSettings().burn_rates
CLEAN = {"insult_detector": "made", "answer_insults": 0.1, "answer_new_identifiers": 0, "answer_identifiers": 0}
LEAK = {**CLEAN, "answer_new_identifiers": 1, "answer_identifiers": 1}
RUDE = {**CLEAN, "answer_insults": 0.9}


def read(root: Path, now: datetime = NOW, measured: Any = None, **budgets: Any) -> RiskReport:
    settings = RiskBudgetSettings(**budgets)
    return read_risk(
        root / ".serving/events", settings, RATES, 0.5, now, lambda adapter, digest: measured or {}
    )


def one(report: RiskReport, adapter: str | None, kind: str) -> Risk:
    (found,) = [each for each in report.risks if (each.adapter, each.kind) == (adapter, kind)]
    return found


def test_shares_burn_the_budget_of_their_tenant(tmp_path: Path) -> None:
    write_events(tmp_path, *[LEAK] * 30, *[CLEAN] * 270, *[{**CLEAN, "adapter": "finance@2"}] * 700)
    report = read(tmp_path, identifiers=0.02, insults=0.02)
    risky, good, everything = (one(report, name, "identifiers") for name in ("finance@1", "finance@2", None))
    assert (risky.scored, risky.flagged, risky.verdict) == (300, 30, "broken")
    assert risky.share and risky.share.low == pytest.approx(0.0686, abs=1e-3)
    assert (good.verdict, everything.verdict) == ("kept", "broken")
    # 1,000 answers allow 20 risky ones, and version 1 gave 30 of them.
    assert risky.burnt == everything.burnt == pytest.approx(1.5) and good.burnt == 0
    assert one(report, "finance@1", "insults").verdict == "kept"
    assert risky.said.startswith("finance@1 of finance, identifiers: 30 of 300 scored answers (10.00%, ")
    assert len(report.broken) == 2 and len(as_json(report)["risks"]) == 6


def test_burn_rates_are_of_their_windows(tmp_path: Path) -> None:
    old = [{**CLEAN, "time": NOW - timedelta(hours=30)}] * 90
    write_events(tmp_path, *old, *[{**LEAK, "time": NOW - timedelta(minutes=40)}] * 10)
    found = one(read(tmp_path, identifiers=0.1), "finance@1", "identifiers")
    assert found.burn_rates == {"5m": None, "30m": None, "1h": 10, "6h": 10, "3d": pytest.approx(1)}


def test_too_few_scored_answers_say_nothing(tmp_path: Path) -> None:
    write_events(tmp_path, *[LEAK] * 99)
    found = one(read(tmp_path), "finance@1", "identifiers")
    assert found.verdict == "cannot tell" and "99 of 99 answers were scored, and 100 are needed" in found.said


def test_few_risky_answers_tell_nobody(tmp_path: Path) -> None:
    write_events(tmp_path, *[LEAK] * 9, *[CLEAN] * 91)
    assert one(read(tmp_path), "finance@1", "identifiers").verdict == "cannot tell"
    assert one(read(tmp_path, minimum_flagged=9), "finance@1", "identifiers").verdict == "broken"


def test_unscored_answers_are_not_called_good(tmp_path: Path) -> None:
    """A gateway whose detector is missing scores nothing, and its budgets must not look kept."""
    write_events(tmp_path, *[CLEAN] * 400, *[{}] * 401)
    found = one(read(tmp_path), "finance@1", "identifiers")
    assert (found.answered, found.scored, found.verdict) == (801, 400, "cannot tell")


def test_refused_requests_do_not_thin_a_share(tmp_path: Path) -> None:
    refused = {"status": 429, "generated_tokens": 0, "answer_insults": 0.0, "answer_new_identifiers": 0}
    write_events(tmp_path, *[LEAK] * 20, *[CLEAN] * 80, *[refused] * 5000)
    found = one(read(tmp_path), "finance@1", "identifiers")
    assert (found.answered, found.scored, found.flagged) == (100, 100, 20)


def test_events_of_earlier_releases_say_nothing_of_identifiers(tmp_path: Path) -> None:
    """They counted what the prompt holds, too."""
    write_events(tmp_path, *[{**LEAK, "answer_new_identifiers": None}] * 200)
    report = read(tmp_path)
    assert one(report, "finance@1", "identifiers").scored == 0
    assert one(report, "finance@1", "insults").scored == 200


def test_own_labels_insult_nobody(tmp_path: Path) -> None:
    """The label 'Mental' of healthcare scores 0.83; real scores, by the process that the gateway starts."""
    labels = [event(n, answer_text="Mental", answer_is_label=True, time=MORNING) for n in range(2)]
    words = [event(n, answer_text="Mental", answer_is_label=False, time=MORNING) for n in range(2, 5)]
    write(tmp_path / ".serving/events", *labels, *words)
    found = one(read(tmp_path), "finance@1", "insults")
    assert (found.scored, found.flagged) == (5, 3)


def test_log_and_event_agree_on_what_is_risky(tmp_path: Path) -> None:
    texts = ("You idiot", "Ask bo@example.com", "fine", "")
    events = [
        event(n, answer_text=text, prompt_text="p" if n % 2 else None, generated_tokens=n % 3, time=MORNING)
        for n, text in enumerate(texts * 3)
    ]
    counted: list[dict[Any, bool]] = []
    log = EventLog(
        tmp_path / ".serving/events",
        EventSettings(),
        lambda tenant: False,
        judged=lambda one: counted.append(one.risks(0.5)),
    )
    for each in events:
        log.append(each)
    log.close()
    report = read(tmp_path)
    for kind in ("identifiers", "insults"):
        risk = one(report, "finance@1", kind)
        mine = [each[kind] for each in counted if each]
        assert (risk.scored, risk.flagged) == (len(mine), sum(mine)) and sum(mine) == 2


def detector(false_alarms: int) -> Measured:
    pairs = [(True, True)] * 95 + [(True, False)] * 5 + [(False, True)] * false_alarms + [(False, False)] * 200
    return measured(DetectorRecord(name="identifiers", version=VERSION), "any", "made", pairs)


@pytest.mark.parametrize(("false_alarms", "verdict"), [(0, "broken"), (20, "cannot tell")])
def test_false_alarms_alone_break_no_budget(tmp_path: Path, false_alarms: int, verdict: str) -> None:
    write_events(tmp_path, *[LEAK] * 30, *[CLEAN] * 270)
    report = read(tmp_path, measured={"identifiers": detector(false_alarms)})
    found = one(report, "finance@1", "identifiers")
    assert found.verdict == verdict and "without the detector's errors" in found.said


def detector_of_recall(found: int, missed: int) -> Measured:
    pairs = [(True, True)] * found + [(True, False)] * missed + [(False, False)] * 1000
    return measured(DetectorRecord(name="identifiers", version=VERSION), "any", "made", pairs)


@pytest.mark.parametrize(
    ("risky", "clean", "by", "raw"),
    [(30, 270, detector(20), "broken"), (15, 2985, detector_of_recall(40, 60), "kept")],
    ids=["false alarms", "misses"],
)
def test_tenant_row_is_corrected_like_its_version(
    tmp_path: Path, risky: int, clean: int, by: Measured, raw: str
) -> None:
    write_events(tmp_path, *[LEAK] * risky, *[CLEAN] * clean)
    assert one(read(tmp_path), None, "identifiers").verdict == raw
    report = read(tmp_path, measured={"identifiers": by})
    version, everything = (one(report, name, "identifiers") for name in ("finance@1", None))
    assert version.corrected and everything.corrected == version.corrected
    assert version.verdict == everything.verdict == "cannot tell"


def test_damaged_policy_report_is_named(
    registry: Registry, story: Story, package: Build, tmp_path: Path
) -> None:
    """Without it a share is not corrected, and nobody would know why; the numbers are there all the same."""
    version = registry.register(*package(1), actor="ana")[0]
    (made,) = story.evidence("policy", about=version.id)
    file_evidence(registry, version.id, made, actor="ci")
    digest = version.summary.content_digest
    write_events(tmp_path, *[{**LEAK, "digest": digest}] * 200, *[{**LEAK, "adapter": "finance@9"}] * 100)
    events, detectors = tmp_path / ".serving/events", measured_detectors(registry)
    assert read_risk(events, RiskBudgetSettings(), RATES, 0.5, NOW, detectors).notes == ()
    path = registry.files.path(made.reference.sha256)
    path.chmod(0o600)
    path.write_text("{}")
    found = read_risk(events, RiskBudgetSettings(), RATES, 0.5, NOW, detectors)
    (note,) = found.notes
    assert note.startswith("The shares of finance@1 are not corrected: ") and "policy report" in note
    assert one(found, "finance@1", "identifiers").flagged == 200


def test_tenant_row_adds_versions_of_other_detectors(tmp_path: Path) -> None:
    """Half of the answers have a detector that finds 40 %, the others one that nobody measured."""
    write_events(tmp_path, *[LEAK] * 10, *[CLEAN] * 990, *[{**CLEAN, "adapter": "finance@2"}] * 1000)
    report = read_risk(
        tmp_path / ".serving/events",
        RiskBudgetSettings(),
        RATES,
        0.5,
        NOW,
        lambda adapter, digest: {"identifiers": detector_of_recall(40, 60)} if adapter == "finance@1" else {},
    )
    risky, good, everything = (one(report, name, "identifiers") for name in ("finance@1", "finance@2", None))
    assert risky.corrected and risky.corrected.value == pytest.approx(0.025)
    assert good.corrected is None and good.share and everything.corrected
    assert everything.corrected.value == pytest.approx(0.0125)
    assert everything.corrected.high == pytest.approx((risky.corrected.high + good.share.high) / 2)


@pytest.mark.parametrize("risky", [9000 * [CLEAN], 9000 * [LEAK]], ids=["clean", "risky"])
def test_base_model_uses_up_no_tenants_budget(tmp_path: Path, risky: list[dict[str, Any]]) -> None:
    base = [{**each, "adapter": "smol"} for each in risky]
    write_events(tmp_path, *[LEAK] * 30, *[CLEAN] * 270, *base)
    report = read(tmp_path)
    everything, version, apart = (one(report, name, "identifiers") for name in (None, "finance@1", "smol"))
    assert (everything.answered, everything.flagged, everything.verdict) == (300, 30, "broken")
    assert everything.burnt == version.burnt == pytest.approx(10)
    assert (apart.answered, apart.burnt) == (9000, None) and "smol (base model) of finance" in apart.said


def test_empty_answers_do_not_thin_a_share(tmp_path: Path) -> None:
    """Tokens that make no text; two empty answers are joined by a line's end."""
    events = [
        event(n, answer_text=text, prompt_text="p", time=MORNING) for n, text in enumerate(("", "\n", "fine"))
    ]
    write(tmp_path / ".serving/events", *events)
    found = one(read(tmp_path), "finance@1", "identifiers")
    assert (found.answered, found.scored) == (1, 1)


def test_a_clock_that_is_behind_is_named(tmp_path: Path) -> None:
    write_events(tmp_path, *[{**LEAK, "time": NOW - timedelta(days=31)}] * 300, CLEAN)
    report = read(tmp_path)
    assert one(report, "finance@1", "identifiers").answered == 1
    assert report.notes[0].startswith("1 files of events were written in this window and begin before it")


def test_events_of_before_the_window_need_no_note(tmp_path: Path) -> None:
    before = NOW - timedelta(days=31)
    write_events(tmp_path, {**LEAK, "time": before})
    (old,) = (tmp_path / ".serving/events").iterdir()
    os.utime(old, (before.timestamp(), before.timestamp()))
    write_events(tmp_path, CLEAN, name="20260303T090000-1")
    assert read(tmp_path).notes == ()


def test_a_tenant_may_have_its_own_budget(tmp_path: Path) -> None:
    write_events(tmp_path, *[LEAK] * 30, *[CLEAN] * 270)
    own = {"finance": RiskBudget(identifiers=0.2)}
    assert one(read(tmp_path, tenants=own), "finance@1", "identifiers").verdict == "kept"


def test_a_clock_that_runs_ahead_is_named(tmp_path: Path) -> None:
    write_events(tmp_path, {**CLEAN, "time": NOW + timedelta(hours=2)})
    assert "clock runs ahead" in read(tmp_path).notes[0]


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="no events in .* yet"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"risk_budgets": {"tenants": {"nobody": {"insults": 0.1}}}}, "risk_budgets.tenants has 'nobody'"),
        (
            {"risk_budgets": {"insults": 0.07}},
            "risk_budgets.insults 0.07 no budget burns 14.4 times too fast",
        ),
        ({"risk_budgets": {"insults": 0}}, "greater than 0"),
    ],
)
def test_budgets_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    small_clone(tmp_path)
    write_params(tmp_path, changes)
    with pytest.raises(LoraOpsError, match=said):
        load_settings(tmp_path)


# --- incidents


@pytest.fixture
def broken(registry: Registry, package: Build, tmp_path: Path) -> Callable[..., RiskReport]:
    """Return the report of finance@1, whose answers broke the budget of identifiers."""
    registry.register(*package(1), actor="ana")
    digest = registry.get("finance@1").summary.content_digest

    def report(now: datetime = NOW, **changed: Any) -> RiskReport:
        shutil.rmtree(tmp_path / ".serving", ignore_errors=True)
        known = {"digest": digest, "time": now - timedelta(hours=3), **changed}
        write_events(tmp_path, *[{**LEAK, **known}] * 30, *[{**CLEAN, **known}] * 270)
        return read(tmp_path, now)

    return report


def test_a_broken_budget_is_filed_once_a_window(
    registry: Registry, broken: Callable[..., RiskReport], clock: Clock
) -> None:
    clock.move(days=2)
    first = file_incidents(registry, broken(), actor="ana")
    assert [(one.adapter, one.kind, one.flagged) for one in first.incidents] == [
        ("finance@1", "identifiers", 30)
    ]
    entries = registry.log.head().seq
    for days in (0, 7, 29):
        again = file_incidents(registry, broken(NOW + timedelta(days=days)), actor="ana")
        assert not again.incidents and "has an incident of its identifiers" in again.not_filed[0]
    assert registry.log.head().seq == entries
    (told,) = record(registry, "finance@1").risk.incidents
    assert told.summary.startswith("risk budget broken: finance@1 of finance, identifiers: 30 of 300")
    clock.move(days=31)
    assert len(file_incidents(registry, broken(NOW + timedelta(days=31)), actor="ana").incidents) == 1
    assert len(record(registry, "finance@1").risk.incidents) == 2


def test_another_run_beside_it_files_no_second_one(
    registry: Registry, broken: Callable[..., RiskReport], clock: Clock
) -> None:
    """Both have looked, and the first has filed: the second learns it inside its transaction."""
    clock.move(days=2)
    report = broken()
    assert file_incidents(registry, report, actor="ana").incidents
    late = risk_incidents._incident(report, report.broken[0])
    assert not risk_incidents._link(registry, registry.get("finance@1"), late, "ana")
    assert len(record(registry, "finance@1").risk.incidents) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"adapter": "finance@9"}, "finance@9"),
        ({"digest": "f" * 64}, "has other content"),
        ({"adapter": "tiny-random", "tenant": "-"}, "is the base model"),
    ],
)
def test_answers_of_no_known_version_are_not_filed(
    registry: Registry, broken: Callable[..., RiskReport], changed: dict[str, Any], said: str
) -> None:
    filed = file_incidents(registry, broken(**changed), actor="ana")
    assert filed.incidents == () and said in filed.not_filed[0]
    assert not record(registry, "finance@1").risk.incidents


def test_a_tenants_budget_falls_to_its_riskiest_version(
    registry: Registry, package: Build, tmp_path: Path
) -> None:
    """Four versions with 3 % each prove nothing alone, and together break 1 %."""
    digests = {}
    for seed in (1, 2, 3, 4):
        registry.register(*package(seed), actor="ana")
        digests[f"finance@{seed}"] = registry.get(f"finance@{seed}").summary.content_digest
    lines = [
        {**(LEAK if n < 3 + (seed == 3) else CLEAN), "adapter": name, "digest": digests[name]}
        for seed, name in enumerate(digests, 1)
        for n in range(110)
    ]
    write_events(tmp_path, *lines)
    report = read(tmp_path)
    assert [each.adapter for each in report.broken] == [None]
    filed = file_incidents(registry, report, actor="ana")
    assert [each.adapter for each in filed.incidents] == ["finance@3"]


def test_false_alarms_alone_file_no_incident(
    registry: Registry, broken: Callable[..., RiskReport], tmp_path: Path
) -> None:
    broken()
    report = read(tmp_path, measured={"identifiers": detector(20)})
    assert file_incidents(registry, report, actor="ana") == ((), ())
    assert not record(registry, "finance@1").risk.incidents


def test_tenants_incident_spares_what_errors_explain(
    registry: Registry, package: Build, tmp_path: Path
) -> None:
    """Together they are above 1 %, whatever the detector's errors are; each alone may be below it."""
    known = []
    for seed in (1, 2, 3):
        registry.register(*package(seed), actor="ana")
        name = f"finance@{seed}"
        known.append({"adapter": name, "digest": registry.get(name).summary.content_digest})
    lines = [{**each, **one} for one in known for each in [LEAK] * 6 + [CLEAN] * 294]
    write_events(tmp_path, *lines)
    report = read(tmp_path, measured={"identifiers": detector_of_recall(950, 50)})
    assert [each.adapter for each in report.broken] == [None]
    filed = file_incidents(registry, report, actor="ana")
    assert filed.incidents == () and filed.not_filed[0].startswith("No version alone is above the budget")


def test_incident_filed_by_hand_mutes_no_budget(
    registry: Registry, broken: Callable[..., RiskReport], clock: Clock, tmp_path: Path
) -> None:
    """Its file says all that the command's own would say."""
    clock.move(days=2)
    report = broken()
    path = tmp_path / "risk.json"
    path.write_text(risk_incidents._incident(report, report.broken[0]).model_dump_json())
    by_hand = make(registry, "finance@1", "incident", path, "a small thing")
    link_incident(registry, "finance@1", actor="ana", reason="a small thing", evidence=[by_hand])
    assert len(file_incidents(registry, report, actor="ben").incidents) == 1


def test_incident_of_a_clock_ahead_mutes_no_budget(
    registry: Registry, broken: Callable[..., RiskReport], clock: Clock
) -> None:
    clock.move(days=2)
    assert file_incidents(registry, broken(NOW + timedelta(days=25)), actor="ana").incidents
    filed = []
    for days in (0, 29, 31):
        clock.time = NOW + timedelta(days=days)
        filed.append(len(file_incidents(registry, broken(clock.time), actor="ana").incidents))
    assert filed == [1, 0, 1]


def test_refusal_of_one_team_stops_no_other(
    registry: Registry, package: Build, tmp_path: Path, owners: Owners
) -> None:
    known = []
    for seed, tenant in enumerate(("finance", "media"), 1):
        registry.register(*package(seed, tenant=tenant), actor="ana")
        version = registry.get(f"{tenant}@1")
        known.append({"tenant": tenant, "adapter": version.id, "digest": version.summary.content_digest})
    write_events(tmp_path, *[{**each, **one} for one in known for each in [LEAK] * 60 + [CLEAN] * 60])
    others = tuple(person for person in owners.default.people if person.id != "ana")
    registry.owners = owners.model_copy(
        update={"tenants": {"finance": owners.default.model_copy(update={"people": others})}}
    )
    filed = file_incidents(registry, read(tmp_path), actor="ana")
    assert [each.adapter for each in filed.incidents] == ["media@1"]
    assert len(filed.not_filed) == 1 and "finance@1" in filed.not_filed[0]


def test_lost_file_of_an_earlier_incident_stops_nothing(
    registry: Registry, broken: Callable[..., RiskReport], clock: Clock
) -> None:
    clock.move(days=2)
    (first,) = file_incidents(registry, broken(), actor="ana").incidents
    (told,) = record(registry, first.adapter).risk.incidents
    registry.files.path(told.sha256).unlink()
    again = file_incidents(registry, broken(), actor="ana")
    assert not again.incidents and "has an incident of its identifiers" in again.not_filed[0]


def test_command_files_incidents_and_ends_with_1(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_clone(tmp_path)
    shutil.copytree(staged, tmp_path / ".registry")
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ben.okafor")
    monkeypatch.setenv("COLUMNS", "220")
    with closing(open_registry(tmp_path)) as registry:
        digest = registry.get("finance@1", whole=False).summary.content_digest
    known = {"digest": digest, "time": datetime.now(UTC) - timedelta(hours=2)}
    write_events(tmp_path, *[{**RUDE, **known}] * 60, *[{**CLEAN, **known}] * 540)

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["monitor", "risk", *words])

    shown = run()
    assert (
        shown.exit_code == 1
        and "broken" in shown.output
        and " kept " in shown.output
        and "[" not in shown.output
    )
    told = json.loads(run("--json").stdout)
    assert told["filed"] == [] and told["broken"][0].startswith("finance@1 of finance, insults: 60 of 600")
    other = run("--tenant", "media", "--file", "--json")
    assert other.exit_code == 0 and json.loads(other.stdout)["filed"] == json.loads(other.stdout)["risks"] == []
    first = run("--tenant", "finance", "--file", "--json")
    assert first.exit_code == 1
    assert [one["adapter"] for one in json.loads(first.stdout)["filed"]] == ["finance@1"]
    assert "has an incident of its insults" in run("--file").output
    with closing(open_registry(tmp_path)) as registry:
        assert len(record(registry, "finance@1").risk.incidents) == 1

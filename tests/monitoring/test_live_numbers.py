"""The weekly page's numbers in the versions' records: what is quoted, what is filed once, what is refused."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_bytes
from lora_ops.monitoring.live_numbers import Filed, file_live_numbers
from lora_ops.monitoring.page import keep_numbers, open_page
from lora_ops.records.evidence import LiveEvidence
from lora_ops.registry import lifecycle
from lora_ops.registry.backends import open_registry
from lora_ops.registry.cards import record
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from tests.monitoring.kpi_files import write_events
from tests.monitoring.weekly_kit import NOW, weekly
from tests.registry.conftest import Story, build_package

KEPT = "reports/08_monitor.json"
PERCENTILES = ("p50", "p95", "p99")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, owners: Owners) -> Path:
    """A clone with a week of everything, and the numbers of its page."""
    root = weekly(tmp_path_factory.mktemp("weekly") / "clone", owners)
    (root / "reports").mkdir()
    keep_numbers(open_page(root, "7d"), str(root / KEPT))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "clone", symlinks=True)


@pytest.fixture
def opened(root: Path) -> Iterator[Registry]:
    with closing(open_registry(root)) as registry:
        yield registry


def file(registry: Registry, root: Path, actor: str = "ci") -> Filed:
    return file_live_numbers(registry, root / KEPT, root / ".serving/events", actor=actor)


def names(filed: Filed) -> list[str]:
    return [one.document.adapter for one in filed.reports]


def numbers(root: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((root / KEPT).read_text())
    return read


def change(root: Path, **parts: Any) -> None:
    """Write the page's numbers again with other parts."""
    (root / KEPT).write_text(json.dumps({**numbers(root), **parts}))


def later(root: Path, by: timedelta) -> None:
    """Make the page one of a window that ends later."""
    read = numbers(root)
    for part in (read, read["latency"]):
        for name in ("start", "end"):
            part[name] = (datetime.fromisoformat(part[name]) + by).isoformat()
    change(root, start=read["start"], end=read["end"], latency=read["latency"])


def test_record_quotes_the_page(opened: Registry, root: Path) -> None:
    before = opened.get("media@1").summary
    filed = file(opened, root)
    assert names(filed) == ["finance@2", "media@1"] and filed.not_filed == ()
    live = record(opened, "media@1").live
    assert live is not None
    page, found = numbers(root), live.numbers
    (row,) = [one for one in page["latency"]["adapters"] if one["adapter"] == "media@1"]
    assert (found.answered, found.unanswered, found.source) == (400, 0, "log")
    assert found.answer.model_dump() == {name: row["answer_seconds"][name] for name in ("count", *PERCENTILES)}
    assert found.first_token.p95 == row["first_token_seconds"]["p95"]
    assert found.gone.count == row["gone_seconds"]["count"]
    assert {one.objective: (one.share, one.verdict) for one in found.objectives} == {
        "availability": (1.0, "kept"),
        "latency": (row["within_objective"], "missed"),
    }
    assert {one.kind: (one.flagged, one.verdict) for one in found.risks} == {
        "identifiers": (24, "broken"),
        "insults": (0, "kept"),
    }
    (cost,) = [one for one in page["costs"]["versions"] if one["version"] == "media@1"]
    assert found.cost is not None
    assert (found.cost.total, found.cost.cpu_seconds) == (cost["total"], cost["cpu_seconds"])
    assert [(one.question, one.state) for one in found.verdicts] == [
        ("fast", "broken"),
        ("safe", "broken"),
        ("same", "broken"),
        ("worth", "look"),
    ]
    assert opened.get("media@1").summary == before
    assert record(opened, "healthcare@1").live is None


def test_entry_sums_up_its_own_version_alone(opened: Registry, root: Path) -> None:
    """The page's verdict on finance is of finance@2, and finance@1 left half of its requests unanswered."""
    latency, verdicts = numbers(root)["latency"], numbers(root)["verdicts"]
    (row,) = [one for one in latency["adapters"] if one["adapter"] == "finance@2"]
    own = {"tenant": "finance", "adapter": "finance@1", "share": 0.5, "least": 0.9}
    latency["adapters"] = [{**row, "adapter": "finance@1"}]
    latency["objectives"].append({**own, "objective": "availability", "verdict": "missed"})
    change(root, latency=latency)
    known = {"tenant": "finance", "adapter": "finance@1"}
    digest = opened.get("finance@1").summary.content_digest
    write_events(root, {**known, "digest": digest, "time": NOW - timedelta(hours=3)}, name="20260303T090000-1")
    (report,) = file(opened, root).reports
    assert [one["state"] for one in verdicts if one["tenant"] == "finance"] == ["ok"] * 4
    assert "availability missed" in report.summary and "ok" not in report.summary


def test_evidence_verifies_and_its_source_is_the_page(opened: Registry, root: Path) -> None:
    first = file(opened, root).reports[0]
    assert isinstance(first.document, LiveEvidence)
    assert first.document.source.sha256 == sha256_bytes((root / KEPT).read_bytes())
    assert verify(opened).problems == ()
    opened.files.path(first.reference.sha256).write_text("{}")
    assert len(verify(opened).problems) == 1
    shown = record(opened, "finance@2")
    assert shown.live is None and any("live_numbers" in note for note in shown.verdict.warnings)


def test_numbers_are_filed_once_a_day(opened: Registry, root: Path) -> None:
    assert len(file(opened, root).reports) == 2
    entries = opened.log.head().seq
    again = file(opened, root)
    assert again.reports == () and opened.log.head().seq == entries
    assert [text.partition(" of ")[0] for text in again.not_filed] == [
        "finance@2 has the numbers",
        "media@1 has the numbers",
    ]
    later(root, timedelta(days=7))
    opened.clock = lambda: NOW + timedelta(days=7)
    write_events(root, *week_later(opened), name="20260401T090000-1")
    assert names(file(opened, root)) == ["finance@2", "media@1"]


def week_later(registry: Registry) -> list[dict[str, Any]]:
    """Return an event of each version in the window of the next week."""
    return [
        {
            "time": NOW + timedelta(days=6),
            "adapter": name,
            "tenant": name.partition("@")[0],
            "digest": registry.get(name).summary.content_digest,
            "request_id": f"later {name}",
        }
        for name in ("finance@2", "media@1")
    ]


def test_window_of_another_length_is_another_record(opened: Registry, root: Path) -> None:
    file(opened, root)
    latency = numbers(root)["latency"]
    latency["start"] = (datetime.fromisoformat(latency["end"]) - timedelta(days=1)).isoformat()
    change(root, latency=latency)
    assert names(file(opened, root)) == ["finance@2", "media@1"]


def test_clock_ahead_keeps_no_later_numbers_silent(opened: Registry, root: Path) -> None:
    """A gateway's host told that the day was nearly over, and it had just begun."""
    morning = (NOW + timedelta(days=1)).replace(hour=6, minute=0, second=0)
    opened.clock = lambda: morning
    for hours in (17, -17):
        later(root, morning + timedelta(hours=max(hours, 0)) - datetime.fromisoformat(numbers(root)["end"]))
        assert names(file(opened, root)) == ["finance@2", "media@1"]


def test_approvals_of_a_canary_still_count(opened: Registry, root: Path) -> None:
    """Its numbers are no evidence of the canary: what production needs is what it needed before."""
    opened.register(root / "canary", build_package(root / "canary", 7, fresh_days=3650), actor="ana.silva")
    story = Story(opened, root / "evidence")
    story.to("finance@3", "canary")
    story.file("canary", about="finance@3")
    story.approve("finance@3")
    before, needed = record(opened, "finance@3"), missing_for(opened, "finance@3")
    latency = numbers(root)["latency"]
    (row,) = [one for one in latency["adapters"] if one["adapter"] == "finance@2"]
    latency["adapters"] = [{**row, "adapter": "finance@3"}]
    change(root, latency=latency)
    known = {"tenant": "finance", "adapter": "finance@3", "digest": before.content_digest}
    write_events(root, {**known, "time": NOW - timedelta(hours=3)}, name="20260303T090000-1")
    assert names(file(opened, root)) == ["finance@3"]
    after = record(opened, "finance@3")
    assert after.live is not None and [one.void for one in after.approvals] == [None, None]
    assert (after.approvals, after.state, after.verdict) == (before.approvals, before.state, before.verdict)
    assert missing_for(opened, "finance@3") == needed == ("production", [])
    promoted = lifecycle.promote(opened, "finance@3", "production", actor="ci", reason="two agreed")
    assert promoted.state == "production" and verify(opened).problems == ()


def test_refusal_of_one_team_stops_no_other_numbers(opened: Registry, root: Path, owners: Owners) -> None:
    others = tuple(person for person in owners.default.people if person.id != "ci")
    opened.owners = owners.model_copy(
        update={"tenants": {"finance": owners.default.model_copy(update={"people": others})}}
    )
    filed = file(opened, root)
    assert names(filed) == ["media@1"]
    assert len(filed.not_filed) == 1 and "ci may not file evidence of finance@2" in filed.not_filed[0]


def test_unknown_versions_and_contents_are_named(opened: Registry, root: Path) -> None:
    """Another content under a name, a version that the registry lacks, a gateway elsewhere, the base model."""
    latency = numbers(root)["latency"]
    (row,) = [one for one in latency["adapters"] if one["adapter"] == "media@1"]
    latency["adapters"] += [
        {**row, "adapter": "media@9"},
        {**row, "adapter": "media@8"},
        {**row, "tenant": "-", "adapter": "tiny-random"},
        {**row, "tenant": "other"},
    ]
    change(root, latency=latency)
    known = {"time": NOW - timedelta(hours=3), "tenant": "media", "digest": "f" * 64}
    unknown = [{**known, "adapter": name, "request_id": name} for name in ("media@1", "media@9")]
    write_events(root, *unknown, name="20260303T090000-1")
    filed = file(opened, root)
    assert names(filed) == ["finance@2"]
    other, lacks, nobody = filed.not_filed
    assert "media@1 that gave these answers has other content (ffffffffffff…)" in other
    assert "media@9" in lacks and "No event here says which content answered as media@8" in nobody


def test_parts_that_cannot_be_read_are_not_in_it(opened: Registry, root: Path) -> None:
    change(root, risk="No risk.", costs="No costs.", notes=["Risk: No risk."])
    file(opened, root)
    live = record(opened, "finance@2").live
    assert live is not None
    assert (live.numbers.risks, live.numbers.risk_end, live.numbers.cost) == ((), None, None)
    assert live.numbers.notes == ("Risk: No risk.",)


def test_risk_of_other_content_is_not_in_it(opened: Registry, root: Path) -> None:
    """It answered under the same name before this window, and in that of the risk budgets."""
    risk = numbers(root)["risk"]
    mine = [one for one in risk["risks"] if one["adapter"] == "finance@2"]
    change(root, risk={**risk, "risks": [{**one, "digest": "f" * 64} for one in mine] + risk["risks"]})
    file(opened, root)
    live = record(opened, "finance@2").live
    assert live is not None and [one.kind for one in live.numbers.risks] == ["identifiers", "insults"]


def test_page_without_latency_files_nothing(opened: Registry, root: Path) -> None:
    change(root, latency="The events can't be read.")
    said = "The page does not know which versions were asked. The events can't be read."
    assert file(opened, root) == ((), (said,))


def test_version_that_answers_nobody_has_no_worth(opened: Registry, root: Path) -> None:
    change(root, drift={})
    file(opened, root)
    live = record(opened, "finance@2").live
    assert live is not None and [one.question for one in live.numbers.verdicts] == ["fast", "safe"]


def test_nobody_files_live_numbers_by_hand(opened: Registry, root: Path) -> None:
    with pytest.raises(LoraOpsError, match="lora-ops monitor report --file"):
        make(opened, "finance@2", "live_numbers", root / KEPT)


def test_command_files_and_show_tells(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is made by its notebook."""
    for name, value in (("LORA_OPS_ROOT", str(root)), ("WANDB_MODE", "disabled"), ("COLUMNS", "220")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)

    def run(*words: str) -> str:
        return CliRunner().invoke(app, words).stdout

    said = run("monitor", "report", "--tenant", "finance", "--file", "--actor", "ci")
    assert "Filed in the record of finance@2: 20" in said and "Not filed" not in said
    live = json.loads(run("registry", "show", "finance@2", "--json"))["live"]
    kept = root / "reports/finance/08_monitor.json"
    (row,) = json.loads(kept.read_text())["latency"]["adapters"]
    assert live["numbers"]["answered"] == row["answered"] >= 400
    shown = run("registry", "show", "finance@2")
    assert f"{row['answered']} requests, 100.00% answered" in shown and "first token P50" in shown
    (leaks, _) = live["numbers"]["risks"]
    share = f"0.00% (0.00% to {leaks['share']['high']:.2%}), budget 1.00%: kept"
    assert f"0 of {leaks['scored']} scored answers, {share}" in shown
    assert "device seconds" in shown and "live, worth?" in shown

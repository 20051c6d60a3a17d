"""The weekly page, notebooks/08_monitor: its verdicts, and what it says where there is nothing to show."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.display import Markdown
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.monitoring import page, page_plots
from lora_ops.monitoring.content_risk import RiskReport
from lora_ops.monitoring.findings import Findings, read_findings
from lora_ops.monitoring.kpi_report import KpiReport, Unmeasured
from lora_ops.monitoring.latency import LatencyReport, from_log
from lora_ops.monitoring.verdicts import Verdict, verdicts
from lora_ops.plots import Plot
from lora_ops.records.evidence import DriftEvidence
from lora_ops.registry import lifecycle
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import Report, last_document
from lora_ops.serving.label_cap import NOBODY
from tests.conftest import small_clone
from tests.monitoring.kpi_files import write_events
from tests.monitoring.weekly_kit import NOW, weekly

PLOTS = (
    page_plots.plot_verdicts,
    page_plots.plot_latency,
    page_plots.plot_budgets,
    page_plots.plot_burn,
    page_plots.plot_drift,
    page_plots.plot_worth,
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, owners: Owners) -> Path:
    return weekly(tmp_path_factory.mktemp("weekly") / "clone", owners)


@pytest.fixture(scope="module")
def found(clone: Path) -> Findings:
    return read_findings(clone, "7d")


def of(found: Findings, tenant: str, question: str) -> Verdict:
    (one,) = [each for each in verdicts(found) if (each.tenant, each.question) == (tenant, question)]
    return one


def uplifts(found: Findings, **changes: Any) -> Findings:
    """Return findings whose uplifts have other values."""
    assert isinstance(found.kpis, KpiReport)
    changed = [one.model_copy(update=changes) for one in found.kpis.uplifts]
    return replace(found, kpis=found.kpis._replace(uplifts=changed))


def test_verdicts_are_those_of_the_commands(found: Findings) -> None:
    states = {(one.tenant, one.question): one.state for one in verdicts(found)}
    assert {tenant: [states[tenant, one] for one in page.QUESTIONS] for tenant in found.tenants} == {
        "finance": ["ok", "ok", "ok", "ok"],
        "healthcare": ["look", "look", "look", "look"],
        "media": ["broken", "broken", "broken", "look"],
    }
    slow = of(found, "media", "fast")
    assert (slow.number, slow.budget) == (pytest.approx(0.925), 0.95)
    assert slow.said.startswith("media@1 of media gave 30 of 400 answers after more than 5 s")
    assert slow.runbook == "runbooks/README.md#latencybudgetburn"
    leaks = of(found, "media", "safe")
    assert (leaks.number, leaks.budget, leaks.runbook[-21:]) == (0.06, 0.01, "identifiersbudgetburn")
    assert "drifted (next token: " in of(found, "media", "same").said
    assert (
        "never measured for drift: `lora-ops monitor drift healthcare@1`"
        in of(found, "healthcare", "same").said
    )
    worth = of(found, "finance", "worth")
    assert (
        "finance@2 rpm +1.0" in worth.said and "beside finance@1 (before/after): better; it cost" in worth.said
    )


def test_few_misses_are_for_a_person_to_look_at(found: Findings) -> None:
    few = replace(found, objectives=found.objectives.model_copy(update={"minimum_events": 31}))
    verdict = of(few, "media", "fast")
    assert verdict.state == "look" and "fewer than 31 requests missed: too few to decide" in verdict.said


def test_clients_that_gave_up_late_miss_the_objective(found: Findings, tmp_path: Path) -> None:
    """Who leaves a version that hangs gets neither an answer nor an error, and what is left looks fast."""
    assert isinstance(found.latency, LatencyReport)
    states = [200] * 80 + [499] * 20
    known = {"adapter": "finance@2", "time": NOW}
    write_events(tmp_path, *({**known, "status": one, "seconds": 1 if one == 200 else 40} for one in states))
    read = from_log(tmp_path / ".serving/events", 3600, NOW)
    slow = replace(found, latency=read)
    verdict = of(slow, "finance", "fast")
    assert verdict.state == "broken"
    assert "gave 0 of 80 answers after more than 5 s, and 20 clients left after as long without" in verdict.said
    assert "80.00% were in time" in verdict.said
    patient = replace(read.adapters[0], gone=read.adapters[0].per_token)
    assert of(replace(found, latency=replace(read, adapters=(patient,))), "finance", "fast").state == "ok"


def test_version_that_answered_nobody_is_not_fast(found: Findings, tmp_path: Path) -> None:
    """All its clients gave up before the limit; what the version before it answered says nothing of it."""
    before = [{"adapter": "finance@1", "time": NOW, "status": 200, "seconds": 1} for _ in range(100)]
    hangs = [{"adapter": "finance@2", "time": NOW, "status": 499, "seconds": 4} for _ in range(100)]
    write_events(tmp_path, *before, *hangs)
    verdict = of(replace(found, latency=from_log(tmp_path / ".serving/events", 3600, NOW)), "finance", "fast")
    assert verdict.state == "look"
    assert "finance@2 answers now, and gave nobody a whole answer in this window" in verdict.said


def test_an_old_measurement_does_not_speak_of_this_week(found: Findings) -> None:
    later = replace(found.window, start=NOW - timedelta(hours=1))
    assert of(replace(found, window=later), "finance", "same").state == "look"
    assert of(replace(found, window=later), "media", "same").state == "broken"


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({"difference": -1.0, "low": -2.0, "high": -0.5}, "broken", "worse"),
        ({"low": -0.1, "high": 2.0}, "look", "not clear"),
        ({"simulated": True}, "look", "SIMULATED: finance@2"),
        (
            {"difference": None, "said": "too few users"},
            "look",
            "No uplift of finance@2 is known (ctr: too few users)",
        ),
        ({"adapter": "finance@1"}, "look", "No uplift of finance@2 is known"),
    ],
)
def test_worth_is_what_users_show(found: Findings, changes: dict[str, Any], state: str, said: str) -> None:
    verdict = of(uplifts(found, **changes), "finance", "worth")
    assert verdict.state == state and said in verdict.said


def test_simulated_kpis_hide_no_measured_ones(found: Findings) -> None:
    """Neither a canary of the same KPI, nor a larger uplift of another one."""
    assert isinstance(found.kpis, KpiReport)
    (one, *_) = [each for each in found.kpis.uplifts if each.kind == "rpm"]
    worse = one.model_copy(update={"difference": -0.1, "low": -0.2, "high": -0.05})
    canary = one.model_copy(update={"method": "canary", "simulated": True})
    other = worse.model_copy(update={"kind": "csat", "difference": -9.0, "simulated": True})
    mixed = replace(found, kpis=found.kpis._replace(uplifts=[canary, other, worse]))
    verdict = of(mixed, "finance", "worth")
    assert verdict.state == "broken" and verdict.said.startswith("finance@2 rpm -0.1")


def test_a_better_kpi_that_nobody_measures_any_more_is_old(found: Findings) -> None:
    assert isinstance(found.kpis, KpiReport)
    late = found.kpis._replace(unmeasured=[Unmeasured("finance@2", "production", NOW, 9)])
    verdict = of(replace(found, kpis=late), "finance", "worth")
    assert verdict.state == "look" and "finance@2 has had no KPI for 9 weeks" in verdict.said


def test_numbers_of_other_versions_are_no_verdict(found: Findings) -> None:
    """Of the one before it, or of a version of the same name that an earlier registry had."""
    answering = found.answering["finance"]
    later = replace(found, answering={"finance": answering._replace(adapter="finance@3")})
    fast, safe = of(later, "finance", "fast"), of(later, "finance", "safe")
    assert fast.state == "look" and "finance@3 answers now, and nobody asked it" in fast.said
    assert safe.state == "look" and "finance@3 answers now, and 0 of its 0 answers were scored" in safe.said
    again = replace(found, answering={"finance": answering._replace(digest="c" * 64)})
    assert of(again, "finance", "safe").state == "look" and of(again, "finance", "fast").state == "ok"


def test_answers_of_the_version_must_be_scored(found: Findings) -> None:
    """Thousands of scored answers of the version before say nothing of one that nobody looked at."""
    assert isinstance(found.risk, RiskReport)
    risks = [
        replace(one, scored=100) if one.adapter == "finance@2" and one.kind == "insults" else one
        for one in found.risk.risks
    ]
    safe = of(replace(found, risk=replace(found.risk, risks=tuple(risks))), "finance", "safe")
    assert safe.state == "look" and "100 of its 4" in safe.said


def test_a_measurement_of_the_future_is_not_believed(found: Findings) -> None:
    answering = found.answering["finance"]
    assert not isinstance(answering.drift, str)
    ahead = answering.drift.model_copy(update={"made_at": NOW + timedelta(days=900)})
    later = replace(found, answering={"finance": answering._replace(drift=ahead)})
    verdict = of(later, "finance", "same")
    assert verdict.state == "look" and "which has not come yet" in verdict.said


def test_drift_beside_another_version_hides_none(clone: Path, tmp_path: Path) -> None:
    """Beside another version far more is allowed, so that its verdict says nothing of this one's past."""
    root = Path(shutil.copytree(clone, tmp_path / "clone", symlinks=True))
    with closing(open_registry(root)) as registry:
        found = last_document(registry, registry.get("media@1"), "drift")
        assert isinstance(found, DriftEvidence) and found.verdict == "drifted"
        beside = found.model_copy(update={"against": "media@7", "verdict": "none", "said": "no drift"})
        content = registry.files.path(found.source.sha256).read_bytes()
        lifecycle.file_evidence(registry, "media@1", Report(beside, content, "drift"), actor="ci")
    assert of(read_findings(root, "7d", "media"), "media", "same").state == "broken"


def test_a_canary_counts_before_days(found: Findings) -> None:
    assert isinstance(found.kpis, KpiReport)
    canary = found.kpis.uplifts[0].model_copy(
        update={"method": "canary", "difference": -1, "low": -2, "high": -0.5}
    )
    both = replace(found, kpis=found.kpis._replace(uplifts=[*found.kpis.uplifts, canary]))
    assert "(canary): worse" in of(both, "finance", "worth").said


def test_a_version_that_nobody_measures_is_to_be_retired(found: Findings) -> None:
    assert isinstance(found.kpis, KpiReport)
    late = Unmeasured("media@1", "production", NOW, 9)
    verdict = of(replace(found, kpis=found.kpis._replace(unmeasured=[late])), "media", "worth")
    assert "media@1 has had no KPI for 9 weeks: measure it or retire it" in verdict.said


def test_requests_of_no_tenant_have_no_drift_and_no_worth(found: Findings) -> None:
    told = [one.question for one in verdicts(replace(found, tenants=(NOBODY,))) if one.tenant == NOBODY]
    assert told == ["fast", "safe"]


def test_decision_has_the_worst_of_each_question(clone: Path) -> None:
    shown = page.open_page(clone, "7d")
    fast, safe, same, worth = page.decision(shown)
    assert fast.startswith("BROKEN. Is it fast? media@1 of media gave 30 of 400")
    assert fast.endswith("Open runbooks/README.md#latencybudgetburn.")
    assert safe.startswith("BROKEN. Is it safe? ") and same.startswith("BROKEN. Is it the same as before? ")
    assert worth.startswith("LOOK. ") and "The same state: media." in worth
    assert "Prometheus at http://127.0.0.1:9 can't be asked" in next(page.notes(shown))


def test_page_of_one_tenant_has_its_parts_alone(clone: Path) -> None:
    mine = page.open_page(clone, "7d", "finance")
    assert {one.tenant for one in mine.verdicts} == {"finance"}
    assert all(line.startswith("OK. ") for line in page.decision(mine))
    assert list(page.latency_table(mine)["adapter"]) == ["finance@2"]
    assert all(isinstance(plot(mine), Plot) for plot in PLOTS)
    text = json.dumps(page.numbers(mine))
    assert "media" not in text and "healthcare" not in text
    lonely = page.open_page(clone, "7d", "healthcare")
    assert [isinstance(plot(lonely), Plot) for plot in PLOTS] == [True, *[False] * 5]
    assert "never measured for drift" in shown(page_plots.plot_drift(lonely))
    assert "No uplift of a version that answers is known" in shown(page_plots.plot_worth(lonely))
    assert "healthcare has no KPIs" in next(page.worth_said(lonely))
    assert "No adapter gave an answer" in shown(page_plots.plot_latency(lonely))


def shown(what: Plot | Markdown) -> str:
    assert isinstance(what, Markdown)
    return str(what.data)


def test_page_of_nothing_says_so_in_sentences(tmp_path: Path) -> None:
    """No gateway, no registry and no Prometheus: each part is a sentence, and none is a plot."""
    empty = page.open_page(small_clone(tmp_path / "new"), "7d")
    sentences = [shown(plot(empty)) for plot in PLOTS]
    assert "There are no events in" in sentences[1] and "No version answers" in sentences[4]
    assert "There is no registry in" in sentences[5]
    notes = "\n".join(page.notes(empty))
    assert all(f"{part}: " in notes for part in ("Latency", "Risk", "KPIs"))
    assert len(list(page.decision(empty))) == 4
    assert all(line.startswith("LOOK. ") for line in page.decision(empty))
    assert page.numbers(empty)["verdicts"] == [] and page.latency_table(empty).empty
    told = page.numbers(empty)["notes"]  # on the terminal, too: a job in a wrong folder looks healthy else
    assert [one.split(":")[0] for one in told[:3]] == ["Latency", "Risk", "KPIs"]


def test_numbers_that_cannot_be_kept_are_an_error(tmp_path: Path, clone: Path) -> None:
    with pytest.raises(LoraOpsError, match="can't be written: No such file"):
        page.keep_numbers(page.open_page(clone, "7d", "finance"), str(tmp_path / "missing" / "numbers.json"))


@pytest.mark.parametrize(
    ("words", "error"), [(["--window", "a week"], LoraOpsError), (["--tenant", "x"], NotFound)]
)
def test_report_refuses_what_it_does_not_know(
    clone: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[Exception]
) -> None:
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone))
    assert isinstance(CliRunner().invoke(app, ["monitor", "report", *words]).exception, error)


@pytest.fixture
def inside(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(clone)
    yield clone


def test_report_makes_the_page_by_its_notebook(inside: Path) -> None:
    """It ends with 1, since a verdict is broken, and its numbers are those of the page."""
    done = CliRunner().invoke(app, ["monitor", "report", "--file", "--actor", "ci", "--json"])
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert told["page"] == str(inside / "reports/08_monitor.html") and told["tracking_problem"] is None
    assert {one["state"] for one in told["verdicts"] if one["tenant"] == "finance"} == {"ok"}
    assert [one["adapter"] for one in told["filed"]] == ["finance@2", "media@1"] and told["not_filed"] == []
    assert told["head_remembered"]
    cells = nbformat.read(inside / "reports/08_monitor.ipynb", as_version=4).cells
    outputs = [one for cell in cells for one in cell.get("outputs", [])]
    assert sum("image/png" in one.get("data", {}) for one in outputs) == len(PLOTS)
    top = Path(told["page"]).read_text().partition("The verdict")[0]
    assert "BROKEN. Is it fast? media@1 of media gave 30 of 400" in top

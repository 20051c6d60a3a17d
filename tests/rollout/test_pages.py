"""The pages of a rollout: notebooks/06_shadow and 07_canary over what gateway and registry kept."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.notebooks import run_notebook
from lora_ops.registry import rollouts
from lora_ops.registry.owners import Owners
from lora_ops.rollout import canary_page, shadow_page
from lora_ops.rollout.controller import abort, start
from lora_ops.rollout.sequence_plots import MetricLooks, Seen
from lora_ops.settings.params import load_settings
from tests.conftest import ROOT
from tests.registry.conftest import owners  # noqa: F401 - a fixture
from tests.rollout.recorded import Recorded, recording


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, owners: Owners) -> Path:  # noqa: F811
    """A clone whose finance@2 waits for approvals, after an attempt that was ended."""
    root = tmp_path_factory.mktemp("pages") / "clone"
    with recording(root, owners) as recorded:
        recorded.start()
        recorded.asked_again(10, 1)
        found = rollouts.rollout_of(recorded.registry, "finance@2")
        assert found
        abort(recorded.registry, found, actor="oncall", reason="the wrong margins")
        recorded.to_ready()
    return root


@pytest.fixture
def recorded(tmp_path: Path, owners: Owners) -> Iterator[Recorded]:  # noqa: F811
    """A clone whose finance@2 is validated, and whose shadow may be replayed."""
    with recording(tmp_path / "clone", owners, {"rollout.accept_replay": True}) as made:
        yield made


def said(lines: Iterator[str]) -> str:
    return " ".join(lines)


def outputs(notebook: Path) -> tuple[str, int]:
    """Return all text that a notebook shows, and its number of plots."""
    shown = [one for cell in nbformat.read(notebook, as_version=4).cells for one in cell.get("outputs", [])]
    texts = [one.get("text", "") + one.get("data", {}).get("text/markdown", "") for one in shown]
    return "\n".join(texts), sum("image/png" in one.get("data", {}) for one in shown)


def test_shadow_page_shows_what_was_asked_and_found(ready: Path) -> None:
    page = shadow_page.open_shadow(ready, "finance")
    asked = said(shadow_page.asked(page))
    assert "120 pairs of 120 users or requests came in 5 different hours; 60 pairs in 3 hours" in asked
    assert "finance@2 (attempt 2 of 2) is compared with finance@1" in asked
    assert shadow_page.heading(page) == "# LIVE TRAFFIC"
    looks = {one.name: one for one in shadow_page.metric_looks(page)}
    assert set(looks) == {"errors", "task", "insults", "identifiers", "tokens"}
    errors = looks["errors"].seen
    assert [one.units for one in errors] == sorted(one.units for one in errors) and errors[-1].units == 120
    assert errors[0].high > errors[-1].high and errors[-1].non_inferior >= 5
    assert looks["tokens"].margin == pytest.approx(1.0)  # as params.yaml says it
    assert "12 of 120 judged pairs differ. Texts of 'finance' are not kept" in shadow_page.said_of_differing(
        page
    )
    assert list(shadow_page.by_hour(page)["pairs"]) == [29, 30, 30, 30, 1]


def test_shadow_page_needs_no_files_once_it_is_filed(ready: Path, tmp_path: Path) -> None:
    with_files = shadow_page.open_shadow(ready, "finance")
    shutil.copytree(ready, tmp_path / "clone", symlinks=True)
    shutil.rmtree(tmp_path / "clone/.serving")
    page = shadow_page.open_shadow(tmp_path / "clone", "finance")
    assert page.last == with_files.last and page.frozen
    assert f"the report that was filed ({page.frozen.sha256[:12]}…)" in said(shadow_page.asked(page))


def test_pages_show_an_earlier_attempt(ready: Path) -> None:
    shadow = shadow_page.open_shadow(ready, "finance", "finance@2", 1)
    assert shadow.last and shadow.last.answered == 10
    decided = said(shadow_page.decision(shadow))
    assert "'aborted'" in decided and "the wrong margins" in decided and "attempt 2 is the last one" in decided
    canary = canary_page.open_canary(ready, "finance", "finance@2", 1)
    assert canary.last is None and "There has been no canary in this attempt" in said(canary_page.asked(canary))


def test_canary_page_shows_steps_and_decisions(ready: Path) -> None:
    page = canary_page.open_canary(ready, "finance")
    assert [one.percent for one in page.steps] == [5, 50, 95]
    assert list(canary_page.step_table(page)["control users"])[:2] == [240, 120]
    assert list(canary_page.decision_table(page)["to"])[-3:] == ["canary 5 %", "canary 50 %", "ready 95 %"]
    looks = {one.name: one for one in canary_page.guardrail_looks(page)}
    assert looks["P95 latency"].decided(0.2) and looks["P95 latency"].margin == 3.0
    assert "more users" in canary_page.forecast_table(page)["verdict"][0]
    assert canary_page.assignment(page).startswith("Assignment as expected")
    assert "Nobody has approved it yet." in said(canary_page.people(page))
    assert "approve (`lora-ops registry approve finance@2" in said(canary_page.people(page))
    assert "two people" in said(canary_page.decision(page)) or "needs:" in said(canary_page.decision(page))
    assert "worse by more than its margins: errors up to +0.200" in said(canary_page.goes_back(page))


def test_canary_page_says_that_lines_are_missing(ready: Path, tmp_path: Path) -> None:
    """The audit log keeps by how many users each step was decided."""
    assert "have all users" in said(canary_page.unlike_log(canary_page.open_canary(ready, "finance")))
    shutil.copytree(ready, tmp_path / "clone", symlinks=True)
    (file,) = (tmp_path / "clone/.serving/events").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for place, line in enumerate(lines) if place % 3))
    page = canary_page.open_canary(tmp_path / "clone", "finance")
    assert "lines are missing in" in said(canary_page.unlike_log(page))


def test_replayed_pairs_are_called_no_traffic(recorded: Recorded) -> None:
    recorded.start()
    recorded.asked_again(80, 0.1, replayed=True)
    page = shadow_page.open_shadow(recorded.root, "finance")
    assert shadow_page.heading(page) == "# REPLAYED: NO TRAFFIC"
    assert said(shadow_page.decision(page)).startswith(
        "REPLAYED, which is no traffic. The shadow of finance@2 says"
    )
    assert "80 pairs of 80 users or requests came; 60 were asked for" in said(shadow_page.asked(page))


def test_pairs_that_are_worse_come_first_with_their_texts(recorded: Recorded) -> None:
    recorded.start()
    recorded.asked_again(10, 1)
    texts = {"prompt_text": "AIRBNB <b>", "production_text": "Travel", "shadow_text": "Food"}
    recorded.asked_again(1, 0.1, shadow_task=0.0, agreement=0.0, **texts)
    page = shadow_page.open_shadow(recorded.root, "finance")
    table = shadow_page.differing(page)
    assert list(table["task"]) == ["1 → 0", "1 → 1"] and "prompt text" not in table
    kept = shadow_page.differing(shadow_page.ShadowPage(**{**vars(page), "keeps_text": True}))
    assert kept["prompt text"][kept.index[0]] == "AIRBNB <b>" and kept["shadow text"][kept.index[0]] == "Food"


def test_pages_without_a_rollout_say_what_to_do(recorded: Recorded) -> None:
    for decided in (
        shadow_page.decision(shadow_page.open_shadow(recorded.root, "finance")),
        canary_page.decision(canary_page.open_canary(recorded.root, "finance")),
    ):
        assert said(decided).startswith("'finance' has had no rollout yet: `lora-ops rollout start finance@N")
    recorded.start()
    page = shadow_page.open_shadow(recorded.root, "finance")
    assert "No pair has come to" in said(shadow_page.asked(page)) and "rollout replay finance@2" in said(
        shadow_page.asked(page)
    )
    assert shadow_page.heading(page) == "# NO PAIRS YET"


def test_pages_of_a_first_version_compare_with_nobody(tmp_path: Path, owners: Owners) -> None:  # noqa: F811
    with recording(tmp_path / "clone", owners, is_first=True) as made:
        settings = load_settings(made.root).rollout
        start(made.registry, "finance@1", settings, actor="oncall", reason="the first one")
        shadow = shadow_page.open_shadow(made.root, "finance")
        canary = canary_page.open_canary(made.root, "finance")
    assert shadow_page.heading(shadow) == "# NO PAIRS: A FIRST VERSION"
    assert "rests on requests that ask for finance@1 by its name" in said(shadow_page.asked(shadow))
    assert "requests for its name are its shadow" in said(shadow_page.decision(shadow))
    assert "there is no control group, and its guardrails are limits" in said(canary_page.asked(canary))


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        ({"tenant": "nobody"}, NotFound, "no tenant 'nobody'"),
        ({"version": "finance@9"}, NotFound, "finance@9"),
        ({"version": "finance@production"}, LoraOpsError, "name the exact one"),
        ({"tenant": "media", "version": "finance@2"}, LoraOpsError, "finance@2 is no version of 'media'"),
        ({"attempt": 3}, NotFound, "has no attempt 3: it had 2 attempts, counted from 1"),
        ({"attempt": 0}, NotFound, "has no attempt 0"),
        ({"folder": "elsewhere"}, NotFound, "There is no folder .*elsewhere: name the one with the gateway's"),
    ],
)
def test_pages_name_a_parameter_that_does_not_fit(
    ready: Path, given: dict[str, Any], kind: type[LoraOpsError], sentence: str
) -> None:
    for page in (shadow_page.open_shadow, canary_page.open_canary):
        with pytest.raises(kind, match=sentence):
            page(ready, **{"tenant": "finance", **given})  # type: ignore[operator]


def test_report_command_writes_both_pages(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_OPS_ROOT", str(ready))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = CliRunner().invoke(app, ["rollout", "report", "finance@2", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert (told["adapter"], told["attempt"], told["phase"], told["notes"]) == ("finance@2", 2, "ready", [])
    shadow, canary = (Path(page) for page in told["pages"])
    assert shadow == ready / "reports/finance/rollout/finance@2-attempt-2/06_shadow.html"
    text, plots = outputs(shadow.with_suffix(".ipynb"))
    assert "LIVE TRAFFIC" in text and "The shadow of finance@2 (attempt 2 of 2) says advance" in text
    assert plots == 4
    text, plots = outputs(canary.with_suffix(".ipynb"))
    assert "The canary of finance@2 (attempt 2 of 2) says advance" in text and plots == 2
    assert "finance@2, 20" in canary.read_text()  # whose page it is, and of when


def test_report_command_says_how_to_begin(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_OPS_ROOT", str(recorded.root))
    done = CliRunner().invoke(app, ["rollout", "report", "finance@2"])
    assert isinstance(done.exception, NotFound)
    assert "finance@2 has no rollout: `lora-ops rollout start finance@2 --reason TEXT`" in str(done.exception)


@pytest.mark.parametrize("name", ["06_shadow", "07_canary"])
def test_rollout_notebooks_run_before_any_rollout(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LORA_OPS_ROOT", str(recorded.root))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    output = tmp_path / f"{name}.ipynb"
    run_notebook(ROOT / f"notebooks/{name}.ipynb", output, {}, recorded.root)
    text, plots = outputs(output)
    assert "'finance' has had no rollout yet" in text and plots in (2, 4)


def test_metric_that_is_not_decided_says_so() -> None:
    looks = MetricLooks("errors", "share of requests", (Seen(9, -0.1, 0.4, 0.5, 1.5),), 0.02)
    assert looks.decided(0.05) is None
    assert looks.sentence(0.05, "users").startswith("errors: not decided. It has evidence of 1.5 of the 20")
    worse = looks._replace(seen=(*looks.seen, Seen(40, 0.1, 0.4, 25.0, 0.1)))
    assert worse.sentence(0.05, "users").startswith("errors: worse than allowed, shown since 40 users")


def test_metric_that_got_worse_is_called_worse() -> None:
    """It was not worse at first: that verdict is over, and its interval with it."""
    good, bad = Seen(60, -0.06, 0.06, 0.2, 900.0), Seen(120, -1.0, 1.0, 2e6, 40.0)
    looks = MetricLooks("errors", "share of requests", (good, Seen(90, -0.05, 0.06, 30.0, 60.0), bad), 0.02)
    assert looks.decided(0.05) == (90, "worse") and looks.has_changed
    assert looks.sentence(0.05, "users").startswith(
        "errors: worse than allowed, shown since 90 users; after 120"
    )
    assert "is not the same all the time" in looks.sentence(0.05, "users")
    assert not looks._replace(seen=(good,)).has_changed

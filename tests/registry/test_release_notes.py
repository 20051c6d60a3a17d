"""Release notes: people fill in what only they know, and no version goes to production without it."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.gate import gate_rows
from lora_ops.gates.regression import regression_report
from lora_ops.gates.release import approvals_text, draft, fields_path, read_fields, release_report
from lora_ops.gates.report import read_shown, report_page
from lora_ops.gates.rows import GateRow
from lora_ops.registry import lifecycle
from lora_ops.registry.reports import Report, make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.settings.release import ReleaseFields

from ..gates.sources import BASE, source, suite
from .conftest import AUTHOR, Build, Story

NAMES = tuple(ReleaseFields.model_fields)


def fill(root: Path, version: str, **fields: str) -> Path:
    path = fields_path(root, version)
    path.parent.mkdir(exist_ok=True)
    said = {name: f"Eve wrote a sentence about {name}." for name in NAMES} | fields
    path.write_text("".join(f'{name}: "{value}"\n' for name, value in said.items()))
    return path


@pytest.fixture
def canary(registry: Registry, package: Build, story: Story) -> Registry:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "canary")
    story.file("canary")
    registry.least = registry.least.model_copy(update={"release_notes": True})
    return registry


def test_draft_leaves_every_field_to_people(tmp_path: Path) -> None:
    path = draft(tmp_path, "finance@1")
    assert all(f'{name}: ""' in path.read_text() for name in NAMES)
    with pytest.raises(Refused, match="nobody has written summary, known_limits"):
        read_fields(tmp_path, "finance@1")
    with pytest.raises(LoraOpsError, match="exists already"):
        draft(tmp_path, "finance@1")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trust": ""}, "nobody has written trust"),
        ({"trust": "   "}, "nobody has written trust"),
        ({"trust": "n/a"}, "trust has fewer than 10 letters"),
        ({"trust": "…………………………"}, "trust has fewer than 10 letters"),
        ({"turst": "A sentence that says it."}, "check its spelling"),
    ],
)
def test_read_fields_refuses_what_says_nothing(tmp_path: Path, fields: dict[str, str], said: str) -> None:
    fill(tmp_path, "finance@1", **fields)
    with pytest.raises(LoraOpsError, match=said):
        read_fields(tmp_path, "finance@1")


@pytest.mark.parametrize("content", ["[1, 2]", "summary: [", "- x"])
def test_read_fields_refuses_another_form(tmp_path: Path, content: str) -> None:
    fill(tmp_path, "finance@1").write_text(content)
    with pytest.raises(LoraOpsError, match="finance@1.yaml"):
        read_fields(tmp_path, "finance@1")


def test_production_needs_release_notes(canary: Registry, story: Story, tmp_path: Path) -> None:
    needed = missing_for(canary, "finance@1")[1]
    assert "evidence of kind 'release_notes' (`lora-ops release draft finance@1`)" in needed
    fill(tmp_path, "finance@1")
    report, *_ = release_report(canary, canary.get("finance@1"), tmp_path)
    lifecycle.file_evidence(canary, "finance@1", report, actor="eve")
    story.approve("finance@1")
    lifecycle.promote(canary, "finance@1", "production", actor="ben", reason="go")
    approvals = approvals_text(canary, canary.get("finance@1"))
    assert "ben" in approvals and "chen" in approvals


def test_notes_about_an_older_report_count_for_nothing(canary: Registry, tmp_path: Path) -> None:
    fill(tmp_path, "finance@1")

    def written() -> str:
        report, *_ = release_report(canary, canary.get("finance@1"), tmp_path)
        lifecycle.file_evidence(canary, "finance@1", report, actor="eve")
        return lacking()

    def lacking() -> str:
        return "; ".join(one for one in missing_for(canary, "finance@1")[1] if "approval" not in one)

    assert written() == ""
    digest = canary.get("finance@1").summary.content_digest
    given = source(suite(), adapter="finance@1", digest=digest, base=BASE)
    gated = Report(regression_report(given, "finance", canary.clock()), given.to_json().encode(), "suite")
    lifecycle.file_evidence(canary, "finance@1", gated, actor="ci")
    assert "release notes about the last regression report (the last ones are older: `lora-ops" in lacking()
    assert written() == ""


def test_notes_about_another_production_count_for_nothing(
    canary: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    canary.least = canary.least.model_copy(update={"release_notes": False})
    story.to("finance@1", "production")
    canary.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "canary")
    story.file("canary", about="finance@2")
    canary.least = canary.least.model_copy(update={"release_notes": True})
    fill(tmp_path, "finance@2")
    report, *_ = release_report(canary, canary.get("finance@2"), tmp_path)
    lifecycle.file_evidence(canary, "finance@2", report, actor="eve")
    assert [one for one in missing_for(canary, "finance@2")[1] if "approval" not in one] == []
    lifecycle.revoke(canary, "finance@1", actor="ci", reason="leaks")
    needed = "; ".join(missing_for(canary, "finance@2")[1])
    assert "release notes about a time without a version in production (the last ones are older" in needed


def test_notes_hold_fields_gates_and_samples(canary: Registry, tmp_path: Path) -> None:
    fill(tmp_path, "finance@1", trust="Readers write to | *us* <script>alert(1)</script>.")
    report, page, _ = release_report(canary, canary.get("finance@1"), tmp_path)
    text = report.source.decode()
    assert "# finance@1" in text and "| policy | pass |" in text and "## Before and after" in text
    assert "<script>" not in text and r"\|" in text
    assert "no-advice" in page


def test_nobody_files_notes_by_hand(canary: Registry, tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("All is well with this version, believe me.")
    with pytest.raises(LoraOpsError, match="lora-ops release file finance@1"):
        make(canary, "finance@1", "release_notes", path)


def test_page_escapes_what_data_say(canary: Registry) -> None:
    """A gate's text may hold an answer of a model, and no answer may become markup or hide itself."""
    rows = [
        *gate_rows(canary, canary.get("finance@1")),
        GateRow("<b>x</b>\u202e", "fail", "<script>1</script>"),
    ]
    version = canary.get("finance@1")
    page = report_page(canary, version, read_shown(canary, version, rows))
    assert "<script" not in page and "<b>x" not in page and "\u202e" not in page
    assert "1 failed" in page and "default-src &#39;none&#39;" not in page and "default-src 'none'" in page

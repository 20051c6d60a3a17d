"""The evidence of a shadow is counted from pairs, and replayed ones open no gate by themselves."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.gate import gate_rows
from lora_ops.gates.release import notes_text
from lora_ops.gates.report import read_shown, report_page
from lora_ops.records.evidence import TrafficEvidence
from lora_ops.records.pair import ShadowPair
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import make
from lora_ops.registry.store import Registry
from lora_ops.rollout.shadow_report import shadow_report
from lora_ops.settings.release import ReleaseFields
from tests.registry.conftest import Build, Story
from tests.rollout.test_shadow_verdict import pair


@pytest.fixture
def shadow(registry: Registry, package: Build, story: Story) -> Registry:
    """A registry whose finance@2 is in shadow beside finance@1."""
    for number, stage in ((1, "production"), (2, "shadow")):
        registry.register(*package(number), actor="ana.silva")
        story.to(f"finance@{number}", stage)
    return registry


def table(registry: Registry, rows: int = 4, **changes: Any) -> pd.DataFrame:
    digest = registry.get("finance@2").summary.content_digest
    began = registry.clock()
    return pd.DataFrame(
        [
            pair(number, time=began + timedelta(seconds=number), **{"shadow_digest": digest, **changes})
            for number in range(rows)
        ]
    )


def test_pairs_are_counted_and_their_scores_are_the_source(shadow: Registry) -> None:
    nothing = dict.fromkeys(("agreement", "shadow_task", "shadow_tokens"))
    pairs = pd.concat(
        [
            table(shadow, 3),
            table(shadow, 2, shadow_task=0.0, agreement=0.0).assign(request_id=["a", "b"]),
            table(shadow, 1, status="failed", **nothing).assign(request_id="c"),
            table(shadow, 2, status="preempted", **nothing).assign(request_id=["d", "e"]),
            table(shadow, 1, agreement=0.0).assign(request_id="f"),
        ]
    )
    report = shadow_report(shadow, "finance@2", pairs)
    document = report.document
    assert isinstance(document, TrafficEvidence) and document.kind == "shadow"
    assert (document.requests, document.errors, document.unbound, document.replayed) == (7, 1, 0, 0)
    assert (document.adapter_better, document.same, document.production_better) == (0, 3, 2)
    assert report.reference.summary == "7 pairs with finance@1, judged by the gateway"
    rows = [json.loads(line) for line in report.source.splitlines()]
    assert rows[0]["shadow_task"] == 1.0 and not any("text" in name for name in rows[0])
    assert any("production does not win" in one for one in lacks(document, shadow.least))


def test_replayed_pairs_are_refused_unless_they_may_count(shadow: Registry, tmp_path: Path) -> None:
    pairs = table(shadow, replayed=True)
    with pytest.raises(Refused, match=r"was replayed.*rollout\.accept_replay"):
        shadow_report(shadow, "finance@2", pairs)
    shadow.accept_replay = True
    report = shadow_report(shadow, "finance@2", pairs)
    assert isinstance(report.document, TrafficEvidence) and report.document.replayed == 4
    assert report.reference.summary.startswith("REPLAYED: 4 pairs")
    shadow.accept_replay = False
    (tmp_path / "rows.jsonl").write_bytes(report.source)
    with pytest.raises(Refused, match="was replayed"):  # nor by hand
        make(shadow, "finance@2", "shadow", tmp_path / "rows.jsonl")


def test_replayed_evidence_says_so_wherever_it_is_shown(shadow: Registry, tmp_path: Path) -> None:
    """Also where somebody files the rows by hand, with a summary of their own."""
    shadow.accept_replay = True
    (tmp_path / "rows.jsonl").write_bytes(
        shadow_report(shadow, "finance@2", table(shadow, replayed=True)).source
    )
    report = make(shadow, "finance@2", "shadow", tmp_path / "rows.jsonl", "a day of traffic")
    lifecycle.file_evidence(shadow, "finance@2", report, actor="ana.silva")
    said = "REPLAYED: nobody asked 4 of its 4 requests"

    version = shadow.get("finance@2")
    row = next(one for one in gate_rows(shadow, version) if one.gate == "shadow report")
    assert row.found.startswith(said) and row.verdict == "missing" and "at least" in row.note
    known = record(shadow, "finance@2")
    assert f"its shadow report is {said} (rollout.accept_replay)" in known.verdict.warnings
    assert [one.summary for entry in known.history for one in entry.evidence if one.kind == "shadow"][-1] == (
        "REPLAYED: a day of traffic"
    )
    fields = ReleaseFields.model_validate(dict.fromkeys(ReleaseFields.model_fields, "What people wrote."))
    shown = read_shown(shadow, version, gate_rows(shadow, version))
    notes = notes_text(shadow, version, fields, shown)
    assert notes.count(said) == 2 and said in report_page(shadow, version, shown)


def test_live_evidence_is_a_row_of_the_gates(shadow: Registry) -> None:
    report = shadow_report(shadow, "finance@2", table(shadow))
    lifecycle.file_evidence(shadow, "finance@2", report, actor="ana.silva")
    version = shadow.get("finance@2")
    row = next(one for one in gate_rows(shadow, version) if one.gate == "shadow report")
    assert row.found.startswith("4 answered, 0 failed") and row.evidence == report.reference.sha256
    assert not any(one.gate == "canary report" for one in gate_rows(shadow, version))
    assert not any("REPLAYED" in one for one in gate_notes(shadow, version))


def test_without_pairs_it_says_what_to_do(shadow: Registry) -> None:
    empty = pd.DataFrame({name: [] for name in ShadowPair.model_fields})
    with pytest.raises(LoraOpsError, match="lora-ops rollout replay finance@2"):
        shadow_report(shadow, "finance@2", empty)


def test_live_evidence_keeps_its_bytes(shadow: Registry) -> None:
    """Reports of earlier releases say nothing of replayed rows, and are computed again to the same bytes."""
    document = shadow_report(shadow, "finance@2", table(shadow)).document
    assert "replayed" not in json.loads(document.model_dump_json())

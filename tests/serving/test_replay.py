"""Rows that nobody asked, as shadow traffic: for CI, and before there is live traffic."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.clock import now
from lora_ops.engines.protocol import Engine
from lora_ops.errors import LoraOpsError
from lora_ops.registry import rollouts
from lora_ops.rollout.pairs import read_pairs
from lora_ops.rollout.shadow_verdict import settings_plan
from lora_ops.serving.replay import ReplayRow, read_rows, replay
from lora_ops.settings.rollout import MarginSettings, RolloutSettings
from tests.serving.conftest import Clone
from tests.serving.shadowing import pairs

ROWS = [ReplayRow(text=f"AIRBNB {number}", target="Lodging", group=f"g{number // 2}") for number in range(6)]


def test_rows_become_pairs_that_say_so(staged: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    done = asyncio.run(replay(staged.root, staged.settings(), engine, "finance@2", ROWS))
    assert done == ("finance@2", "finance@1", 6, 0)
    rows = pairs(staged)
    assert len(rows) == 6 and rows["replayed"].all() and rows["unit"].nunique() == 3
    assert rows["production_task"].eq(0).all()  # random weights know no right answer
    assert not any((staged.root / ".serving/events").glob("*.jsonl"))
    monkeypatch.chdir(staged.root)
    said = CliRunner().invoke(app, ["rollout", "pairs", "finance@2", "--replayed"])
    assert said.exit_code == 0, said.output
    assert "REPLAYED: 6 pairs of 3 users or requests in 1 hour," in " ".join(said.output.split())
    assert "task done" in said.output
    live = CliRunner().invoke(app, ["rollout", "pairs", "finance@2", "--json"])
    found = json.loads(live.stdout)
    assert found["answered"] == 0 and found["verdict"]["decision"] == "hold" and not found["replayed"]


def test_pairs_are_judged_by_the_plan_of_their_rollout(
    staged: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before it began doesn't count, and an edit of params.yaml loosens nothing."""
    asyncio.run(replay(staged.root, staged.settings(), engine, "finance@2", ROWS))
    strict = RolloutSettings(margins=MarginSettings(task=0.013))
    with staged.registry() as registry:
        registry.clock = lambda: now() + timedelta(minutes=1)
        plan = settings_plan(registry, "finance@2", strict)
        rollouts.begin(registry, plan, actor="oncall", reason="to compare it")
    monkeypatch.chdir(staged.root)
    said = CliRunner().invoke(app, ["rollout", "pairs", "finance@2", "--replayed", "--json"])
    found = json.loads(said.stdout)
    assert found["answered"] == 0
    assert {one["name"]: one["margin"] for one in found["metrics"]}["task"] == 0.013


def test_first_version_is_compared_with_the_base_model(clone: Clone, engine: Engine) -> None:
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "shadow")
        digest = registry.get("finance@1").summary.content_digest
    done = asyncio.run(replay(clone.root, clone.settings(), engine, "finance@1", ROWS[:2]))
    assert (done.answered, done.failed) == (2, 0)
    rows = read_pairs(clone.root / ".serving/pairs", "finance@1", digest)
    assert len(rows) == 2 and set(rows["production"]) == {done.against} and "@" not in done.against


@pytest.mark.parametrize("reference", ["finance@1", "healthcare@1"])
def test_only_a_version_in_shadow_is_replayed(staged: Clone, engine: Engine, reference: str) -> None:
    with pytest.raises(LoraOpsError, match="only a version in shadow is replayed|may not serve|only shadow"):
        asyncio.run(replay(staged.root, staged.settings(), engine, reference, ROWS))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no rows"),
        ('{"text": ""}', "line 1: text"),
        ('{"text": "A"}\n{"target": "B"}', "line 2: text"),
        ("no json", "line 1"),
    ],
)
def test_file_of_rows_that_is_wrong_says_where(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(LoraOpsError, match=said):
        read_rows(tmp_path, "finance", str(tmp_path / "rows.jsonl"))
    with pytest.raises(LoraOpsError, match="can't be read"):
        read_rows(tmp_path, "finance", str(tmp_path / "missing.jsonl"))

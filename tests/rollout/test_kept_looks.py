"""What a controller sees is kept for people, and decides nothing."""

from datetime import timedelta
from pathlib import Path

import pytest

from lora_ops.records.rollout import Rollout
from lora_ops.registry.store import Registry
from lora_ops.rollout.canary import look
from lora_ops.rollout.kept_looks import MOST_LOOKS, LookKeeper, read_looks
from lora_ops.rollout.traffic import GatewayTraffic
from tests.rollout import test_shadow_verdict as shadow
from tests.rollout.test_canary import MORNING, after, plan, traffic


@pytest.fixture
def canary() -> Rollout:
    return Rollout(
        plan=plan(), phase="canary", since=MORNING, began=MORNING, canary_since=MORNING, seq=7, started_by="ci"
    )


def test_looks_show_how_a_sequence_tightens(canary: Rollout, tmp_path: Path) -> None:
    keeper = LookKeeper(tmp_path)
    for users in (50, 200, 600):
        found = look(plan(), traffic(users), since=MORNING, now=after(users))
        keeper.keep(canary, found, after(users))
    kept = read_looks(tmp_path / "finance@2.json")
    assert kept and [one.users for one in kept.looks] == [(50, 50), (200, 200), (600, 600)]
    errors = [next(one for one in look.metrics if one.name == "errors") for look in kept.looks]
    widths = [one.high - one.low for one in errors if one.high is not None and one.low is not None]
    assert widths == sorted(widths, reverse=True) and errors[-1].verdict == "non-inferior"
    limits = {one.name: round(one.limit, 6) for one in kept.looks[-1].metrics}
    assert limits["tokens"] == limits["P95 latency"] == 0.25


def test_kept_look_says_how_much_worse_the_task_is(canary: Rollout, tmp_path: Path) -> None:
    """A shadow's task counts answers that pass: its interval is turned round, as are all others."""
    rows = [shadow.pair(number, shadow_task=0.0) for number in range(200)]
    rollout = canary.model_copy(update={"phase": "shadow"})
    LookKeeper(tmp_path).keep(rollout, shadow.look(rows), shadow.NOW)
    kept = read_looks(tmp_path / "finance@2.json")
    assert kept
    task = next(one for one in kept.looks[-1].metrics if one.name == "task")
    assert task.verdict == "breach" and task.low is not None and task.low > 0.5
    assert (task.production, task.candidate) == (1.0, 0.0)


def test_kept_looks_stay_few_and_begin_again(canary: Rollout, tmp_path: Path) -> None:
    keeper, found = LookKeeper(tmp_path), look(plan(), [], since=MORNING, now=MORNING)
    for minute in range(3 * MOST_LOOKS):
        keeper.keep(canary, found, MORNING + timedelta(minutes=minute))
    kept = read_looks(tmp_path / "finance@2.json")
    assert kept and len(kept.looks) <= MOST_LOOKS and kept.looks[0].at == MORNING
    assert kept.looks[-1].at == MORNING + timedelta(minutes=3 * MOST_LOOKS - 1)
    keeper.keep(canary.model_copy(update={"attempt": 2}), found, MORNING)
    again = read_looks(tmp_path / "finance@2.json")
    assert again and (again.attempt, len(again.looks)) == (2, 1)


def test_look_that_cannot_be_kept_stops_nothing(
    canary: Rollout, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    keeper = LookKeeper(tmp_path / "file/rollouts")
    judge = GatewayTraffic(registry, tmp_path / ".serving", 0.5, keeper)
    for _ in range(2):
        assert judge.canary(canary).verdict.decision == "hold"
    assert caplog.text.count("can't be kept for the console") == 1


NO_ZONE = (
    '{"adapter": "a", "attempt": 1, "looks": [{"at": "2026-03-02T09:00:00", "phase": "canary", "step": 0, '
)


@pytest.mark.parametrize(
    "text", ["", "{", '{"adapter": 1}', "[]", "null", NO_ZONE + '"said": "", "metrics": []}]}']
)
def test_broken_file_of_looks_is_begun_again(text: str, canary: Rollout, tmp_path: Path) -> None:
    path = tmp_path / "finance@2.json"
    path.write_text(text)
    assert read_looks(path) is None
    LookKeeper(tmp_path).keep(canary, look(plan(), [], since=MORNING, now=MORNING), MORNING)
    kept = read_looks(path)
    assert kept and len(kept.looks) == 1

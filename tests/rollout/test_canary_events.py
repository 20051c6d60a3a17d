"""Looks of a controller that reads only what is new find what a controller finds that has just begun."""

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.records.rollout import Rollout, RolloutPlan
from lora_ops.registry.store import Registry
from lora_ops.rollout.canary import CanaryRequest, looks
from lora_ops.rollout.canary_events import CanaryEvents, Stops, of_arms
from lora_ops.rollout.traffic import GatewayTraffic
from lora_ops.settings.rollout import RolloutSettings
from tests.registry.conftest import MORNING
from tests.rollout.plain_look import plain_look

OURS, THEIRS = "a" * 64, "b" * 64


def plan_of(against: str = "finance@1", **changes: Any) -> RolloutPlan:
    """Return a plan by which a user counts again after three minutes."""
    settings = {"canary": {"steps": [5, 50], "window_seconds": 60}, **changes}
    plan = RolloutPlan.of("finance@2", OURS, against, THEIRS, RolloutSettings.model_validate(settings))
    return plan.model_copy(update={"canary": plan.canary.model_copy(update={"period_hours": 0.05})})


class Gateways:
    """Two gateways whose files a test writes: random requests, and what happens to files."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder / "events"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.draw = random.Random(seed)
        self.now = MORNING
        self._count = 0
        self._torn: dict[Path, bytes] = {}

    def line(self, at: datetime, **changes: Any) -> bytes:
        """Return the line of a random request."""
        self._count += 1
        draw, arm = self.draw, self.draw.choice(["canary", "control", None])
        known = {
            "id": f"{self._count:032x}",
            "time": at.isoformat(),
            "request_id": str(self._count),
            "tenant": draw.choice(["finance", "finance", "finance", "media"]),
            "key": draw.choice(["k1", "k1", "k2", "k3", None]),
            "unit": f"{arm} {draw.randrange(60)}" if draw.random() < 0.97 else f"user {draw.randrange(5)}",
            "arm": arm,
            "fallback": "loading" if draw.random() < 0.02 else None,
            "adapter": "finance@2" if arm == "canary" and draw.random() < 0.95 else "finance@1",
            "digest": OURS if arm == "canary" else THEIRS,
            "status": draw.choices([200, 500, 400, 429, 499], [90, 4, 2, 2, 2])[0],
            "seconds": draw.lognormvariate(-1, 0.5),
            "generated_tokens": draw.randrange(30),
            "answer_task": draw.choice([1.0, 0.0, None]),
            "answer_insults": draw.choice([0.1, 0.6, None]),
            "answer_new_identifiers": draw.choice([0, 0, 1, None]),
            "answer_is_label": draw.choice([True, False, None]),
            "answer_has_text": draw.choice([True, True, False, None]),
        }
        return json.dumps({**known, **changes}).encode() + b"\n"

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("events-*.jsonl"))

    def append(self, lines: bytes, process: int | None = None) -> None:
        """Write lines as one of the gateways does, whose file sometimes is a new one."""
        process = self.draw.choice([1, 2]) if process is None else process
        mine = [path for path in self.files() if path.stem.endswith(f"-{process}")]
        if not mine or self.draw.random() < 0.15:
            mine.append(self.folder / f"events-{self._count:08}-{process}.jsonl")
        path = mine[-1]
        with path.open("ab") as file:
            file.write(self._torn.pop(path, b"") + lines)

    def serve(self, seconds: int = 40) -> None:
        """Let some seconds pass, in which requests come."""
        for _ in range(seconds):
            self.now += timedelta(seconds=1)
            for _ in range(self.draw.randrange(3)):
                self.append(self.line(self.now - timedelta(seconds=self.draw.random())))

    # What happens between looks.

    def tear(self) -> None:
        """Write a part of a line; the rest of it comes with the next lines of its file."""
        path, line = self.files()[-1], self.line(self.now - timedelta(seconds=1))
        if path not in self._torn:
            cut = self.draw.choice([10, len(line) // 2, len(line) - 1])
            with path.open("ab") as file:
                file.write(line[:cut])
            self._torn[path] = line[cut:]

    def delete(self) -> None:
        """Remove the oldest file, as `keep_days` does."""
        path = self.files()[0]
        self._torn.pop(path, None)
        path.unlink()

    def rewrite(self) -> None:
        """Take lines out of a file in place; it may be as long as before."""
        path = self.draw.choice(self.files())
        lines = path.read_bytes().splitlines(keepends=True)
        self._torn.pop(path, None)
        kept = lines[1::2]
        if self.draw.random() < 0.5:
            kept.append(b" " * (len(b"".join(lines)) - len(b"".join(kept)) - 1) + b"\n")
        path.write_bytes(b"".join(kept))

    def replace(self) -> None:
        """Put another file into the place of one."""
        path = self.draw.choice(self.files())
        other = path.with_name("other")
        lines = path.read_bytes().splitlines(keepends=True)
        self._torn.pop(path, None)
        self.draw.shuffle(lines)
        other.write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines[2:]))
        other.replace(path)

    def write_again(self) -> None:
        """Write the last lines of a file to a new one, as after an error of the disk."""
        lines = [one for one in self.files()[-1].read_bytes().splitlines(keepends=True) if one.endswith(b"}\n")]
        (self.folder / f"events-{self._count:08}x-3.jsonl").write_bytes(b"".join(lines[-5:]))

    def write_late(self) -> None:
        """Write what was answered some looks ago."""
        for seconds in range(20, 140, 10):
            at = self.now - timedelta(seconds=seconds)
            self.append(self.line(at, tenant="finance", arm="canary", status=500, unit=f"late {seconds}"))

    def write_garbage(self) -> None:
        """Write lines that are no events."""
        wrong = self.line(self.now, seconds="NaN", arm="canary") + self.line(self.now, status="x", arm="canary")
        self.append(b"\xff\xfe\n\n[1]\n{\n" + wrong)

    def set_clock_back(self) -> None:
        """Set the clock back by some looks."""
        self.now -= timedelta(seconds=100)


def told(folder: Path, plan: RolloutPlan, stops: Stops) -> list[CanaryRequest]:
    """Return what the files have now, read without any of the code that is tested."""
    found: dict[str, CanaryRequest] = {}
    for path in folder.glob("events-*.jsonl"):
        for text in path.read_bytes().splitlines():
            try:
                one = json.loads(text)
                at = datetime.fromisoformat(one["time"])
                is_real = one["status"] >= 0 and one["seconds"] >= 0
            except (ValueError, TypeError):
                continue
            stopped = any(start <= at and (end is None or at <= end) for start, end in stops)
            if is_real and one["tenant"] == "finance" and one["arm"] and not stopped:
                is_empty = one["answer_has_text"] is False or not one["generated_tokens"]
                found[one["id"]] = CanaryRequest(
                    at=at,
                    insults=None if is_empty else one["answer_insults"],
                    identifiers=None if is_empty else one["answer_new_identifiers"],
                    is_label=one["answer_is_label"] is True,
                    is_task=one["answer_task"] and one["answer_task"] >= 1,
                    is_loading=one["fallback"] == "loading",
                    tokens=one["generated_tokens"],
                    **{
                        name: one[name]
                        for name in ("unit", "arm", "adapter", "digest", "status", "seconds", "key")
                    },
                )
    return list(found.values())


def events_of(gateways: Gateways, plan: RolloutPlan) -> CanaryEvents:
    return CanaryEvents(gateways.folder, of_arms(plan, MORNING), plan, MORNING, 0.5)


HAPPENS = (
    Gateways.tear,
    Gateways.delete,
    Gateways.rewrite,
    Gateways.replace,
    Gateways.write_again,
    Gateways.write_late,
    Gateways.write_garbage,
    Gateways.set_clock_back,
)


@pytest.mark.parametrize("against", ["finance@1", "tiny-base"])
def test_looks_that_go_on_find_what_new_ones_find(tmp_path: Path, against: str) -> None:
    """While production is stopped for a while, and approvals are awaited at the end."""
    gateways, plan = Gateways(tmp_path, seed=1), plan_of(against, key_percent=60)
    events, happens, users, waiting = events_of(gateways, plan), list(HAPPENS), 0, None
    gateways.draw.shuffle(happens)
    stops: list[tuple[datetime, datetime | None]] = []
    for number in range(2 * len(happens)):
        gateways.serve()
        if number % 2:
            happens[number // 2](gateways)
        if number == 4:
            stops = [(gateways.now - timedelta(seconds=60), None)]
        if number == 5:
            stops = [(stops[0][0], gateways.now)]
        if number == 10:
            waiting = gateways.now
        if number == 12 and waiting:
            waiting -= timedelta(seconds=30)
        now = gateways.now
        found = events.look(now, waiting_since=waiting, stops=stops)
        if number % 2:
            assert found == events_of(gateways, plan).look(now, waiting_since=waiting, stops=stops)
        assert found == plain_look(plan, told(gateways.folder, plan, stops), now, MORNING, waiting)
        users = max(users, found.canary_users)
    assert users > 50


def test_each_attempt_counts_its_own_requests(tmp_path: Path, registry: Registry) -> None:
    gateways, plan = Gateways(tmp_path, seed=2), plan_of()
    traffic = GatewayTraffic(registry, tmp_path, 0.5)
    first = Rollout(
        plan=plan, phase="canary", since=MORNING, began=MORNING, canary_since=MORNING, seq=1, started_by="ci"
    )
    registry.clock = lambda: gateways.now
    gateways.serve(200)
    begun = gateways.now
    again = first.model_copy(update={"attempt": 2, "since": begun, "began": begun, "canary_since": begun})
    assert traffic.canary(first).canary_users > 10
    gateways.serve(200)
    found = traffic.canary(again)
    assert found == GatewayTraffic(registry, tmp_path, 0.5).canary(again) and found.canary_users > 10
    assert found == plain_look(plan, told(gateways.folder, plan, ()), gateways.now, begun, None)


def test_look_after_a_failed_one_counts_all(tmp_path: Path, registry: Registry) -> None:
    gateways, plan = Gateways(tmp_path, seed=3), plan_of()
    traffic = GatewayTraffic(registry, tmp_path, 0.5)
    rollout = Rollout(
        plan=plan, phase="canary", since=MORNING, began=MORNING, canary_since=MORNING, seq=1, started_by="ci"
    )
    registry.clock = lambda: gateways.now
    gateways.serve(100)
    traffic.canary(rollout)
    gateways.serve(100)
    broken = gateways.folder / "events-z.jsonl"
    broken.mkdir()
    with pytest.raises(LoraOpsError, match="The events can't be read"):
        traffic.canary(rollout)
    broken.rmdir()
    gateways.serve(20)
    found = traffic.canary(rollout)
    assert found == plain_look(plan, told(gateways.folder, plan, ()), gateways.now, MORNING, None)


def test_looks_of_a_page_are_those_of_a_controller(tmp_path: Path) -> None:
    """At more and more moments, with requests that are given at once and in any order."""
    gateways, plan = Gateways(tmp_path, seed=4), plan_of(key_percent=60)
    gateways.serve(400)
    requests = told(gateways.folder, plan, ())
    gateways.draw.shuffle(requests)
    moments = [MORNING + timedelta(seconds=seconds) for seconds in (0, 3, 90, 200, 201, 405)]
    waiting = moments[3]
    found = list(looks(plan, requests, moments, since=MORNING, waiting_since=waiting))
    assert found == [
        plain_look(plan, requests, at, MORNING, waiting if at > waiting else None) for at in moments
    ]

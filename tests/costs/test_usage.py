"""What was used in a window, from the logs of gateways that were killed, lost lines or have other clocks."""

from datetime import timedelta
from pathlib import Path

import pytest

from lora_ops.costs.usage import Usage, usage_in
from lora_ops.errors import LoraOpsError
from lora_ops.windows import Window, last
from tests.costs.logs import MIB, NOON, Logs, hours

NOW = NOON + timedelta(days=30)
DAY = hours(0, 24)


def used(folder: Path, window: Window = DAY) -> Usage:
    return usage_in(folder, window, NOW)


def row(usage: Usage, version: str) -> dict[str, float]:
    (found,) = usage.versions[usage.versions["version"] == version].to_dict("records")
    return found


def test_usage_sums_to_uptime_of_two_gateways(tmp_path: Path) -> None:
    """One of them on two GPUs; busy, shared and idle are all the time that both were up."""
    cpu, gpu = Logs(tmp_path, "a" * 32), Logs(tmp_path, "b" * 32, device="gpu", devices=2)
    for logs in (cpu, gpu):
        logs.line(0, "start")
        logs.up(60, 3540, busy=0.5)
        logs.line(3600, "stop", 0.5 * 3540)
    cpu.event(100, 600.0)
    gpu.event(200, 300.0, "media@1")
    usage = used(tmp_path)
    one, two = usage.devices["cpu"], usage.devices["gpu"]
    assert (one.up, one.busy, one.unknown) == (pytest.approx(3600), 600, 0)
    assert (two.up, two.busy, two.unknown) == (pytest.approx(7200), 600, 0)
    for found in (one, two):
        assert found.busy + found.shared + found.idle == pytest.approx(found.up)
    assert one.shared == pytest.approx(1770 - 600)
    assert row(usage, "media@1")["gpu_seconds"] == 600
    assert usage.notes == []


def test_usage_of_a_window_is_a_part_of_the_run(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.up(0, 7200, busy=0.25)
    logs.event(600, 5.0)
    logs.event(4200, 7.0)
    half = used(tmp_path, hours(0.5, 1.5)).devices["cpu"]
    assert half.up == pytest.approx(3600)
    assert half.busy == 7
    assert half.busy + half.shared == pytest.approx(900)
    parts = [used(tmp_path, hours(*edges)).devices["cpu"] for edges in ((0, 0.77), (0.77, 3))]
    assert sum(part.up for part in parts) == pytest.approx(7200)


def test_usage_after_a_kill_misses_one_heartbeat(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.line(0, "start")
    logs.up(60, 600)
    logs.event(590, 1.0)
    logs.event(620, 2.0)
    usage = used(tmp_path)
    assert usage.devices["cpu"].up == 600
    assert usage.devices["cpu"].busy == 1
    assert row(usage, "finance@1")["unknown_seconds"] == 2
    (ended, unbilled) = usage.notes
    said = (
        "ended at 2026-03-02 12:10:00 UTC without saying so: up to 60 s after that are unknown and not billed."
    )
    assert ended == f"gateway aaaaaaaa {said}"
    assert unbilled.startswith("2.0 s of device time of 1 request came while nothing is known")


def test_usage_of_a_running_gateway_is_not_silent(tmp_path: Path) -> None:
    Logs(tmp_path).up(0, 600)
    usage = usage_in(tmp_path, hours(0, 1), NOON + timedelta(seconds=650))
    assert [run.ended for run in usage.runs] == ["running"]
    assert usage.notes == []


def test_usage_of_a_lost_day_is_unknown(tmp_path: Path) -> None:
    """The counters go on, but nobody knows for whom the device worked."""
    logs = Logs(tmp_path)
    logs.lose(3600 + 86400)
    logs.up(0, 3600, busy=0.5)
    logs.up(3600 + 86400, 2 * 3600 + 86400, busy=0.5, before=0.5 * (3600 + 86400))
    logs.event(40_000, 3.0)
    usage = used(tmp_path, hours(0, 48))
    found = usage.devices["cpu"]
    assert (found.up, found.unknown, found.busy) == (pytest.approx(7200), 86400, 0)
    assert found.shared == pytest.approx(3600)
    assert "was up for 24.00 h of which its usage log lost the lines" in usage.notes[0]
    assert usage.notes[-1].startswith("3.0 s of device time of 1 request came")


def test_usage_survives_a_clock_that_is_set_back(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.up(0, 1800)
    back = timedelta(minutes=20)
    for second in range(1860, 3601, 60):
        logs.line(second, "heartbeat", time=NOON + timedelta(seconds=second) - back)
    logs.event(3000 - back.total_seconds(), 4.0)
    usage = used(tmp_path)
    assert usage.devices["cpu"].up == 3600
    assert usage.devices["cpu"].busy == 4


def test_usage_names_a_clock_that_is_ahead(tmp_path: Path) -> None:
    """Each gateway's lines and events are by the same clock, so that its hour stays an hour."""
    right, ahead = Logs(tmp_path), Logs(tmp_path, "b" * 32, NOON + timedelta(hours=2))
    for logs in (right, ahead):
        logs.up(0, 3600, busy=0.1)
        logs.event(1800, 9.0)
    usage = usage_in(tmp_path, hours(0, 4), NOON + timedelta(hours=1))
    assert usage.devices["cpu"].up == 7200
    assert usage.devices["cpu"].busy == 18
    (note,) = usage.notes
    assert note.startswith("gateway bbbbbbbb has a clock that is 7,200 s ahead of this machine's")


def test_usage_before_the_first_line_is_nothing(tmp_path: Path) -> None:
    Logs(tmp_path).up(0, 600)
    usage = used(tmp_path, hours(-48, -24))
    assert usage.versions.empty and usage.devices["cpu"].up == 0
    assert usage.notes == ["No gateway is known to have run in this window, the first came later."]


def test_usage_of_no_log_at_all_is_nothing(tmp_path: Path) -> None:
    usage = used(tmp_path)
    assert usage.versions.empty
    assert usage.notes == ["No gateway has kept any usage yet: start one (`make serve`)."]


def test_usage_counts_events_without_a_gateway(tmp_path: Path) -> None:
    """Events of earlier releases name none: what they used is known, and what it cost is not."""
    Logs(tmp_path).event(5, 1.5, gateway=None, adapter_hit=None)
    usage = used(tmp_path)
    found = row(usage, "finance@1")
    assert (found["requests"], found["cpu_seconds"], found["unknown_seconds"]) == (1, 0, 1.5)
    assert found["hits"] == found["misses"] == 0


def test_usage_of_memory_is_held_and_used(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.line(0, "start")
    logs.up(60, 3540)
    logs.line(10, "load", adapter="finance@1", bytes=512 * MIB, used_seconds=0, load_seconds=0.5)
    logs.line(70, "held", adapter="finance@1", bytes=512 * MIB, used_seconds=30)
    logs.line(910, "evict", adapter="finance@1", bytes=512 * MIB, used_seconds=90)
    logs.line(1000, "load", adapter="finance@1", bytes=512 * MIB, used_seconds=90, load_seconds=0.25)
    logs.line(1800, "load", adapter="media@1", bytes=1024 * MIB, used_seconds=0, load_seconds=0.25)
    logs.line(3600, "stop")
    usage = used(tmp_path)
    finance, media = row(usage, "finance@1"), row(usage, "media@1")
    assert finance["held_seconds"] == pytest.approx(900 + 2600)
    assert finance["held_gib_hours"] == pytest.approx(3500 / 2 / 3600)
    assert finance["unused_gib_hours"] == pytest.approx((3500 - 90) / 2 / 3600)
    assert (finance["loads"], finance["evictions"], finance["load_seconds"]) == (2, 1, 0.75)
    assert media["unused_gib_hours"] == media["held_gib_hours"] == pytest.approx(0.5)
    part = row(used(tmp_path, hours(0, 65 / 3600)), "finance@1")
    assert part["held_seconds"] == pytest.approx(55)
    assert part["held_seconds"] - part["unused_gib_hours"] * 2 * 3600 == pytest.approx(30 * 55 / 60)


def test_usage_of_memory_begins_with_what_is_left(tmp_path: Path) -> None:
    """Its load was in a file that is gone; lines that were lost must not hold memory for ever."""
    logs = Logs(tmp_path)
    logs.up(36000, 39600)
    logs.line(36030, "held", adapter="finance@1", bytes=MIB, used_seconds=5000)
    logs.line(36060, "held", adapter="finance@1", bytes=MIB, used_seconds=5010)
    logs.line(36100, "load", adapter="finance@1", bytes=MIB, used_seconds=5010)
    found = row(used(tmp_path), "finance@1")
    assert found["held_seconds"] == pytest.approx(39600 - 36030)
    assert found["unused_gib_hours"] * 1024 * 3600 == pytest.approx(39600 - 36030 - 10)


def test_usage_of_a_shadow_is_shared_and_its_own(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.up(0, 600, busy=0.5)
    logs.line(
        100, "background", 50, adapter="finance@2", device_seconds=8.0, prompt_tokens=3, generated_tokens=1
    )
    usage = used(tmp_path)
    assert row(usage, "finance@2")["shadow_cpu_seconds"] == 8
    assert usage.devices["cpu"].busy == 0
    assert usage.devices["cpu"].shared == pytest.approx(300)


def test_usage_leaves_out_lines_that_no_gateway_wrote(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.up(0, 600)
    logs.line(600, "heartbeat", devices=1e9, gateway="c" * 32)
    logs.event(10, 1.0)
    for name in ("usage", "events"):
        (file,) = (tmp_path / name).iterdir()
        with file.open("a") as opened:
            opened.write('{"id": "x", "time": "2026-03-02T12:00:00Z", "device_seconds": NaN}\n{"id": "torn')
    logs = Logs(tmp_path, "d" * 32)
    logs.event(11, float("1e300"))
    usage = used(tmp_path)
    assert len(usage.runs) == 1
    assert usage.devices["cpu"].busy == 1


@pytest.mark.parametrize("length", ["", "7", "d", "0d", "-1d", "1.5h", "7D", "9999999999d", "99999w", "7d "])
def test_window_refuses_what_is_no_length(length: str) -> None:
    with pytest.raises(LoraOpsError, match="is no window: write a whole number and m, h, d or w"):
        last(length, NOON)


def test_window_ends_at_the_moment() -> None:
    assert last("90m", NOON).hours == 1.5
    assert last("2w", NOON).start == NOON - timedelta(days=14)
    assert last("7d", NOON).text == "2026-02-23 12:00 to 2026-03-02 12:00 UTC"

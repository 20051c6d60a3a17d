"""When a version was asked for last, and since when that is known."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lora_ops.costs.last_asked import FILE, Asked, keep_asked, read_asked
from lora_ops.errors import Refused

from .archive_kit import days_before, write_events

NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
KEEP_DAYS = 90
FAR = '{"since": "0001-01-01T00:00:00+05:00", "until": "2026-08-31T00:00:00+00:00"}'


def ago(days: float) -> datetime:
    return days_before(NOW, days)


def test_events_alone_reach_back_to_the_first(tmp_path: Path) -> None:
    write_events(tmp_path, (ago(80), "finance@1"), (ago(3), "finance@2"), (ago(70), "finance@2"))
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert (asked.since, asked.until, notes) == (ago(80), NOW, [])
    assert asked.times == {"finance@1": ago(80), "finance@2": ago(3)}


def test_nothing_at_all_is_known_from_now_on(tmp_path: Path) -> None:
    asked, _ = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert asked == Asked(since=NOW, until=NOW, keep_days=KEEP_DAYS)


def test_runs_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """Events stay for 90 days, so no event log ever shows that nobody asked for longer than that."""
    old = write_events(tmp_path, (days_before(NOW, 150), "finance@1"), (ago(70), "finance@2"))
    assert keep_asked(tmp_path, read_asked(tmp_path, KEEP_DAYS, ago(70))[0]) is None
    old.unlink()
    write_events(tmp_path, (ago(10), "finance@2"))
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert (asked.since, notes) == (ago(150), [])
    assert asked.times == {"finance@1": ago(150), "finance@2": ago(10)}


@pytest.mark.parametrize("later_event", [True, False])
def test_gap_between_runs_begins_again(tmp_path: Path, later_event: bool) -> None:
    keep_asked(tmp_path, Asked(since=ago(400), until=ago(120), times={"finance@1": ago(130)}))
    if later_event:
        write_events(tmp_path, (ago(60), "finance@2"))
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW, last_entry=ago(1))
    assert asked.since == (ago(60) if later_event else NOW)
    assert "is not known: the events of then are gone" in notes[0]


@pytest.mark.parametrize(
    "text", ["", "{", '{"since": 1}', '{"since": "2026-01-01", "until": "2026-08-31"}', FAR, "[]"]
)
def test_broken_record_does_not_count(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert asked.since == NOW and FILE in notes[0]


def test_record_of_a_clock_ahead_does_not_count(tmp_path: Path) -> None:
    keep_asked(tmp_path, Asked(since=ago(400), until=NOW + timedelta(hours=1)))
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert asked.since == NOW and "ahead of this clock" in notes[0]


def test_event_dated_before_its_file_reaches_no_further(tmp_path: Path) -> None:
    """A gateway whose clock was set shows one event of 2001, and nothing of the years since."""
    write_events(tmp_path, (datetime(2001, 1, 1, tzinfo=UTC), "finance@1"), (ago(5), "finance@2"), began=ago(6))
    assert read_asked(tmp_path, KEEP_DAYS, NOW)[0].since == ago(6)


def test_version_that_a_request_named_counts_as_asked(tmp_path: Path) -> None:
    path = write_events(tmp_path, (ago(80), "finance@1"))
    line = (
        '{"id": "x", "time": "' + ago(2).isoformat() + '", "adapter": "finance@3",'
        ' "instead_of": "finance@4", "model": "finance@5"}\n'
    )
    path.write_text(path.read_text() + line + '{"id": "torn", "ti')
    times = read_asked(tmp_path, KEEP_DAYS, NOW)[0].times
    assert {name: times[name] for name in ("finance@3", "finance@4", "finance@5")} == dict.fromkeys(
        ("finance@3", "finance@4", "finance@5"), ago(2)
    )


@pytest.mark.parametrize("stale_days", [100, 300])
def test_events_prove_no_more_than_they_are_kept(tmp_path: Path, stale_days: int) -> None:
    """A file that was copied or touched outlives its days, and others of these days are gone."""
    write_events(tmp_path, (ago(stale_days), "finance@1"))
    write_events(tmp_path, (ago(5), "finance@3"))
    assert read_asked(tmp_path, KEEP_DAYS, NOW)[0].since == ago(KEEP_DAYS)
    keep_asked(tmp_path, Asked(since=ago(400), until=ago(95)))
    assert read_asked(tmp_path, KEEP_DAYS, NOW)[0].since == ago(KEEP_DAYS)


@pytest.mark.parametrize("then", [7, 90, None])
def test_gap_is_found_by_the_shorter_setting(tmp_path: Path, then: int | None) -> None:
    """Events were kept for a week at the last look, 40 days ago."""
    keep_asked(tmp_path, Asked(since=ago(300), until=ago(40), keep_days=then))
    write_events(tmp_path, (ago(6), "finance@3"))
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert (asked.since, asked.keep_days) == (ago(6) if then == 7 else ago(300), KEEP_DAYS)
    assert bool(notes) is (then == 7)


def test_no_gateway_at_all_is_no_silence(tmp_path: Path) -> None:
    """A folder that no gateway writes to says nothing; a line of usage says that one was up."""
    keep_asked(tmp_path, Asked(since=ago(300), until=ago(7), keep_days=KEEP_DAYS))
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert asked.since == NOW and "no gateway has left an event or a line of usage" in notes[0]
    (tmp_path / "usage").mkdir()
    (tmp_path / "usage/usage-20260831T000000000000-1.jsonl").write_text("{}\n")
    asked, notes = read_asked(tmp_path, KEEP_DAYS, NOW)
    assert (asked.since, notes) == (ago(300), [])


def test_clock_ahead_of_all_else_is_refused(tmp_path: Path) -> None:
    keep_asked(tmp_path, Asked(since=ago(300), until=ago(20), keep_days=KEEP_DAYS))
    write_events(tmp_path, (ago(16), "finance@3"))
    with pytest.raises(Refused, match=f"nothing was asked or changed since {ago(15):%Y-%m-%d}"):
        read_asked(tmp_path, KEEP_DAYS, NOW, last_entry=ago(15))
    assert read_asked(tmp_path, KEEP_DAYS, NOW, last_entry=ago(13))[0].since == ago(300)

"""When each version was asked for last, and since when that is known without a gap.

Gateways keep their events for a while only. So each run writes down what the events said, and the next run
goes on from there: where the events reach back to it, or were all kept since, nothing can be missing between.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from lora_ops.costs.usage import USAGE
from lora_ops.errors import Refused, disk_reason
from lora_ops.line_files import REAL_TIME, column_types, connect, line_files, read_lines, with_room
from lora_ops.records.record import Record
from lora_ops.registry.files import write_atomically
from lora_ops.small_files import read_text

FILE = "last_asked.json"
AHEAD = timedelta(minutes=5)
"""By which two clocks may differ."""
SILENCE = timedelta(days=14)
"""Nothing at all for so long, no event, no entry of the log and no look, means a clock that is ahead."""


EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""Between these a time can be moved to another zone, or by the days of a setting."""


class AskedEvent(Record):
    """The fields of an event of the gateway that say whom a request asked; see `serving.events.Event`."""

    id: str
    time: datetime
    adapter: str
    instead_of: str | None = None
    model: str


class Asked(Record):
    """What is known of requests.

    Attributes:
        since: from when on each request is known.
        until: the moment of the last look.
        times: version (`finance@3`) to its last request.
        keep_days: for how long gateways kept events at that look; None: an earlier release wrote it.
    """

    since: datetime
    until: datetime
    times: dict[str, datetime] = {}
    keep_days: int | None = None


class _Events(NamedTuple):
    """What the event log says: its first event, its last one, and each name's last request."""

    first: datetime | None
    times: dict[str, datetime]

    @property
    def last(self) -> datetime | None:
        return max(self.times.values(), default=None)


def read_asked(
    serving: Path, keep_days: int, now: datetime, last_entry: datetime | None = None
) -> tuple[Asked, list[str]]:
    """Return when each version was asked for last, and what a reader must know of it.

    Args:
        serving: `.serving` of the gateways.
        keep_days: for how long they keep events.
        now: by this machine's clock.
        last_entry: when the audit log was written last.

    Raises:
        Refused: this machine's clock seems to be ahead: nothing else has a time of the last two weeks.
        LoraOpsError: the events can't be read.
    """
    events, notes = _events(serving / "events"), list[str]()
    known = _known(serving / FILE, notes)
    if known and known.until > now + AHEAD:
        notes.append(
            f"{serving / FILE} was written at {known.until:%Y-%m-%d %H:%M} UTC, which is ahead of this clock: "
            "it does not count"
        )
        known = None
    if known or events.last:  # else nothing is known, and nothing goes anyway
        moments = [one for one in (events.last, last_entry, known.until if known else None) if one]
        if now - max(moments) > SILENCE:
            raise Refused(
                f"By this machine's clock ({now:%Y-%m-%d %H:%M} UTC) nothing was asked or changed since "
                f"{max(moments):%Y-%m-%d}. A clock that is ahead would archive what is in use: check it (`date "
                "-u`), ask a gateway for one answer, and run this again."
            )
    # Since the last look the shorter of two settings may have removed events.
    kept_now, keep_days = keep_days, min(keep_days, (known.keep_days if known else None) or keep_days)
    if known and not now - known.until < timedelta(days=keep_days - 1):
        notes.append(
            f"what was asked between {known.until:%Y-%m-%d} and "
            f"{'today' if events.first is None else f'{events.first:%Y-%m-%d}'} is not known: the events of "
            "then are gone. Run `lora-ops archive` each week"
        )
        known = None
    times = dict(known.times) if known else {}
    for version, at in events.times.items():
        times[version] = max(at, times.get(version, at))
    starts = [now]
    if events.first is not None:
        # A file may outlive its days, as one does that was copied or touched; others of its days are gone.
        starts.append(max(events.first, now - timedelta(days=keep_days)))
    if known:
        starts.append(known.since)
    since = min(starts)
    if events.first is None and not line_files(serving / USAGE, "usage"):
        notes.append(
            f"no gateway has left an event or a line of usage in {serving}: nobody knows what was asked, so "
            "nothing goes. Run this where the gateway's files are"
        )
        since = now
    return Asked(since=since, until=now, times=times, keep_days=kept_now), notes


def keep_asked(serving: Path, asked: Asked) -> str | None:
    """Write down what is known for the next run; return why that can't be done, or None."""
    try:
        serving.mkdir(parents=True, exist_ok=True)
        write_atomically(serving / FILE, asked.to_json().encode(), 0o600)
    except OSError as error:
        return f"what was asked can't be kept for the next run ({disk_reason(error)})"
    return None


def _known(path: Path, notes: list[str]) -> Asked | None:
    try:
        found = Asked.model_validate_json(read_text(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        notes.append(
            f"{path} can't be read, so it does not count: what was asked is known from the events alone"
        )
        return None
    moments = (found.since, found.until, *found.times.values())
    if any(moment.tzinfo is None for moment in moments):
        notes.append(f"{path} has a time without its zone, so it does not count")
        return None
    if any(not EARLIEST < moment.replace(tzinfo=UTC) < LATEST for moment in moments):
        notes.append(f"{path} has a time that no gateway could have written, so it does not count")
        return None
    return found


def _events(folder: Path) -> _Events:
    """Read first and last times by name; an event that is dated before its own file says nothing of its age."""
    paths = line_files(folder, "events")
    if not paths:
        return _Events(None, {})
    columns = column_types(AskedEvent)

    def read(line_bytes: int) -> list[tuple[str, int, int]]:
        with connect(line_bytes) as db:
            lines = read_lines(db, paths, columns, line_bytes)
            named = lines.filter(REAL_TIME).project("unnest([adapter, instead_of, model]) AS name, time")
            rows = named.filter("name IS NOT NULL").aggregate(
                "name, epoch_us(min(time)) AS first, epoch_us(max(time)) AS last", "name"
            )
            return [(str(name), int(first), int(last)) for name, first, last in rows.fetchall()]

    rows = with_room(folder, "events", read)
    if not rows:
        return _Events(None, {})
    first = min(_moment(one) for _, one, _ in rows)
    opened = _opened(paths[0])
    return _Events(max(first, opened) if opened else first, {name: _moment(last) for name, _, last in rows})


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


def _opened(path: Path) -> datetime | None:
    """Return when a file of events was begun, as its name says."""
    try:
        return datetime.strptime(path.name.split("-")[1], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
    except (ValueError, IndexError):
        return None

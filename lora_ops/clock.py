"""The time, as the registry writes it."""

from datetime import UTC, datetime


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def utc(moment: datetime) -> str:
    """A time as the registry writes it, so that texts sort as times do."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds")

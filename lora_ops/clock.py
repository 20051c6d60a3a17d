"""The time, as the registry writes it."""

from datetime import UTC, datetime


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def utc(moment: datetime) -> str:
    """A time as the registry writes it, so that texts sort as times do."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds")


def to_the_minute(moment: str) -> str:
    """Return a time of the registry for people, such as "2026-11-26 20:35 UTC"."""
    return f"{moment[:16].replace('T', ' ')} UTC"

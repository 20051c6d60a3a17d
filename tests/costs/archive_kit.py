"""A registry that is old enough for its archive, and the events that say who was asked."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lora_ops.registry.store import Registry

LONG_AGO_SECONDS = 200 * 24 * 3600


def age_files(registry: Registry) -> None:
    """Let every kept file look as old as the versions are."""
    then = time.time() - LONG_AGO_SECONDS
    for digest in registry.files.digests():
        os.utime(registry.files.path(digest), (then, then))


def write_events(serving: Path, *asked: tuple[datetime, str], began: datetime | None = None) -> Path:
    """Write events as a gateway does: times, and the version that answered."""
    folder = serving / "events"
    folder.mkdir(parents=True, exist_ok=True)
    first = (began or min(at for at, _ in asked)).astimezone(UTC)
    path = folder / f"events-{first:%Y%m%dT%H%M%S%f}-{len(list(folder.iterdir()))}.jsonl"
    lines = [
        json.dumps({"id": f"{path.stem}-{i}", "time": at.isoformat(), "adapter": version, "model": version})
        for i, (at, version) in enumerate(asked)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def days_before(now: datetime, days: float) -> datetime:
    return now - timedelta(days=days)

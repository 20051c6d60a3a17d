"""A registry that is old enough for its archive, and the events that say who was asked."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lora_ops.costs.archive import Run, archive_unused, check_all
from lora_ops.registry.archived_files import archived
from lora_ops.registry.archived_weights import weights_of
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.archive import ArchiveSettings
from tests.registry.conftest import MORNING, Clock

NOW = MORNING + timedelta(days=200)
FREE = ["finance@1", "healthcare@1", "media@1"]
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


class OldRegistry:
    """One registry with its gateways' folder, its archive, and a clock."""

    def __init__(self, root: Path, owners: Owners) -> None:
        self.root, self.owners, self.clock = root, owners, Clock()
        self.clock.time = NOW
        self.serving = root / ".serving"
        self.settings = ArchiveSettings()
        write_events(self.serving, (days_before(NOW, 150), "finance@3"), (NOW, "finance@3"))

    @contextmanager
    def open(self) -> Iterator[Registry]:
        with closing(Registry(self.root / "registry", owners=self.owners, clock=self.clock)) as registry:
            registry.least = registry.least.model_copy()
            yield registry

    def run(self, *, yes: bool = True, actor: str = "ci", **settings: Any) -> Run:
        with self.open() as registry:
            return self.run_in(registry, yes=yes, actor=actor, **settings)

    def run_in(self, registry: Registry, *, yes: bool = True, actor: str = "ci", **settings: Any) -> Run:
        chosen = self.settings.model_copy(update=settings)
        where = (self.root, self.serving, 90, self.clock.time)
        return archive_unused(registry, chosen, *where, actor=actor, reason="nobody uses it", dry_run=not yes)

    def stays(self, **settings: Any) -> dict[str, str | None]:
        return {one.version: one.stays for one in self.run(yes=False, **settings).candidates}

    def digest(self, version: str) -> str:
        with self.open() as registry:
            found = weights_of(registry.get(version))
        assert found
        return found[0]

    def here(self) -> list[str]:
        """The versions whose weights are here."""
        with self.open() as registry:
            return [one.id for one in registry.versions() if registry.files.holds(self._digest(one))]

    @staticmethod
    def _digest(version: Any) -> str:
        found = weights_of(version)
        assert found
        return found[0]

    def archived_file(self, version: str) -> Path:
        with self.open() as registry:
            file = archived(registry)[version].file
        return Path(file.store) / file.path

    def require_whole(self) -> None:
        """Each version's weights are here or whole in the archive, and the registry is what its log says."""
        with self.open() as registry:
            found = verify(registry)
            assert found.problems == ()
            damaged = dict(check_all(registry))
            for version in registry.versions():
                if not registry.files.holds(self._digest(version)):
                    assert damaged[version.id] is None

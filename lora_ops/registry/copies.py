"""The verified copies: one folder for each version that an engine loads, laid out from the kept files."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_ops.folders import make_folder
from lora_ops.processes import locked

LONGEST_REPAIR = 60.0
"""Seconds to wait for another process that puts a folder in its place: it copies one adapter at a time."""

logger = logging.getLogger(__name__)


class Copies:
    """Folders under `root`, each named like its version (`finance@3`, which no other tenant's can be).

    Nothing in a folder is ever changed: it is put in its place whole, and taken away whole.

    Args:
        root: where they are.
        aside: where a folder goes that is taken away; what it holds stays readable to whoever has it open, and
            is swept a day later.
    """

    def __init__(self, root: Path, aside: Path) -> None:
        self.root = root
        self.aside = aside

    def folder(self, version: str) -> Path:
        """Return the folder of a version (`finance@3`); it may be missing."""
        return self.root / version

    def names(self) -> list[str]:
        """Return the names of all folders, sorted; also of those that earlier releases left."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if not path.name.startswith("."))

    def put(self, version: str, made: Path) -> None:
        """Let the folder `made` take the place of the version's folder, if there is one.

        Raises:
            OSError: the disk is read-only or full.
        """
        self.take_away(version)
        made.rename(self.folder(version))

    def take_away(self, name: str) -> bool:
        """Take a version's folder away and say whether there was one.

        Raises:
            OSError: the disk is read-only.
        """
        folder = self.folder(name)
        if not os.path.lexists(folder):
            return False
        make_folder(self.aside)
        place = Path(tempfile.mkdtemp(dir=self.aside, prefix="copy-"))
        folder.rename(place / "copy")
        return True

    def forget(self, version: str) -> None:
        """Take the folder of a version that may not be loaded any more away.

        A folder that can't be moved is logged: closing the version must not fail, and `gc` takes it later.
        """
        try:
            self.take_away(version)
        except OSError as error:
            logger.warning("The verified copy of %s could not be removed: %s", version, error)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the only right to put folders here, so that of two repairs one is made.

        Raises:
            OSError: the disk is read-only, or another process has that right for a minute.
        """
        make_folder(self.root)
        with locked(self.root / ".lock", seconds=LONGEST_REPAIR):
            yield

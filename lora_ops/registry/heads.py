"""The last head of each registry's audit log, remembered outside the registry's own folder.

Whoever replaces the folder by an older copy, or by another registry, replaces the signed head inside it too.
This file is not part of that copy: it shows that the log once went on.
"""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from lora_ops.errors import Damaged, LoraOpsError, Unavailable, disk_reason
from lora_ops.folders import make_folder
from lora_ops.processes import locked
from lora_ops.registry.audit import Head, Log
from lora_ops.registry.files import write_atomically
from lora_ops.small_files import read_json

HEADS_FILE = "head.json"
LONGEST_WAIT = 2.0
"""Seconds to wait for another process that writes the file, which takes milliseconds."""
SHORT_WAIT = 0.05
"""The same on an event loop, where all requests wait."""
SHORTEST = 12
"""Hex digits of a hash that name an entry; as many as `Head.text` prints."""

logger = logging.getLogger(__name__)


class HeadMemory:
    """What is remembered of one registry, by its places and by the first entry of its log.

    Args:
        path: the file; it may hold the heads of several registries.
        name: which registry: where its folder really is.
        also: further names of it, such as that of a link to the folder. A link in the folder's place must not
            begin without a memory.
    """

    def __init__(self, path: Path, name: str, also: Sequence[str] = ()) -> None:
        self.path = path
        self._places = tuple(dict.fromkeys((name, *also)))
        self._first: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return under what names its heads are kept."""
        return (*self._places, f"log {self._first}") if self._first else self._places

    def identify(self, log: Log | None) -> None:
        """Know the registry also by its log's first entry, which no copy can change.

        An older copy at another place, which params.yaml names then, must not begin without a memory.
        """
        self._first = log.hash_at(1) if log else None

    def recall(self) -> Head | None:
        """Return the last head that any process of this machine saw, or None.

        Raises:
            LoraOpsError: the file was damaged.
        """
        heads = self._read()
        return max((Head(*heads[name]) for name in self.names if name in heads), default=None)

    def remember(self, head: Head, *, seconds: float = LONGEST_WAIT, by_place: bool = False) -> None:
        """Keep `head`, unless a later one is kept already.

        A folder that can't be written is logged and changes nothing else: the change is made. Until a head is
        kept again, `behind` says so.

        Args:
            head: the last entry of the log.
            seconds: how long to wait for another process that writes the file.
            by_place: keep it for the registry's place alone; another log may be there by now.
        """
        if head.seq == 0:
            return
        names = self._places if by_place else self.names
        try:
            heads = self._read()
            if all(heads.get(name, (0, ""))[0] >= head.seq for name in names):
                return
            self._write(head, names, only_later=True, seconds=seconds)
        except (OSError, LoraOpsError) as error:
            logger.warning(
                "The change is made, but the head %s of the audit log can't be kept in %s (%s): make that "
                "folder writable, and run `lora-ops registry verify`.",
                head.text,
                self.path,
                error,
            )

    def knows(self, head: Head) -> bool:
        """Return whether `head` or a later one is kept for this registry's place.

        Only then does a revocation hold though the registry is gone, or an older copy is in its place. A file
        that can't be read counts: somebody damaged what was remembered.
        """
        try:
            heads = self._read()
        except LoraOpsError:
            return True
        return all(place in heads and heads[place][0] >= head.seq for place in self._places)

    def knows_any(self, *, if_damaged: bool = True) -> bool:
        """Return whether any registry was seen here, also in another place; of a damaged file `if_damaged`."""
        try:
            return bool(self._read())
        except LoraOpsError:
            return if_damaged

    def behind(self, head: Head) -> str | None:
        """Return that nothing outside the registry knows of `head` yet, in words, or None."""
        try:
            known = self.recall()
        except LoraOpsError:
            return None  # `problem` says that the file was damaged
        if head.seq == 0 or (known and known.seq >= head.seq):
            return None
        knows = f"knows it up to entry {known.seq}" if known else "knows no entry of it"
        return (
            f"the audit log ends at entry {head.seq}, and {self.path} {knows}: an older copy in the registry's "
            "place would not show, so make that folder writable, and run `lora-ops registry verify`"
        )

    def replace(self, head: Head) -> None:
        """Keep `head` whatever was kept before: somebody accepted that the log goes on from here.

        Raises:
            LoraOpsError: the file can't be written.
        """
        try:
            self._write(head, self.names, only_later=False)
        except OSError as error:
            reason = disk_reason(error)
            raise Unavailable(f"The head {head.text} can't be kept in {self.path} ({reason}).") from error

    def problem(self, log: Log | None) -> str | None:
        """Return why `log` is not the one that was seen here before, or None; no log is an empty one."""
        self.identify(log)
        try:
            known = self.recall()
        except LoraOpsError as error:
            return str(error).rstrip(".")
        return compare(log, known, f"{self.path.parent.name}/{self.path.name}") if known else None

    def _read(self) -> dict[str, tuple[int, str]]:
        try:
            content = read_json(self.path)
            return {str(name): (int(seq), str(hash_)) for name, (seq, hash_) in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise Damaged(
                f"{self.path}, which remembers where the audit log ended, can't be read ({error}): if the "
                "registry is the right one, run `lora-ops registry accept-head`."
            ) from error

    def _write(
        self, head: Head, names: Sequence[str], *, only_later: bool, seconds: float = LONGEST_WAIT
    ) -> None:
        make_folder(self.path.parent)
        with locked(self.path.with_suffix(".lock"), seconds=seconds):
            try:
                heads = self._read()
            except LoraOpsError:
                if only_later:
                    raise
                heads = {}  # damaged, and accepted to be written again
            # Two processes may come here in the other order than they changed the registry.
            behind = [name for name in names if not only_later or heads.get(name, (0, ""))[0] < head.seq]
            if not behind:
                return
            heads |= dict.fromkeys(behind, (head.seq, head.hash))
            write_atomically(self.path, (json.dumps(heads, indent=2) + "\n").encode())


def compare(log: Log | None, known: Head, source: str) -> str | None:
    """Return how `log` differs from one that held `known`, or None; the log may have grown since.

    Args:
        log: the log; None is an empty one.
        known: a head that it had; its hash may be cut to its first digits.
        source: who says so, for the text.
    """
    head = log.head() if log else Head()
    if log is None or head.seq < known.seq:
        return (
            f"the audit log ends at entry {head.seq}, and {source} knows entry {known.text}: the registry was "
            "replaced by an older copy, or by another one"
        )
    found = log.hash_at(known.seq)
    if found is None or not found.startswith(known.hash):
        return (
            f"entry {known.seq} of the audit log is {(found or 'missing')[:SHORTEST]}, and {source} knows "
            f"{known.text}: the registry was replaced by another one, or its history was written again"
        )
    return None


def read_head(text: str) -> Head:
    """Return the head that `17:a0d7…` names, as `lora-ops registry verify` prints it; the hash may be cut.

    Raises:
        LoraOpsError: the text names no head.
    """
    match = re.fullmatch(rf"([1-9][0-9]{{0,17}}):([0-9a-f]{{{SHORTEST},64}})…?", text.strip())
    if match is None:
        raise LoraOpsError(
            f"'{text}' is no head of an audit log: write SEQ:HASH with at least {SHORTEST} digits of the hash, "
            "as `lora-ops registry verify` prints it (17:a0d71c22e54f)."
        )
    return Head(int(match[1]), match[2])

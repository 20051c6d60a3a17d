"""One reviewer's file of votes: JSON lines that are only appended, each chained to the line before.

The file is on the disk after each click. A process that is killed leaves half a line at worst, which the next
reading drops and tells. A line that somebody edits no longer fits its own digest; one that somebody adds or
takes out of the middle does not fit its neighbours. What is cut off at the end shows once the reviewer has
submitted, since a submission names the digest of the whole file.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.clock import utc
from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, disk_reason
from lora_ops.hashing import canonical, sha256_text
from lora_ops.records.review import Annotation, Heading, Judgement
from lora_ops.registry.files import sync_folder
from lora_ops.settings.files import first_problem
from lora_ops.small_files import parse_json, read_small


class Votes(NamedTuple):
    """What a reviewer's file says.

    Attributes:
        heading: whose votes they are.
        last: task -> the line that counts, the latest one.
        digest: of the last line, to which the next one is chained.
        whole: bytes of the file up to its last whole line.
        dropped: bytes of half a line behind it.
    """

    heading: Heading
    last: dict[int, Annotation]
    digest: str
    whole: int
    dropped: int

    @property
    def judged(self) -> dict[int, Annotation]:
        """The tasks with a vote; a draft has none."""
        return {task: line for task, line in self.last.items() if line.said.vote}


def read(path: Path) -> Votes:
    """Read a reviewer's file and verify its chain.

    Raises:
        Damaged: a line is not what lora-ops wrote; the text names it.
        Unavailable: the file can't be read.
    """
    try:
        return parse(read_small(path), path.name)
    except OSError as error:
        raise Unavailable(f"{path} can't be read ({disk_reason(error)}).") from error


def parse(content: bytes, name: str) -> Votes:
    """Return what the bytes of a reviewer's file say; `name` is for the reader of an error.

    Raises:
        Damaged: a line is not what lora-ops wrote, or there is none.
    """
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].split(b"\n")[:-1]
    if not lines:
        raise Damaged(f"{name} has no whole line: remove the file, and begin again.")
    heading = _checked(Heading, lines[0], f"{name}, line 1")
    assert isinstance(heading, Heading)
    digest, last = heading.digest, dict[int, Annotation]()
    for place, line in enumerate(lines[1:], 2):
        where = f"{name}, line {place}"
        found = _checked(Annotation, line, where)
        assert isinstance(found, Annotation)
        if found.previous != digest:
            raise Damaged(
                f"{where} does not follow line {place - 1}: a line was added, moved or taken out by hand. "
                "Restore the file; votes are given in 05_review or by `lora-ops review import` only."
            )
        before = last.get(found.task)
        if found.revises != (before.digest if before else None):
            raise Damaged(
                f"{where} rates pair {found.task} a second time without revising the first: each pair counts "
                "once. Restore the file, or begin again."
            )
        last[found.task], digest = found, found.digest
    return Votes(heading, last, digest, whole, len(content) - whole)


def begin(path: Path, heading: dict[str, str], at: datetime) -> Votes:
    """Return a reviewer's votes, and make their file where there is none.

    Args:
        path: the file.
        heading: plan_sha256, adapter, content_digest and reviewer.
        at: now.

    Raises:
        Refused: the file is about another plan or reviewer.
        Damaged, Unavailable: as `read`.
    """
    with _held(path) as file:
        if b"\n" not in file.read():  # a new file, or half a first line of a process that was killed
            file.truncate(0)
            file.seek(0)
            _write(file, {**heading, "at": utc(at)})
    votes = read(path)
    require_about(votes.heading, heading, path.name)
    return votes


def require_about(found: Heading, heading: dict[str, str], name: str) -> None:
    """Refuse a file of another plan, version or reviewer.

    Raises:
        Refused: it is one.
    """
    stated = found.model_dump(include=set(heading))
    unlike = [key for key in heading if stated[key] != heading[key]]
    if unlike:
        key = unlike[0]
        raise Refused(
            f"{name} is about another {key.removesuffix('_sha256').replace('_', ' ')} ({stated[key]:.40}, not "
            f"{heading[key]:.40}): these votes don't count here."
        )


def record(path: Path, task: int, said: Judgement, at: datetime, *, seen: str | None) -> Annotation:
    """Append a judgement, and return once it is on the disk.

    Args:
        path: the reviewer's file, which `begin` has made.
        task: which place of their list.
        said: all that they say of it now.
        at: now.
        seen: digest of their last line on this task, which the new one revises; None: they have none.

    Raises:
        Refused: the task was judged meanwhile, as by another window of the same reviewer.
        Damaged, Unavailable: as `read`.
    """
    with _held(path) as file:
        votes = parse(file.read(), path.name)
        before = votes.last.get(task)
        now = before.digest if before else None
        if now != seen:
            raise Refused(
                f"Pair {task} was judged {'in another window' if seen else 'already'}, and counts once. Load "
                "it again to change what you said."
            )
        file.truncate(votes.whole)  # half a line of a process that was killed
        file.seek(votes.whole)
        line = {"task": task, "said": said.model_dump(mode="json"), "revises": seen, "at": utc(at)}
        return Annotation.model_validate(_write(file, {**line, "previous": votes.digest}))


@contextmanager
def unchanged(path: Path, content: bytes) -> Iterator[None]:
    """Keep votes out of a reviewer's file while it is handed in; half a line of a killed process goes.

    Args:
        path: the file.
        content: its whole lines, as the reviewer signed them.

    Raises:
        Refused: a vote came in meanwhile, as by another window of the same reviewer.
        Unavailable: the file can't be written.
    """
    with _held(path) as file:
        now = file.read()
        if now[: now.rfind(b"\n") + 1] != content:
            raise Refused(f"{path.name} got another vote while it was signed: submit again.")
        file.truncate(len(content))
        yield


def _write(file: Any, line: dict[str, Any]) -> dict[str, Any]:
    line = {**line, "digest": sha256_text(canonical(line))}
    file.write(canonical(line).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
    return line


def _checked(kind: type[Heading] | type[Annotation], line: bytes, where: str) -> Heading | Annotation:
    try:
        found, fits = _read(kind, line)
    except ValueError as error:
        why = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise Damaged(f"{where} is not what lora-ops wrote ({why}): restore the file.") from error
    if not fits:
        raise Damaged(
            f"{where} was edited by hand: its digest does not fit. Restore the file; votes are given in "
            "05_review or by `lora-ops review import` only."
        )
    return found


# Each vote reads all votes before it once more: without this a list of n pairs reads n² lines.
@lru_cache(maxsize=4096)
def _read(kind: type[Heading] | type[Annotation], line: bytes) -> tuple[Heading | Annotation, bool]:
    """Return what a line says, and whether its digest fits."""
    content = parse_json(line, unique=True)
    found = kind.model_validate(content)
    rest = {name: value for name, value in content.items() if name != "digest"}
    return found, sha256_text(canonical(rest)) == found.digest


@contextmanager
def _held(path: Path) -> Iterator[Any]:
    """Open a file to read and append, alone, and make it where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        if is_new:
            sync_folder(path.parent)
    except LoraOpsError:
        raise
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({disk_reason(error)}): this vote is not kept.") from error

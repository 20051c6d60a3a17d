"""Where one reviewer judges: what the notebook and the spreadsheet have in common, without a widget."""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from lora_ops.clock import now
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.review.annotations import begin, record
from lora_ops.gates.review.sessions import Session, require_given_again, reviewer_of, texts_of
from lora_ops.records.review import Judgement
from lora_ops.registry.store import Registry


class Pair(NamedTuple):
    """What a reviewer sees at one place of their list.

    Attributes:
        place: from 1.
        text: what was asked.
        left, right: the two answers; nothing says whose they are.
        said: what the reviewer has said of it so far.
    """

    place: int
    text: str
    left: str
    right: str
    said: Judgement


class Desk:
    """One reviewer's list with what they said; it reads nobody else's file, and needs no open registry."""

    def __init__(
        self, registry: Registry, session: Session, actor: str, clock: Callable[[], datetime] = now
    ) -> None:
        """Open a reviewer's list, and make their file where there is none.

        Raises:
            LoraOpsError: they may not vote, their file was edited by hand, or the review is of answers that
                nobody gave again.
        """
        self.session, self.now = session, clock
        self.reviewer = reviewer_of(registry, session, actor).id
        require_given_again(registry, session)
        self._tasks = session.plan.tasks[self.reviewer]
        self._texts = texts_of(registry, session)
        self._path = session.file_of(self.reviewer)
        votes = begin(self._path, session.heading_of(self.reviewer), clock())
        self.dropped = votes.dropped
        """Bytes of half a line that a killed process left."""
        self._last = votes.last

    @property
    def total(self) -> int:
        """How many pairs the list has."""
        return len(self._tasks)

    @property
    def judged(self) -> int:
        """How many of them have a vote."""
        return sum(line.said.vote is not None for line in self._last.values())

    @property
    def is_submitted(self) -> bool:
        """Whether the reviewer has handed the votes in, after which nothing changes."""
        return self.session.submission_of(self.reviewer).exists()

    def next_open(self, after: int = 0) -> int | None:
        """Return the next place without a vote, else the first of all; None: every pair is judged."""
        open_ = [place for place in range(1, self.total + 1) if not self.said(place).vote]
        return next((place for place in open_ if place > after), open_[0] if open_ else None)

    def said(self, place: int) -> Judgement:
        """Return what the reviewer has said of a pair so far."""
        line = self._last.get(place)
        return line.said if line else Judgement()

    def pair(self, place: int) -> Pair:
        """Return what stands at one place.

        Raises:
            LoraOpsError: the list has no such place.
        """
        if not 1 <= place <= self.total:
            raise LoraOpsError(f"The list of {self.reviewer} has {self.total} pairs, and no pair {place}.")
        task = self._tasks[place - 1]
        texts = self._texts[task.row]
        left, right = texts.adapter, texts.other
        if task.adapter == "right":
            left, right = right, left
        return Pair(place, texts.text, left, right, self.said(place))

    def say(self, place: int, judgement: Judgement) -> None:
        """Keep what the reviewer says of a pair; it is on the disk when this returns.

        Raises:
            LoraOpsError: no such pair, votes that were submitted, a pair that was judged in another window, or
                a file that can't be written.
        """
        pair = self.pair(place)
        if self.is_submitted:
            raise Refused(f"{self.reviewer} has submitted these votes: they can't be changed any more.")
        if judgement == pair.said:
            return
        before = self._last.get(place)
        seen = before.digest if before else None
        self._last[place] = record(self._path, place, judgement, self.now(), seen=seen)

    def load_again(self) -> None:
        """Read what another window of the same reviewer has written meanwhile.

        Raises:
            LoraOpsError: the file was edited by hand.
        """
        self._last = begin(self._path, self.session.heading_of(self.reviewer), self.now()).last

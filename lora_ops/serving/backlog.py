"""Tokens that a gateway has still to read and to write: what more replicas would share."""


class Backlog:
    """The tokens of all requests that clients wait for, answers that run included.

    How long an answer becomes is known once it has ended. Until then it counts as what answers of its kind
    hardly exceed; one that has become longer counts nothing more.
    """

    def __init__(self) -> None:
        self._works: set[Work] = set()

    def add(self, prompt: int, expected: int) -> "Work":
        """Return the work of one answer, which counts until it is `done`.

        Args:
            prompt: tokens that are read.
            expected: tokens that are written, as far as anybody can tell.
        """
        work = Work(self._works, prompt, expected)
        self._works.add(work)
        return work

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are not read yet."""
        return sum(work.prompt for work in self._works)

    @property
    def generated_tokens(self) -> int:
        """Tokens that are expected to be written yet."""
        return sum(max(0, work.expected) for work in self._works)


class Work:
    """What is left of one answer."""

    def __init__(self, works: "set[Work]", prompt: int, expected: int) -> None:
        self._works = works
        self.prompt, self.expected = prompt, expected

    def wrote(self, tokens: int) -> None:
        """Its prompt is read, and so many tokens came."""
        self.prompt = 0
        self.expected -= tokens

    def done(self) -> None:
        """Nothing is left, whatever it was expected to be; a second time changes nothing."""
        self._works.discard(self)

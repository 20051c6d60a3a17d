"""A text that is redacted while it is written: what of it may leave, and what an identifier may still reach.

Most of a text leaves word by word. Behind a digit it is held until no identifier can reach over the place
where it is cut: behind two words without a digit, behind a line's end, or `LONGEST` characters later. An
e-mail address has any length and no gap, so a word is never cut. What left is looked at again as context:
`phone:` makes a phone number of what follows. A chain of numbers without an end is held for `MOST_HELD`
characters: then its mark leaves, and the rest of the chain is dropped as it comes.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence

from lora_ops.detectors.folding import fold
from lora_ops.detectors.identifiers import Found, chain_end, merged, replaced

LONGEST = 72
"""Folded characters of the longest identifier but an e-mail address: a phone number with three gaps a digit."""
AFTER = 16
"""Folded characters after a number that decide what it is, as `mobile` does in `555 0147 (mobile)`."""
MOST_HELD = 400
"""Characters that are held for one identifier, or chain of them, where that has a gap."""
LOOK_AGAIN = 8  # A held identifier is looked at again when the text has grown by this part of what is held.

# In characters of the text. Recognisers look back 60 from where an identifier begins.
_TAIL = 400
_CONTEXT = 256
_MOST_CONTEXT = 1024

_SPACES = re.compile(r"\s+")
_LETTER = re.compile(r"[^\W\d_]")
_OPEN = re.compile(
    # An IBAN whose groups may be words, and a month before its day.
    r"(?<![^\W_])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){0,40}[ -]?$"
    r"|(?<![^\W_])(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?\s$",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")
_IN_WORD = re.compile(r"[\w.+%'@:-]")
_TO_LAST_GAP = re.compile(r".*[^\w.+%'@:-]", re.DOTALL)


class StreamedText:
    """One text that grows; `window` is what a recogniser has to see of it.

    Args:
        context: what stands before it and has left already, such as the end of a prompt.
    """

    def __init__(self, context: str = "") -> None:
        self.window = context
        self._left = len(context)  # characters of the window that have left
        self._next_look = 0  # how long the window is to be before an identifier at its end is looked at again
        self._chain: str | None = None  # the kind of the chain whose mark has left before its end came

    @property
    def held(self) -> str:
        """What has not left."""
        return self.window[self._left :]

    def add(self, text: str) -> None:
        """Take what is new."""
        if self._left > _MOST_CONTEXT:
            before = len(self.window)
            self._forget()
            self._next_look -= before - len(self.window)
        self.window += text

    def cut(self) -> int:
        """Return where the window may be cut: before it nothing is of an identifier that is not whole yet."""
        if len(self.window) < self._next_look:
            return self._left
        known = max(self._left - LONGEST - AFTER, 0)
        start = max(known, len(self.window) - _TAIL)
        folded, places = fold(self.window[start:])
        least = bisect_left(places, self._left - start) + 1
        if start > known:  # what is before the tail, and has not left, may have a digit
            least = max(least, LONGEST + AFTER)
        end = _end(folded, least)
        return start + places[end - 1] + 1 if end else self._left

    def leave(self, cut: int, found: Sequence[Found]) -> tuple[str, list[Found]]:
        """Return what leaves of the window up to `cut`, redacted, and what was replaced there.

        Args:
            cut: what `cut` gave for this window, or its length at the text's end.
            found: what `identifiers.redacted_parts` finds in the whole window.
        """
        if cut <= self._left:
            return "", []
        found, dropped = self._behind_mark(found)
        chain, self._next_look = None, 0
        cut_through = next((one for one in found if one.start < cut < one.end), None)
        if cut_through:
            begin = max(cut_through.start, self._left)
            held = len(self.window) - begin
            if held > MOST_HELD or dropped > cut:  # its mark leaves now, or has left
                chain, self._next_look = cut_through.kind, len(self.window) + MOST_HELD // LOOK_AGAIN
            else:  # it waits for its end
                cut, self._next_look = begin, len(self.window) + held // LOOK_AGAIN
        parts = [one for one in found if one.end > self._left and one.start < cut]
        # What an identifier has of the context, such as the end of a prompt, has left.
        start = min(dropped, cut)
        marks = [one for one in parts if one.end > dropped]
        ours = [Found(one.kind, max(one.start, start) - start, one.end - start) for one in marks]
        text = replaced(self.window[start:cut], ours)
        self._left, self._chain = cut, chain
        return text, parts

    def _behind_mark(self, found: Sequence[Found]) -> tuple[Sequence[Found], int]:
        """Return what was found, with the rest of a chain whose mark has left, and where that rest ends.

        Nothing of the rest leaves: its mark stands for it.
        """
        if self._chain is None:
            return found, self._left
        end = chain_end(self.window, self._left)
        if end > self._left:
            found = merged([*found, Found(self._chain, self._left, end)])
        return found, next((one.end for one in found if one.start <= self._left < one.end), self._left)

    def _forget(self) -> None:
        """Let go of what is no context any more, up to a place where no identifier is cut."""
        last = self._left - _CONTEXT
        folded, places = fold(self.window[last - _CONTEXT : last])
        end = _end(folded, 1, after=0)
        start = last - _CONTEXT + places[end - 1] + 1 if end else last
        self.window, self._left = self.window[start:], self._left - start


def _end(folded: str, least: int, after: int = LONGEST + AFTER) -> int:
    """Return the end of what may leave of a text, not before `least`; 0 where nothing may."""
    ends = [match.end() for match in _SPACES.finditer(folded)]
    words = list(zip([0, *ends], ends, strict=False))  # each with the spaces behind it
    for number in range(len(words) - 1, -1, -1):
        start, end = words[number]
        if end < least:
            break
        if "\n" in folded[start:end]:
            return end
        before = max(0, end - LONGEST - AFTER)
        plain = number and _is_plain(folded, words[number]) and _is_plain(folded, words[number - 1])
        if (plain or not _DIGIT.search(folded, before, end)) and not _OPEN.search(folded, before, end):
            return end
    # No recogniser reaches over so many characters, but a word may go on for ever.
    last = len(folded) - after
    if last < least:
        return 0
    if last == len(folded) or not (_IN_WORD.match(folded, last) and _IN_WORD.match(folded, last - 1)):
        return last
    gap = _TO_LAST_GAP.match(folded, 0, last)
    return gap.end() if gap and gap.end() >= least else 0


def _is_plain(folded: str, span: tuple[int, int]) -> bool:
    return _LETTER.search(folded, *span) is not None and _DIGIT.search(folded, *span) is None

"""One plain spelling of a text for the recognisers, with the way back to the text itself.

People and machines write the same number in many characters: full-width and Arabic digits, no-break spaces,
long dashes, characters of no width between the digits. A recogniser sees ASCII digits, spaces and hyphens only.
"""

import unicodedata
from collections.abc import Sequence

# Characters that join what stands beside them: variation selectors and the keycap of an emoji digit.
_JOINERS = frozenset([*range(0xFE00, 0xFE10), 0x20E3])
# Blocks whose letters and signs are styles of ASCII: enclosed, full-width and mathematical ones.
_STYLES = ((0x2460, 0x2500), (0xFF00, 0xFFF0), (0x1D400, 0x1D800))


class _Table(dict[int, str | None]):
    """A table for `str.translate` that works a character out when a text first has it."""

    def __missing__(self, code: int) -> str | None:
        self[code] = folded = _fold_letter(chr(code), code)
        return folded


def _fold_letter(letter: str, code: int) -> str | None:
    """Return the one character that stands for `letter`, or None where it has no width."""
    category = unicodedata.category(letter)
    if category == "Cf" or code in _JOINERS:
        return None
    if category == "Nd":
        return str(unicodedata.decimal(letter))
    if any(first <= code < end for first, end in _STYLES):
        plain = unicodedata.normalize("NFKC", letter)
        letter = plain if len(plain) == 1 else letter
        category = unicodedata.category(letter)
    if category == "Zs":
        return " "
    return "-" if category == "Pd" or letter == "\u2212" else letter


# It holds at most as many entries as Unicode has characters.
_TABLE = _Table({code: chr(code) for code in range(128)})


def fold(text: str) -> tuple[str, Sequence[int]]:
    """Return the plain spelling of a text, and the place in the text of each of its characters."""
    if text.isascii():
        return text, range(len(text))
    folded = text.translate(_TABLE)
    if len(folded) == len(text):
        return folded, range(len(text))
    return folded, [place for place, letter in enumerate(text) if _TABLE[ord(letter)] is not None]

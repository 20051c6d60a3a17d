"""JSON's escapes read: a model spells `@` as `\\u0040`, and a JSON text within another as `\\\\u0040`."""

import re
from collections.abc import Sequence

from lora_ops.detectors.identifiers import Found, merged, redacted_parts

LEVELS = 3
"""How often escapes are read: once, and for a text in a text in a text."""

_PAIR = r"u(?P<high>[Dd][89ABab][0-9A-Fa-f]{2})\\u(?P<low>[Dd][C-Fc-f][0-9A-Fa-f]{2})"
_ESCAPE = re.compile(rf"\\(?:{_PAIR}|u(?P<code>[0-9A-Fa-f]{{4}})|(?P<letter>.))", re.DOTALL)
_SPELLED = re.compile(r"\\u[0-9A-Fa-f]{4}")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}


def unescaped(text: str) -> tuple[str, Sequence[int]]:
    """Return a text with its escapes read, whole JSON or not, until none is left or `LEVELS` times.

    With it comes the place in `text` of each of its characters, and at the end the length of `text`.
    """
    places: Sequence[int] = range(len(text) + 1)
    for _ in range(LEVELS):
        if "\\" not in text:
            break
        text, within = _read(text)
        places = [places[place] for place in within]
    return text, places


def found_within(text: str) -> list[Found]:
    """Return what `redacted_parts` gives for a text, and for what its `\\u` escapes spell, in its places."""
    found = redacted_parts(text)
    if not _SPELLED.search(text):
        return found
    read, places = unescaped(text)
    spelled = (Found(one.kind, places[one.start], places[one.end]) for one in redacted_parts(read))
    return merged([*found, *spelled])


def _read(text: str) -> tuple[str, list[int]]:
    """Return a text with its escapes read once, and the place in `text` of each character and of the end."""
    pieces: list[str] = []
    places: list[int] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        pieces += [text[end : match.start()], _letter(match)]
        places += range(end, match.start() + 1)  # what was read stands where its escape begins
        end = match.end()
    return "".join([*pieces, text[end:]]), [*places, *range(end, len(text) + 1)]


def _letter(match: re.Match[str]) -> str:
    if match["high"]:
        halves = int(match["high"], 16) - 0xD800, int(match["low"], 16) - 0xDC00
        return chr(0x10000 + (halves[0] << 10) + halves[1])
    if match["code"]:
        code = int(match["code"], 16)
        return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)  # half a character
    return _LETTERS.get(match["letter"], match["letter"])

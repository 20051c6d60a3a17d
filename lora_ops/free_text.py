"""What a text must hold that somebody writes into the record: a reason, a note, a summary, an incident.

The audit log keeps such a text for ever, and a reviewer reads it years later. A text of spaces, control
characters or characters of no width looks like a reason to a program and says nothing to a person.
"""

import unicodedata

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import one_line

LEAST_LETTERS = 2
"""Two characters of Chinese are a word; a dot or an x is none."""
MOST_CHARACTERS = 4000
"""Two pages. A longer story is a file of its own, filed as evidence."""
LONGEST_NAME = 200
# Letters by their Unicode category that no font shows: the fillers of Hangul.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")


def count_letters(text: str) -> int:
    """Return how many letters and digits of any script a reader sees in `text`."""
    return sum(unicodedata.category(one)[0] in "LN" and one not in _BLANK_LETTERS for one in text)


def require_text(text: str, ask: str) -> str:
    """Return `text` without the space around it, if a person can read something in it.

    A line feed, a control character or one of no width is kept, since an incident must not wait for a text that
    somebody pasted. Wherever the text is shown, `lora_ops.escaping` shows these as escapes.

    Args:
        text: what somebody wrote.
        ask: what to do where it says nothing, such as "Say why".

    Raises:
        LoraOpsError: it has fewer than two letters or digits, more than 4,000 characters, or bytes that are not
            UTF-8.
    """
    _require_utf8(text, ask)
    letters = count_letters(text[: MOST_CHARACTERS + 1])
    if letters < LEAST_LETTERS:
        found = f"{letters} letter" if letters == 1 else "no letter"
        raise LoraOpsError(f"{ask}: this text has {found} or digit, and at least {LEAST_LETTERS} are needed.")
    if len(text) > MOST_CHARACTERS:
        raise LoraOpsError(
            f"{ask} in at most {MOST_CHARACTERS:,} characters (this text has {len(text):,}): a longer one is a "
            "file, which `--evidence KIND=FILE` keeps."
        )
    return text.strip()


def require_name(name: str, ask: str) -> str:
    """Return the name of somebody who acts, without the space around it.

    Raises:
        LoraOpsError: it has no letter or digit, more than 200 characters, or a character that nobody sees.
    """
    _require_utf8(name, ask)
    if count_letters(name[: LONGEST_NAME + 1]) == 0:
        raise LoraOpsError(f"{ask}: this name has no letter or digit.")
    if len(name) > LONGEST_NAME:
        raise LoraOpsError(f"{ask}: a name has at most {LONGEST_NAME} characters, and this one {len(name):,}.")
    if one_line(name.strip()) != name.strip():
        raise LoraOpsError(f"{ask}: '{one_line(name)}' has a character that nobody sees; a name has none.")
    return name.strip()


def _require_utf8(text: str, ask: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise LoraOpsError(f"{ask}: '{one_line(text[:80])}' is not UTF-8.")

"""Which labels params.yaml accepts: those that an answer can be told to mean."""

import unicodedata
from collections.abc import Sequence

from lora_ops.escaping import one_line

NO_LABEL = "(no label)"


def plain(text: str) -> str:
    """Return `text` in Unicode's composed form with single spaces: two labels must differ in this."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def indistinct(labels: Sequence[str]) -> str | None:
    """Return why no answer could be told to mean one of `labels` and no other one; None if it can."""
    seen: dict[str, str] = {"": "an empty text", plain(NO_LABEL): f"'{NO_LABEL}', which names a wrong answer"}
    for label in labels:
        if one_line(label) != label:
            return f"the label '{one_line(label)}' has a character that nobody sees"
        other = seen.get(plain(label))
        if other is not None:
            return f"the label '{label}' can't be told from {other}"
        seen[plain(label)] = f"'{label}'"
    return None

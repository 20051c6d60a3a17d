"""Direct identifiers in a text: found by the data contract, counted and redacted by the gateway.

Direct ones only: a name in a newspaper is not a data leak, an e-mail address in a card descriptor is.
"""

import re

PII = {
    "e-mail address": r"[\w.+-]{1,64}@[\w-]{1,63}\.[A-Za-z]{2,}",
    "US social security number": r"\b\d{3}-\d{2}-\d{4}\b",
    "payment card number": r"\b(?:\d[ -]?){13,16}\b",
    "phone number": r"(?<![\d.])(?:\+\d{1,3}[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b",
    "IBAN": r"\b[A-Z]{2}\d{2}[ ]?(?:[A-Z0-9]{4}[ ]?){3,7}[A-Z0-9]{1,4}\b",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in PII.items()}


def redact(text: str) -> tuple[str, int]:
    """The text with each direct identifier replaced by its kind in brackets, and how many there were."""
    found = 0
    for kind, pattern in _PATTERNS.items():
        text, times = pattern.subn(f"[{kind}]", text)
        found += times
    return text, found

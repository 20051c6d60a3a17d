"""Identifiers that an answer holds and its prompt lacks: what a user gave, an answer may repeat."""

from lora_ops.detectors.identifiers import find_identifiers
from lora_ops.settings.policy import letters


def new_identifiers(answer: str, prompt: str) -> list[str]:
    """Return the kinds of the identifiers in an answer whose letters and digits the prompt lacks."""
    known = letters(prompt)
    found = find_identifiers(answer)
    return [one.kind for one in found if letters(answer[one.start : one.end]) not in known]

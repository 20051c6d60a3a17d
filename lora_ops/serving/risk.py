"""A cheap score of insults and threats in a text.

It is made to find what to look at, not to block: a person, or a classifier offline, judges. The score is a list
of English words and phrases with weights (1 for a threat or an insult at somebody, 0.5 for swearing at nobody),
summed and cut at 1. It knows nothing of context, irony or other languages.
"""

import re
from dataclasses import dataclass

from lora_ops.detectors.identifiers import redact

# Of each text: the patterns take about 1 µs a character.
SCORED_CHARACTERS = 16_000
CUT_CHARACTERS = 400

INSULTS = (
    "idiot|idiots|moron|morons|imbecile|imbeciles|stupid|dumbass|scum|scumbag|vermin|subhuman|subhumans|worthless|"
    "loser|losers|pathetic|bastard|bastards|bitch|bitches|asshole|assholes|retard|retards|retarded|whore|slut|"
    "disgusting people|shut up"
)
THREATS = (
    r"kill (?:you|him|her|them|yourself|myself|all)|"
    r"(?:i|we)(?:'ll| will) (?:hurt|kill|find|destroy) (?:you|him|her|them)|"
    r"(?:you|they) (?:should|deserve to|must) (?:die|be shot|be hanged)|go die|"
    r"hate (?:you|them|those|these) \w+"
)
SWEARING = r"fuck\w*|shit\w*|bullshit|crap|damn(?:ed|it)?|goddamn|piss(?:ed)?"
TOXIC = (
    (re.compile(rf"\b(?:{INSULTS})\b", re.IGNORECASE), 1.0),
    (re.compile(rf"\b(?:{THREATS})\b", re.IGNORECASE), 1.0),
    (re.compile(rf"\b(?:{SWEARING})\b", re.IGNORECASE), 0.5),
)


def toxicity(text: str) -> float:
    """From 0, nothing found, to 1."""
    return min(1.0, sum(weight * len(pattern.findall(text)) for pattern, weight in TOXIC))


@dataclass(frozen=True)
class Scores:
    """What was found in a prompt and its answer, and the two texts with their identifiers redacted."""

    prompt_identifiers: int
    answer_identifiers: int
    answer_toxicity: float
    prompt_text: str
    answer_text: str


NOTHING = Scores(0, 0, 0.0, "", "")


def score(prompt: str, answer: str) -> Scores:
    """Return the scores of two texts; of a long text, scores and redacted text are of its beginning."""
    prompt_text, prompt_found = redact(prompt[:SCORED_CHARACTERS])
    answer_text, answer_found = redact(answer[:SCORED_CHARACTERS])
    return Scores(
        prompt_identifiers=prompt_found,
        answer_identifiers=answer_found,
        answer_toxicity=toxicity(answer[:SCORED_CHARACTERS]),
        prompt_text=_kept(prompt_text, prompt),
        answer_text=_kept(answer_text, answer),
    )


def _kept(redacted: str, whole: str) -> str:
    """Return what is kept of a text: where it was cut, not its last part, which may be half an identifier."""
    return f"{redacted[:-CUT_CHARACTERS]}…" if len(whole) > SCORED_CHARACTERS else redacted

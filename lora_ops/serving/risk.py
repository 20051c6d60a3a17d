"""A cheap score of insults and threats in a text.

It is made to find what to look at, not to block: a person, or a classifier offline, judges. The score is a list
of English words and phrases with weights (1 for a threat or an insult at somebody, 0.5 for swearing at nobody),
summed and cut at 1. It knows nothing of context, irony or other languages.
"""

import re

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

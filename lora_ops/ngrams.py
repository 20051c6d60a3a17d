"""Counts of a text's letters in threes, hashed with a secret key: they say what texts are about, and not which.

A text becomes at most `MOST` numbers from 0 to 255, sorted, so that no order is left. 256 buckets stand for
thousands of trigrams (feature hashing: Weinberger et al., 2009). Without the key nobody can try which text has
these numbers. Whoever has the key can confirm a guess, so the key is kept as the one for users' names is.
"""

import hashlib
import random
import re

BUCKETS = 256
LETTERS = 3
MOST = 64
"""Trigrams of one text, drawn at random from a longer one: a long prompt counts as much as a short one."""
WORD = re.compile(r"\w+")


def hashed_ngrams(text: str, key: bytes) -> str:
    """Return the buckets of a text's trigrams as hex, two digits each, sorted; the same text gives the same."""
    words = (f" {word} " for word in WORD.findall(text.casefold()))
    found = [word[at : at + LETTERS] for word in words for at in range(len(word) - LETTERS + 1)]
    if len(found) > MOST:
        found = random.Random(text).sample(found, MOST)
    hashes = (hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=1, key=key) for one in found)
    return b"".join(sorted(one.digest() for one in hashes)).hex()


def user_part(prompt: str) -> str:
    """Return what the user said last of a chat as the event log has it: lines of `role: text`."""
    return f"\n{prompt}".rpartition("\nuser: ")[2]

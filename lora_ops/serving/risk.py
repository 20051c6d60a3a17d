"""Scores of a prompt and its answer: identifiers, insults and profanity, and the two texts redacted.

The scores find what to look at. They block nothing: a person, or a classifier offline, judges.
"""

from dataclasses import dataclass

from lora_ops.detectors.identifiers import redact
from lora_ops.detectors.insults import packaged_insults
from lora_ops.detectors.new_identifiers import new_identifiers
from lora_ops.ngrams import hashed_ngrams, user_part

# Of a prompt, and of each text that is kept: a process scores about 1 MB a second.
SCORED_CHARACTERS = 16_000
ANSWER_CHARACTERS = 64_000
"""Of an answer, which is scored further than it is kept: a version must not hide anything by many words."""
CUT_CHARACTERS = 400
KNOWN_CHARACTERS = 200_000
"""Of a prompt: an identifier that stands there is not the adapter's. To compare is quick."""


@dataclass(frozen=True)
class Scores:
    """What was found in a prompt and its answer, and the two texts with their identifiers redacted.

    `answer_insults` is from 0 to 1, by the weights that `insult_detector` names. `answer_new_identifiers` are
    those that the client did not give. `prompt_ngrams` is what `lora_ops.ngrams.hashed_ngrams` makes of the
    user's last words.
    """

    prompt_identifiers: int
    answer_identifiers: int
    answer_insults: float
    insult_detector: str | None
    prompt_text: str
    answer_text: str
    prompt_ngrams: str | None = None
    answer_new_identifiers: int = 0


NOTHING = Scores(0, 0, 0.0, None, "", "")


def score(prompt: str, answer: str, ngram_key: str | None = None, given_from: int = 0) -> Scores:
    """Return the scores of two texts; of a long text they are of its beginning.

    A redacted text ends after `SCORED_CHARACTERS`. An answer is scored up to `ANSWER_CHARACTERS`.

    Args:
        prompt, answer: the texts.
        ngram_key: in hex; hashes the prompt's n-grams. None: they are not counted.
        given_from: where the client's own words begin in the prompt. Before them is the system prompt of the
            version. Whatever stands there was put there by its makers, and gives somebody away all the same.

    Raises:
        LoraOpsError: the weights that find insults are missing or not the expected ones.
    """
    insults = packaged_insults()
    prompt_text, prompt_found = redact(prompt[:SCORED_CHARACTERS])
    answer_text, answer_found = redact(answer[:SCORED_CHARACTERS])
    given = prompt[given_from:KNOWN_CHARACTERS]
    said = answer[:ANSWER_CHARACTERS]
    if len(answer) > SCORED_CHARACTERS:
        answer_found = redact(said)[1]
    new = new_identifiers(said, given) if answer_found else []
    return Scores(
        prompt_identifiers=prompt_found,
        answer_identifiers=answer_found,
        answer_insults=round(insults.scores([said])[0], 4),
        insult_detector=insults.version,
        prompt_text=kept(prompt_text, prompt),
        answer_text=kept(answer_text, answer),
        prompt_ngrams=hashed_ngrams(user_part(prompt[:SCORED_CHARACTERS]), bytes.fromhex(ngram_key))
        if ngram_key
        else None,
        answer_new_identifiers=len(new),
    )


def kept(redacted: str, whole: str) -> str:
    """Return what is kept of a text: where it was cut, not its last part, which may be half an identifier."""
    return f"{redacted[:-CUT_CHARACTERS]}…" if len(whole) > SCORED_CHARACTERS else redacted

"""What the two answers of a pair are worth, by the task's check and the gates' detectors.

The patterns and chrF keep the GIL, so the gateway has this done by the process that scores risks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_ops.detectors.identifiers import redact
from lora_ops.detectors.insults import packaged_insults
from lora_ops.detectors.new_identifiers import new_identifiers
from lora_ops.detectors.risky import insults, leaks
from lora_ops.evaluation.labels import label_form, normalize, read_label
from lora_ops.serving.risk import ANSWER_CHARACTERS, KNOWN_CHARACTERS, SCORED_CHARACTERS, kept
from lora_ops.serving.task_check import are_labels, does_task
from lora_ops.settings.labels import NO_LABEL

COMPARED_CHARACTERS = 4000
"""Of each text, for chrF: its time grows with their product."""


@dataclass(frozen=True)
class PairTexts:
    """What is judged.

    Attributes:
        production, shadow: the answers, as many of each; none of `shadow` where it did not answer.
        production_labels, shadow_labels: that each version was trained for; none for texts.
        expected: the right answer to each, where it is known.
        insult_threshold: from which score on an answer counts as insulting.
        given_from: where in `prompt` the client's own words begin, behind production's system prompt.
    """

    prompt: str
    production: Sequence[str]
    shadow: Sequence[str]
    production_labels: Sequence[str] = ()
    shadow_labels: Sequence[str] = ()
    expected: Sequence[str] = ()
    insult_threshold: float = 0.5
    given_from: int = 0

    @property
    def characters(self) -> int:
        """The length of all texts."""
        return len(self.prompt) + sum(map(len, (*self.production, *self.shadow)))


@dataclass(frozen=True)
class PairScores:
    """The fields of a `ShadowPair` that are judged."""

    agreement: float | None
    similarity: float | None
    production_task: float | None
    shadow_task: float | None
    production_identifiers: float | None
    shadow_identifiers: float | None
    production_insults: float | None
    shadow_insults: float | None
    insult_detector: str
    prompt_text: str
    production_text: str
    shadow_text: str


def judge(texts: PairTexts) -> PairScores:
    """Return the scores of a pair; of a long text they are of its beginning, as those of an event are.

    Raises:
        LoraOpsError: the weights that find insults are missing or not the expected ones.
    """
    production = _Side(texts.production, texts.production_labels, texts)
    shadow = _Side(texts.shadow, texts.shadow_labels, texts)
    pairs = list(zip(texts.production, texts.shadow, strict=bool(texts.shadow)))
    labelled = bool(texts.production_labels and texts.shadow_labels)
    same = (_agrees(one, other, texts) for one, other in pairs)
    return PairScores(
        agreement=_mean(list(same)),
        similarity=None if labelled else _similarity(pairs),
        production_task=_mean(production.task),
        shadow_task=_mean(shadow.task),
        production_identifiers=_mean(production.identifiers),
        shadow_identifiers=_mean(shadow.identifiers),
        production_insults=_mean(production.insults),
        shadow_insults=_mean(shadow.insults),
        insult_detector=packaged_insults().version,
        prompt_text=kept(redact(texts.prompt[:SCORED_CHARACTERS])[0], texts.prompt),
        production_text="\n".join(production.redacted),
        shadow_text="\n".join(shadow.redacted),
    )


class _Side:
    """One version's answers."""

    def __init__(self, answers: Sequence[str], labels: Sequence[str], texts: PairTexts) -> None:
        begins = [answer[:SCORED_CHARACTERS] for answer in answers]
        found = [redact(text) for text in begins]
        self.redacted = [kept(text, answer) for (text, _), answer in zip(found, answers, strict=True)]
        # Many answers share the room of one, so that the process never takes longer than it may.
        room = max(SCORED_CHARACTERS, ANSWER_CHARACTERS // max(1, len(answers)))
        # An empty answer is not looked at.
        said = [answer[:room] for answer in answers if answer.strip()]
        prompt = texts.prompt[texts.given_from : KNOWN_CHARACTERS]
        self.identifiers = [float(leaks(len(new_identifiers(text, prompt)))) for text in said]
        self.insults = [
            float(insults(score, are_labels([text], labels), texts.insult_threshold))
            for text, score in zip(said, packaged_insults().scores(said), strict=True)
        ]
        if texts.expected:
            form = label_form(labels) if labels else normalize
            self.task = [
                float(form(answer) == form(right))
                for answer, right in zip(answers, texts.expected, strict=False)
            ]
        else:
            self.task = [float(does_task(answer, labels)) for answer in begins]


def _agrees(production: str, shadow: str, texts: PairTexts) -> float:
    if texts.production_labels and texts.shadow_labels:
        one = read_label(production[:SCORED_CHARACTERS], texts.production_labels)
        other = read_label(shadow[:SCORED_CHARACTERS], texts.shadow_labels)
        if one != NO_LABEL or other != NO_LABEL:
            return float(one == other)
    return float(normalize(production) == normalize(shadow))


def _similarity(pairs: Sequence[tuple[str, str]]) -> float | None:
    from lora_ops.evaluation.texts import chrf  # sacrebleu; tenants with labels don't need it

    if not pairs:
        return None
    ones = [one[:COMPARED_CHARACTERS] for one, _ in pairs]
    others = [other[:COMPARED_CHARACTERS] for _, other in pairs]
    return round(float(chrf(ones, others).mean()), 4)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

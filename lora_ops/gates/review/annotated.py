"""What reviewers said, beside the answers that they said it of, from the evidence that the registry keeps."""

from collections import defaultdict
from typing import NamedTuple

from lora_ops.gates.review.evidence import SOURCE, Told, kept_session, read_bundle, rows_left_out, unblinded
from lora_ops.gates.review.sessions import texts_of
from lora_ops.records.evidence import HumanEvidence
from lora_ops.registry.reports import last_document
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version


class AnnotatedPair(NamedTuple):
    """One row, both answers, and what each reviewer said; a hidden repeat is not shown a second time.

    Attributes:
        row: id of the row in answers.csv.
        text: what was asked.
        adapter: the version's answer.
        other: the answer that it was compared with.
        against: whose that is, `base` or a version.
        said: the reviewers' votes, ratings, breaches, comments and corrected answers.
    """

    row: str
    text: str
    adapter: str
    other: str
    against: str
    said: tuple[Told, ...]

    @property
    def has_words(self) -> bool:
        """Whether somebody wrote a comment, a breach or a corrected answer."""
        return any(one.comment.strip() or one.breach or one.corrected.strip() for one in self.said)


def annotated_pairs(registry: Registry, version: Version) -> list[AnnotatedPair]:
    """Return the judged pairs of the review that is filed on a version, those with words first.

    There are none where no review is filed, or one that was counted from rows as earlier releases did. Votes
    that did not count, such as those of its author or on texts that it does not give, are left out.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    document = last_document(registry, version, "human_evaluation")
    if not isinstance(document, HumanEvidence) or document.review is None:
        return []
    source = registry.files.checked(document.source.sha256, SOURCE).read_bytes()
    plan, votes = read_bundle(source)
    session = kept_session(registry, document, source)
    counted = {reviewer.person for reviewer in document.review.reviewers}
    other = rows_left_out(registry, session, document)
    said: dict[str, list[Told]] = defaultdict(list)
    for reviewer, (_, given) in votes.items():
        for told in unblinded(plan, reviewer, given) if reviewer in counted else ():
            if not told.task.repeat and told.task.row not in other:
                said[told.task.row].append(told)
    texts = texts_of(registry, session)
    pairs = [
        AnnotatedPair(row, texts[row].text, texts[row].adapter, texts[row].other, plan.against, tuple(told))
        for row, told in said.items()
    ]
    return sorted(pairs, key=lambda pair: not pair.has_words)

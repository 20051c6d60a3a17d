"""The held-out answers of a version that were given again for its regression report, by the log.

Reviewers judge these. Whoever packages a version writes the answers in its package, and some of them may be
others than its adapter gives: see `lora_ops.gates.held_out`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lora_ops.errors import Damaged
from lora_ops.records.evaluation import ADAPTER, BASE
from lora_ops.records.evidence import Evidence, HumanEvidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.reports import filed, own_evidence
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import read_source
from lora_ops.registry.versions import Version


class AnswersAgain(NamedTuple):
    """Answers that were given again.

    Attributes:
        report_sha256: the regression report that they were given for.
        by_system: system -> its answers to the held-out rows, in the order of the package.
    """

    report_sha256: str
    by_system: Mapping[str, Sequence[str]]

    def same_texts(self, other: "AnswersAgain", *systems: str) -> bool:
        """Return whether these systems gave the same texts for both reports."""
        return all(
            list(self.by_system.get(name, ())) == list(other.by_system.get(name, ())) for name in systems
        )


def last_answers_again(
    registry: Registry, version: Version, history: Sequence[AuditEntry] | None = None
) -> AnswersAgain | None:
    """Return the answers of a version's last regression report; None where it has none.

    Args:
        registry: where.
        version: which.
        history: the version's entries that count; default: all.

    Raises:
        LoraOpsError: what the report was computed from is missing, was changed, or has another form.
    """
    return _answers(registry, version, filed(version, _entries(registry, version, history)).get("regression"))


def filed_answers_again(
    registry: Registry, version: Version, report_sha256: str, history: Sequence[AuditEntry] | None = None
) -> AnswersAgain:
    """Return the answers of one regression report that was filed on a version.

    Raises:
        Damaged: no such report was filed on its content, or answers were not given again for it.
        LoraOpsError: what it was computed from is missing, was changed, or has another form.
    """
    entries = _entries(registry, version, history)
    named = [one for one in own_evidence(entries, version.number) if one.sha256 == report_sha256]
    found = _answers(registry, version, named[0]) if named and named[0].kind == "regression" else None
    if found is None:
        raise Damaged(
            f"No regression report {report_sha256[:12]}… with answers that were given again is filed on "
            f"{version.id}: start its review again (`lora-ops review start {version.id}`)."
        )
    return found


def other_texts(
    registry: Registry, version: Version, history: Sequence[AuditEntry], document: HumanEvidence
) -> Iterator[str]:
    """Yield that the last regression report has other answers than the one by which votes were counted.

    Args:
        registry: where.
        version: which.
        history: the version's entries.
        document: its human evaluation.

    Raises:
        LoraOpsError: what one of both reports was computed from is missing, was changed, or has another form.
    """
    review, newest = document.review, filed(version, history).get("regression")
    if review is None or review.regression_sha256 is None:
        return  # `report_lacks` says so
    if newest is None or newest.sha256 == review.regression_sha256:
        return
    now = last_answers_again(registry, version, history)
    then = filed_answers_again(registry, version, review.regression_sha256, history)
    systems = (ADAPTER, BASE) if review.against == BASE else (ADAPTER,)
    if now is None or not now.same_texts(then, *systems):
        yield (
            "a human evaluation of the answers in its last regression report (it was counted by an earlier "
            f"report with other answers: `lora-ops review file {version.id}` counts it again)"
        )


def _answers(registry: Registry, version: Version, one: Evidence | None) -> AnswersAgain | None:
    if one is None or one.source_sha256 is None:
        return None
    source = read_source(registry, version.id, one.source_sha256)
    evaluated, answers = source.evaluated, source.evaluation_answers
    if evaluated is None or evaluated.verdict == "missing" or source.digest != version.summary.content_digest:
        return None
    if not {ADAPTER, BASE} <= answers.keys() or any(len(given) != evaluated.rows for given in answers.values()):
        return None
    return AnswersAgain(one.sha256, answers)


def _entries(
    registry: Registry, version: Version, history: Sequence[AuditEntry] | None
) -> Sequence[AuditEntry]:
    return registry.log.entries(version.tenant, version.number) if history is None else history

"""What packages keep that a report compares: answers to the suite, and to held-out rows."""

from collections.abc import Mapping, Sequence

from lora_ops.evaluation.versions import common_rows, shared_metrics
from lora_ops.gates.candidate import (
    have_one_base,
    packaged_answers,
)
from lora_ops.gates.held_out import packaged_rows
from lora_ops.hashing import sha256_text
from lora_ops.paths import CASE_ANSWERS, CASES
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.regression import HeldOutRow
from lora_ops.records.suite import CaseAnswer, CasesRecord
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import packaged_record
from lora_ops.registry.versions import Version


def kept_answers(registry: Registry, version: Version, cases: CasesRecord) -> dict[str, CaseAnswer]:
    """Return a version's own answers to `cases`, as far as its package has them, by key.

    A version of another base model was asked in that one's chat template: its answers to the same questions
    count, as it gave them in its time.
    """
    own = packaged_record(registry, version, CASES, CasesRecord)
    if own is None or have_one_base(own, cases):
        return packaged_answers(registry, version, CASE_ANSWERS, cases)
    given = packaged_answers(registry, version, CASE_ANSWERS, own)
    by_question = {one.question: given[one.key] for one in own.cases if one.key in given}
    return {
        one.key: by_question[one.question].model_copy(update={"key": one.key})
        for one in cases.cases
        if one.question in by_question
    }


def shared_rows(
    registry: Registry, version: Version, production: int | None, again: Mapping[str, Sequence[str]]
) -> tuple[list[HeldOutRow], int, list[str]]:
    """Return the held-out rows that candidate and production both answered; none without a production.

    Args:
        registry: where.
        version: the candidate.
        production: the number of the version in production.
        again: system -> its answers to the rows of the candidate's package, given again: the adapter's count.
            Without them the packaged ones do, of which some may have been edited.
    """
    if production is None:
        return [], 0, []
    other = registry.load(version.tenant, production)
    given = _given_again(registry, version, again[ADAPTER]) if ADAPTER in again else {}
    frame, left_out = common_rows(registry, version, other)
    rows = [
        HeldOutRow(key=key, group=group, target=target, candidate=given.get(key, ours), production=theirs)
        for key, group, target, ours, theirs in zip(
            frame["key"],
            frame["group_left"],
            frame["target_left"],
            frame[f"{ADAPTER}_left"],
            frame[f"{ADAPTER}_right"],
            strict=True,
        )
    ]
    return rows, left_out, shared_metrics(other.manifest.params, version.manifest.params)


def _given_again(registry: Registry, version: Version, answers: Sequence[str]) -> dict[str, str]:
    """Return the answers to the rows of a package by the digest of their text; of equal texts the first one."""
    texts = [sha256_text(text) for text in packaged_rows(registry, version)["text"]]
    return dict(reversed(list(zip(texts, answers, strict=False))))

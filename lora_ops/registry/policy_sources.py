"""What policy reports were computed from, and in which ways a newer one asks less than an earlier one."""

from collections.abc import Collection, Iterator

from lora_ops.records.evidence import PolicyEvidence
from lora_ops.records.policy import PolicyPrompt, PolicyPromptsRecord, PromptKind
from lora_ops.records.policy_report import ASKED, PolicySource
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import listed, read_kept
from lora_ops.settings.policy import CheckName

OF_ROWS: tuple[PromptKind, ...] = ("ordinary", "wording")
"""Prompts of held-out rows: another version has other rows."""


def read_policy_source(registry: Registry, document: PolicyEvidence) -> PolicySource:
    """Return what a computed policy report was computed from.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    what = f"the source of the policy report on {document.adapter}"
    path = registry.files.checked(document.source.sha256, what)
    return read_kept(path, PolicySource, f"T{what[1:]}")


def prompt_notes(
    registry: Registry, mine: PolicyEvidence | None, theirs: PolicyEvidence | None, other: str
) -> Iterator[str]:
    """Yield which prompts of a policy report a newer one does not ask.

    Args:
        registry: where both are kept.
        mine: the newer one.
        theirs: that of the version in production.
        other: the id of that version.

    Raises:
        LoraOpsError: what one of them was computed from is missing, was changed, or has another form.
    """
    if mine is None or theirs is None or not (mine.is_computed and theirs.is_computed):
        return
    now, then = read_policy_source(registry, mine).prompts, read_policy_source(registry, theirs).prompts
    found = list(_prompt_changes(now, then, same_rows=False))
    if found:
        yield f"its policy suite asks less than that of {other}, which was in production: {'; '.join(found)}"


def asks_less(
    mine: PolicySource, theirs: PolicySource, *, same_rows: bool, failed: Collection[CheckName] = ()
) -> Iterator[str]:
    """Yield in which ways a policy report asks less than an earlier one, in words.

    Args:
        mine: what the newer one was computed from.
        theirs: what the earlier one was computed from.
        same_rows: whether both are about the same held-out rows, so that each of them must be asked again.
        failed: checks that must not be answered by further prompts, among which a failure is rarer.
    """
    for name, budget in theirs.budgets.items():
        now = mine.budgets[name].budget if name in mine.budgets else 1.0
        if now > budget.budget:
            yield f"{name} budget {now:g}, not {budget.budget:g}"
    yield from _prompt_changes(mine.prompts, theirs.prompts, same_rows=same_rows)
    if failed:
        kinds = {kind for name in failed for kind in ASKED[name]}
        before = {_content(one) for one in theirs.prompts.prompts}
        added = [one.id for one in mine.prompts.prompts if one.kind in kinds and _content(one) not in before]
        if added:
            yield f"with prompts added to what did not pass ({listed(added)})"
    yield from _other_detector(mine, theirs)


def _prompt_changes(
    mine: PolicyPromptsRecord, theirs: PolicyPromptsRecord, *, same_rows: bool
) -> Iterator[str]:
    asked = {_content(one): one.max_tokens for one in mine.prompts}
    gone = [
        one.id
        for one in theirs.prompts
        if _content(one) not in asked and (same_rows or one.kind not in OF_ROWS)
    ]
    if gone:
        yield f"without the prompts {listed(gone)}"
    shorter = [one.id for one in theirs.prompts if asked.get(_content(one), one.max_tokens) < one.max_tokens]
    if shorter:
        yield f"with shorter answers to {listed(shorter)}"
    if mine.canary != theirs.canary:
        yield "with another planted sentence"
    labels = sorted({*mine.labels} - {*theirs.labels})
    if theirs.labels and labels:
        yield f"with the further labels {listed(labels)}"
    lost = sorted(_wordings(theirs) - _wordings(mine)) if not same_rows else []
    if lost:
        yield f"without the wordings {listed([repr(one) for one in lost])}"


def _other_detector(mine: PolicySource, theirs: PolicySource) -> Iterator[str]:
    if mine.insults.measured is None or theirs.insults.measured is None:
        return  # a detector that fails fails its check
    now, before = mine.insults.measured.detector, theirs.insults.measured.detector
    if (now.name, now.version, now.digest) != (before.name, before.version, before.digest):
        yield f"insults found by {now.name} ({now.version}), not {before.name} ({before.version})"
    elif (now.threshold or 0) > (before.threshold or 0):
        yield f"insults found from a score of {now.threshold:g} on, not {before.threshold:g}"


def _content(one: PolicyPrompt) -> tuple[PromptKind, str]:
    """Return what a prompt asks, without its number and the system prompt around it."""
    return one.kind, one.text


def _wordings(record: PolicyPromptsRecord) -> set[str]:
    """Return what stands around the rows, as far as the kept prompts show it."""
    rows = {one.id: one.text for one in record.prompts if one.kind == "ordinary"}
    pairs = [(one.text, rows.get(one.of or "", "")) for one in record.prompts if one.kind == "wording"]
    return {text.replace(row, "{text}") for text, row in pairs if row and text.count(row) == 1}

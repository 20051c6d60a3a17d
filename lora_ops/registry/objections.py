"""What earlier evidence says against a version, and which of it a newer report took the place of."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from lora_ops.records.evaluation import BASE
from lora_ops.records.evidence import AnyEvidence, Evidence, HumanEvidence, PolicyEvidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.answers_again import other_texts
from lora_ops.registry.approvals import PRODUCTION_RESTS_ON
from lora_ops.registry.counting import plain
from lora_ops.registry.report_lacks import evaluation_lacks, failing, gaps_again, lacks
from lora_ops.registry.reports import BEFORE_GATES, filed, from_the_future, load, own_evidence
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Summary, Version, parse_reference
from lora_ops.settings.registry import EvidenceSettings

NO_MINIMUM = {"policy_prompts": 0, "annotators": 0, "pairs": 0, "requests": 0, "hours": 0, **BEFORE_GATES}


def objections(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    given: Mapping[str, AnyEvidence],
    least: EvidenceSettings | None = None,
    now: datetime | None = None,
    *,
    max_gap: float | None,
) -> Iterator[str]:
    """Yield what speaks against a step of `version`, as what it lacks: whatever reports that step needs.

    Args:
        registry: where.
        version: which.
        history: the version's entries before the step.
        given: the reports that the step files, by kind; each takes the place of the one that was filed.
        least: the minimums; default: today's.
        now: the moment of the step; default: this one.
        max_gap: the largest gap between two groups of a declared column; None: any.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    found = filed(version, history)
    for kind in PRODUCTION_RESTS_ON:
        if kind == "evaluation":
            continue
        if kind in given:
            yield from lacks(given[kind], least or registry.least)
            yield from unanswered(registry, version, history, given[kind])
        elif kind in found:
            yield from kept_lacks(registry, version, history, found[kind], least, now or registry.clock())
    fair_opponent = (least or registry.least).fair_opponent
    yield from evaluation_lacks(version.manifest, max_gap, fair_opponent=fair_opponent)
    answered = load(registry.files, found["regression"]) if "regression" in found else None
    yield from gaps_again(given.get("regression", answered), max_gap)
    if "policy" not in {*found, *given}:
        yield from failing(version.manifest.policy)
    if (least or registry.least).asks_texts_again:
        yield from other_texts_judged(registry, version, history, given.get("human_evaluation"))


def other_texts_judged(
    registry: Registry, version: Version, history: Sequence[AuditEntry], given: AnyEvidence | None = None
) -> Iterator[str]:
    """Yield that the last regression report of a version has other answers than reviewers judged.

    A rollback doesn't ask: a report that is filed later must not keep out a version that served well.

    Args:
        registry: where.
        version: which.
        history: the version's entries.
        given: the human evaluation that a step files; default: the one that was filed.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    document = _human_evaluation(registry, version, history, given)
    if document:
        yield from other_texts(registry, version, history, document)


def review_objections(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    given: Mapping[str, AnyEvidence],
    before: int | None = None,
) -> Iterator[str]:
    """Yield that people compared a version with an unfit one, or that most of what they judged is not counted.

    Whoever starts a review names the opponent, and any adapter wins against one that was made to lose. Whoever
    files it has the files of votes, and nobody sees which of them were removed: each one that is missing takes
    its pairs along. A rollback doesn't ask.

    Args:
        registry: where.
        version: which.
        history: the version's entries before the step.
        given: the reports that the step files, by kind.
        before: the entry of the step; None: today.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    document = _human_evaluation(registry, version, history, given.get("human_evaluation"))
    if document is None or document.review is None:
        return
    review, against = document.review, document.review.against
    left = review.planned_pairs - review.other_texts
    if 2 * document.pairs < left:
        yield (
            f"a human evaluation of at least half of the pairs that were planned (of {left} pairs "
            f"{document.pairs} have votes that count, of {', '.join(one.person for one in review.reviewers)}): "
            f"let the other reviewers hand theirs in (`lora-ops review status {version.id}`)"
        )
    if against != BASE and not was_in_production(registry, against, before):
        yield (
            "a human evaluation against its base model or a version that was in production (the last one is "
            f"against {against}, which never was: move the folder of its review away, and run `lora-ops review "
            f"start {version.id}`)"
        )


def was_in_production(registry: Registry, reference: str, before: int | None = None) -> bool:
    """Return whether somebody let a version (`finance@3`) into production, before an entry of the log."""
    tenant, number = parse_reference(reference)
    assert isinstance(number, int)
    return any(
        entry.action == "production" and entry.number == number and (before is None or entry.seq < before)
        for entry in registry.log.entries(tenant, number)
    )


def _human_evaluation(
    registry: Registry, version: Version, history: Sequence[AuditEntry], given: AnyEvidence | None
) -> HumanEvidence | None:
    """Return the human evaluation of a version's content that a step rests on, or None."""
    one = filed(version, history).get("human_evaluation")
    document = given or (load(registry.files, one) if one else None)
    if isinstance(document, HumanEvidence) and document.content_digest == version.summary.content_digest:
        return document
    return None


def kept_lacks(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    one: Evidence,
    least: EvidenceSettings | None = None,
    now: datetime | None = None,
) -> Iterator[str]:
    """Yield what a report that was filed lacks before a step of `version` may rest on it.

    Args:
        registry: where.
        version: what it is about.
        history: the version's entries.
        one: the report.
        least: the minimums; default: today's.
        now: the moment of the step; None: nobody asks how the report is dated.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    document = load(registry.files, one)
    if document is None:
        yield f"a {one.kind} report that lora-ops counted (the last one has another form: file it again)"
    elif document.content_digest != version.summary.content_digest:
        yield f"a {one.kind} report on {version.id} (the last one is about {document.adapter})"
    else:
        yield from lacks(document, least or registry.least)
        if now:
            yield from from_the_future(document, now)
        yield from unanswered(registry, version, history, document)


def later_speaks_against(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    newest: Evidence,
    least: EvidenceSettings | None,
) -> Iterator[str]:
    """Yield what speaks against a version in its newest report of a kind, whatever its size, and in others.

    Args:
        registry: where.
        version: what it is about.
        history: the version's entries.
        newest: a report that was filed after the version entered production.
        least: the minimums of that day; default: today's.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    document = load(registry.files, newest)
    if document and document.content_digest == version.summary.content_digest:
        yield from speaks_against(document, least or registry.least)
        yield from unanswered(registry, version, history, document, only_failed=True)


def unanswered(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    newest: AnyEvidence,
    *,
    only_failed: bool = False,
) -> Iterator[str]:
    """Yield what the newest report of a kind still lacks because of earlier ones of the same kind.

    A policy report holds every check of the earlier ones, so that a failing check can't be left out. A human
    evaluation that the adapter lost is answered by one of at least as many pairs.

    Args:
        registry: where.
        version: what the reports are about.
        history: the version's entries.
        newest: the report.
        only_failed: checks that passed earlier may be left out.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    earlier = list(_earlier(registry, version, history, newest, newest.kind))
    if isinstance(newest, PolicyEvidence):
        held = {plain(one.name) for one in newest.checks}
        names = {
            plain(one.name): one.name
            for _, old in earlier
            if isinstance(old, PolicyEvidence)
            for one in old.checks
            # What somebody typed of a check that the gate doesn't know, no computed report can repeat.
            if one.verdict == "fail" or not (only_failed or (newest.is_computed and not old.is_computed))
        }
        gone = [names[name] for name in sorted(names.keys() - held)]
        if gone:
            yield f"a policy report with every check of the earlier ones (it leaves out {', '.join(gone)})"
    elif isinstance(newest, HumanEvidence):
        lost = [
            old.pairs
            for _, old in earlier
            if isinstance(old, HumanEvidence) and old.base_better > old.adapter_better
        ]
        if lost and newest.pairs < max(lost):
            yield (
                f"a human evaluation of at least {max(lost)} pairs, as many as one that the adapter lost "
                f"(it has {newest.pairs})"
            )


def outvoted(registry: Registry, version: Version, history: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield each report that speaks against a version and that a newer one took the place of.

    What regression reports say, `earlier_suites` compares.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    newest = filed(version, history)
    for kind in PRODUCTION_RESTS_ON:
        if kind in ("evaluation", "regression") or kind not in newest:
            continue
        current = load(registry.files, newest[kind])
        for one, old in _earlier(registry, version, history, current, kind):
            against = list(speaks_against(old, registry.least))
            if against:
                yield (
                    f"an earlier {kind} report speaks against it ({one.summary}, {one.sha256[:8]}…), and a "
                    f"newer one counts; needed is {' and '.join(against)}"
                )


def speaks_against(document: AnyEvidence, least: EvidenceSettings) -> Iterator[str]:
    """Yield what a report lacks whatever its size: a failure, a lost comparison, too many errors."""
    yield from lacks(document, least.model_copy(update=NO_MINIMUM))


def documents_on(
    registry: Registry, version: Summary, history: Sequence[AuditEntry], kind: str
) -> Iterator[tuple[Evidence, AnyEvidence]]:
    """Yield each report of one kind that was filed on a version's content, oldest first, each once.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    for one in {one.sha256: one for one in own_evidence(history, version.number)}.values():
        document = load(registry.files, one) if one.kind == kind else None
        if document and document.content_digest == version.content_digest:
            yield one, document


def _earlier(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    newest: AnyEvidence | None,
    kind: str,
) -> Iterator[tuple[Evidence, AnyEvidence]]:
    for one, document in documents_on(registry, version.summary, history, kind):
        if document != newest:
            yield one, document

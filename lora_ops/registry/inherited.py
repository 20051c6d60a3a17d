"""What speaks against a version because of another one that has the same weights: its twin.

The same weights answer alike under whatever number. So an incident of a twin, and each report on it, count for
the version as they count for the twin itself, and registering the weights again answers none of them.
The reports of another tenant's twin are a note: its prompts and its voters ask something else.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.data import DataRecord
from lora_ops.records.evaluation import BASES, EvaluationRecord
from lora_ops.records.evidence import AnyEvidence, Evidence, HumanEvidence, PolicyEvidence
from lora_ops.records.manifest import Manifest
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.answered_incidents import NAMED, answer_to, is_final
from lora_ops.registry.counting import plain
from lora_ops.registry.earlier_policies import Policies
from lora_ops.registry.earlier_suites import Suites
from lora_ops.registry.objections import speaks_against
from lora_ops.registry.replay import require_rows
from lora_ops.registry.report_lacks import evaluation_lacks
from lora_ops.registry.reports import filed, gap_limit, load, own_evidence
from lora_ops.registry.rollbacks import entered_production, incidents_since_production
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins, standing
from lora_ops.registry.versions import CLOSED, Summary, Version

# A twin's traffic reports are about its stage, and each version files its own.
INHERITED = ("regression", "policy", "human_evaluation")


def twin_objections(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    given: Mapping[str, AnyEvidence],
    twins: Twins,
    suites: Suites | None,
    policies: Policies | None,
    *,
    max_gap: float | None,
    before: int | None = None,
) -> Iterator[str]:
    """Yield what a step of `version` lacks because of its twins, closed ones left out: these refuse every step.

    Args:
        registry: where.
        version: which.
        history: the version's entries before the step.
        given: the reports that the step files, by kind.
        twins: what is known of all weights.
        suites: the regression reports on the version; None: those on its twins don't count.
        policies: the policy reports on the version; None: how those on its twins were judged doesn't count.
        max_gap: the largest gap between two groups of a declared column; None: any.
        before: the entry of the step, where it is judged afterwards; default: all that is known counts.

    Raises:
        LoraOpsError: a report of the version is missing or was changed.
    """
    own = filed(version, history)
    for twin, of_twin in _open_twins(registry, version, twins, before):
        # What another tenant says of its own copy before anybody is served by it is theirs to judge.
        if twin.tenant == version.tenant or entered_production(of_twin, twin.number):
            yield from _incidents_unanswered(registry, version, history, twin, of_twin)
        for kind in INHERITED:
            if twin.tenant != version.tenant or (kind == "regression" and suites is None):
                continue  # another tenant's prompts and voters ask something else
            found = _read(registry, twin, of_twin, kind)
            if found.unread and before is None:  # judged afterwards, the lost file is named by `verify`
                yield (
                    f"the {kind} report on {twin.id}, which has the same weights (it is lost or damaged: "
                    "restore it from a backup)"
                )
            if kind == "regression" and suites:
                yield from suites.unanswered_of(twin, of_twin, found.reports)
                continue
            if kind == "policy" and policies:
                yield from policies.unanswered_of(twin, of_twin, found.reports)
            earlier = [document for _, document in found.reports]
            if not earlier:
                continue
            newest = given.get(kind) or (load(registry.files, own[kind]) if kind in own else None)
            # A version without such a report answers for the one that counts on its twin.
            yield from _unanswered(twin, newest, earlier if newest else earlier[-1:])
        # A twin of an older release may have been known as one only later, by its first report.
        if before is None or twins.states(twin):
            yield from _evaluation_unanswered(registry, version, twin, max_gap, before)


def twin_objections_to_return(
    registry: Registry, version: Version, twins: Twins, before: int | None = None
) -> Iterator[str]:
    """Yield why a version may not return to production because of its twins, as what it lacks.

    In an incident only what was found in production counts, and only what its own team found: a duplicate that
    nobody was served by, or another team's opinion, must not keep a bad version on air.

    Args:
        registry: where.
        version: which.
        twins: what is known of all weights.
        before: the entry of the rollback, where it is judged afterwards; default: all that is known counts.
    """
    entries = registry.log.entries(version.tenant, version.number)
    history = [entry for entry in entries if before is None or entry.seq < before]
    for twin, state, of_twin in _twins_at(registry, version, twins, before):
        if twin.tenant != version.tenant or not entered_production(of_twin, twin.number):
            continue
        if before is not None and not twins.states(twin):
            continue  # on that day nobody may have been able to tell
        if state == "revoked":
            yield f"other weights ({twin.id}, which was in production with the same, was revoked)"
        yield from _incidents_unanswered(registry, version, history, twin, of_twin)


def closed_twins(registry: Registry, version: Version, twins: Twins, before: int) -> Iterator[str]:
    """Yield what a step lacked because a twin had been closed before its entry."""
    for twin, state, _ in _twins_at(registry, version, twins, before):
        if state in CLOSED:
            yield f"other weights ({twin.id}, which has the same, was {state})"


def twin_notes(registry: Registry, version: Version, twins: Twins) -> Iterator[str]:
    """Yield each twin of an open version with what speaks against it, answered or not, or can't be read."""
    if version.state in CLOSED:
        return
    for twin, history in _open_twins(registry, version, twins):
        against = list(_incidents_told(registry, version, twin, history))
        for kind in INHERITED:
            found = _read(registry, twin, history, kind)
            for one, document in found.reports:
                against += _spoken(registry, one, document)
            against += found.unread
        against += _spoken_by_evaluation(registry, version, twin)
        if against:
            said = "; ".join(against)
            yield (
                f"{version.id} has the weights of {twin.id}, which is '{twin.state}'; against that one speaks "
                f"{said}"
            )


def _open_twins(
    registry: Registry, version: Version, twins: Twins, before: int | None = None
) -> Iterator[tuple[Summary, list[AuditEntry]]]:
    """Yield each twin that is not closed, or was not before entry `before`, with its entries up to then."""
    for twin, state, history in _twins_at(registry, version, twins, before):
        if state not in CLOSED:
            yield twin, history


def _twins_at(
    registry: Registry, version: Version, twins: Twins, before: int | None
) -> Iterator[tuple[Summary, str, list[AuditEntry]]]:
    for twin in twins.alike(version.summary):
        history = registry.log.entries(twin.tenant, twin.number)
        if before is not None:
            history = [entry for entry in history if entry.seq < before]
        state = standing(history, twin.number)
        if state:  # else it was registered later
            yield registry.as_registered(twin), state, history


def _incidents_unanswered(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    twin: Summary,
    of_twin: Sequence[AuditEntry],
) -> Iterator[str]:
    for one in incidents_since_production(of_twin, twin.number):
        if answer_to(registry, one, version, history, twin, of_twin):
            continue
        needs = f"other weights ({twin.id} has the same, and had an incident: '{one.summary}')"
        if not is_final(one, twin, of_twin):
            needs += (
                f", or a review of {version.id} or {twin.id} by an approver, not the author, whose reason "
                f"names that incident ({one.sha256[:NAMED]})"
            )
        yield needs


def _incidents_told(
    registry: Registry, version: Version, twin: Summary, of_twin: Sequence[AuditEntry]
) -> Iterator[str]:
    history = registry.log.entries(version.tenant, version.number)
    for one in incidents_since_production(of_twin, twin.number):
        answer = answer_to(registry, one, version, history, twin, of_twin)
        said = f", which {answer.actor} answered: '{answer.body['reason']}'" if answer else ""
        yield f"an incident ('{one.summary}'){said}"


class _Read(NamedTuple):
    reports: list[tuple[Evidence, AnyEvidence]]
    unread: list[str]


def _read(registry: Registry, twin: Summary, history: Sequence[AuditEntry], kind: str) -> _Read:
    """Return the reports of one kind on a twin, and what can't be read: a lost file stops no rollback."""
    found = _Read([], [])
    for one in {one.sha256: one for one in own_evidence(history, twin.number) if one.kind == kind}.values():
        try:
            document = load(registry.files, one)
        except LoraOpsError:
            found.unread.append(
                f"nothing that can be read: its {kind} report ({one.summary}) is lost or damaged"
            )
            continue
        if document and document.content_digest == twin.content_digest:
            found.reports.append((one, document))
    return found


def _evaluation_that_counts(registry: Registry, version: Version, twin: Summary) -> Manifest | None:
    """Return the manifest of a twin whose evaluation is on the data of `version`, whatever tenant's; or None.

    Raises:
        LoraOpsError: the twin's manifest is lost, or is not what the log says.
    """
    found = registry.load(twin.tenant, twin.number)
    require_rows(registry, found)
    theirs = found.manifest
    counts = twin.tenant == version.tenant or _is_same_data(theirs.data, version.manifest.data)
    return theirs if counts else None


def _is_same_data(left: DataRecord, right: DataRecord) -> bool:
    learned = [data.splits["train"].sha256 for data in (left, right) if "train" in data.splits]
    return left.source.sha256 == right.source.sha256 or (len(learned) == 2 and learned[0] == learned[1])


def _spoken_by_evaluation(registry: Registry, version: Version, twin: Summary) -> list[str]:
    try:
        theirs = _evaluation_that_counts(registry, version, twin)
    except LoraOpsError:
        return ["nothing that can be read: its manifest is lost or damaged"]
    if theirs is None:
        return []
    limit = gap_limit(registry, version)
    # How little an evaluation asks is said of the version that rests on it.
    against = evaluation_lacks(theirs, limit, fair_opponent=False)
    return [f"its evaluation, where {one} is needed" for one in against]


def _spoken(registry: Registry, one: Evidence, document: AnyEvidence) -> list[str]:
    lacking = list(speaks_against(document, registry.least))
    said = f"a {one.kind} report ({one.summary}, {one.sha256[:8]}…)"
    return [f"{said}, where {' and '.join(lacking)} is needed"] if lacking else []


def _unanswered(twin: Summary, newest: AnyEvidence | None, earlier: Sequence[AnyEvidence]) -> Iterator[str]:
    """Yield what the newest report on a version must still answer of the reports on its twin."""
    same = f"{twin.id}, which has the same weights"
    held = {plain(one.name) for one in newest.checks} if isinstance(newest, PolicyEvidence) else set()
    failed = {
        plain(check.name): check.name
        for old in earlier
        if isinstance(old, PolicyEvidence)
        for check in old.checks
        if check.verdict == "fail"
    }
    gone = [failed[name] for name in sorted(failed.keys() - held)]
    if gone:
        yield f"a policy report with every check that failed on {same} ({', '.join(gone)})"
    lost = [
        old.pairs for old in earlier if isinstance(old, HumanEvidence) and old.base_better > old.adapter_better
    ]
    pairs = newest.pairs if isinstance(newest, HumanEvidence) else 0
    if lost and pairs < max(lost):
        yield (
            f"a human evaluation of at least {max(lost)} pairs, as many as one that was lost by {same} (it has "
            f"{pairs})"
        )


def _evaluation_unanswered(
    registry: Registry, version: Version, twin: Summary, limit: float | None, before: int | None
) -> Iterator[str]:
    """Yield what the evaluation of a version must answer of its twin's.

    Fewer rows, columns or metrics, or no base with examples, would hide a fault.
    """
    try:
        found = _evaluation_that_counts(registry, version, twin)
    except LoraOpsError:
        if before is None:  # judged afterwards, it is named by `verify`
            yield (
                f"the manifest of {twin.id}, which has the same weights (it is lost or damaged: restore the "
                "registry from a backup)"
            )
        return
    if found is None:
        return  # another tenant's rows ask something else
    theirs, mine = found.evaluation, version.manifest.evaluation
    same = f"{twin.id}, which has the same weights"
    few = f"of at least {theirs.rows} rows (it has {mine.rows})"
    if not found.beats_base:
        if mine.rows < theirs.rows:
            yield f"an evaluation {few}, as many as that in which {same}, does not beat its base model"
        left_out = sorted(_against_base(theirs) - _against_base(mine))
        if left_out:
            compared = ", ".join(left_out)
            yield f"an evaluation with {compared}, as that in which {same}, does not beat its base model"
    for column, bias in theirs.bias.items():
        # A column whose groups are too small to be compared has no gap, so it answers none.
        has_gap = column in mine.bias and mine.bias[column].gap is not None
        if bias.exceeds(limit) and (not has_gap or mine.rows < theirs.rows):
            groups = "" if has_gap or column not in mine.bias else "that compares its groups and "
            yield f"an evaluation by {column} {groups}{few}, as that in which {same}, has a {bias.between}"


def _against_base(evaluation: EvaluationRecord) -> set[str]:
    """Return what of an evaluation decides whether the adapter beats its base model, in words."""
    return {
        f"{metric} against {system.replace('_', ' ')}"
        for system in BASES
        for metric in evaluation.differences.get(system, {})
    }

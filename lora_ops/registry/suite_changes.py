"""What the suite of a version asks less than that of the version in production, for whoever approves."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical
from lora_ops.paths import CASES, AnyRecord
from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import AuditEntry
from lora_ops.records.regression import RegressionSource
from lora_ops.records.suite import AskedCase, CasesRecord
from lora_ops.registry.approvals import promotion_in
from lora_ops.registry.reports import filed
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.small_files import read_text

NAMED = 5
"""So many cases are named; the others are counted."""


def kept_source(registry: Registry, version: Version) -> RegressionSource | None:
    """Return what a version's last regression report was computed from; None where none was filed.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    return _source_of(registry, version.id, filed(version, _history(registry, version)).get("regression"))


def promoted_suite(registry: Registry, version: Version) -> CasesRecord | None:
    """Return the suite by which a version went into production; where that entry names none, the last one.

    A report that is filed later on a version in production must not decide what its followers are held to.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    promoted = promotion_in(version, _history(registry, version))
    named = [one for one in promoted.evidence if one.kind == "regression"] if promoted else []
    source = _source_of(registry, version.id, named[0] if named else None)
    return source.cases if source else kept_suite(registry, version)


def _history(registry: Registry, version: Version) -> list[AuditEntry]:
    return registry.log.entries(version.tenant, version.number)


def read_source(registry: Registry, version: str, digest: str) -> RegressionSource:
    """Return what a regression report on a version was computed from.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    path = registry.files.checked(digest, f"the source of the regression report on {version}")
    return read_kept(path, RegressionSource, f"The regression report on {version}")


def _source_of(registry: Registry, version: str, one: Evidence | None) -> RegressionSource | None:
    return read_source(registry, version, one.source_sha256) if one and one.source_sha256 else None


def kept_suite(registry: Registry, version: Version) -> CasesRecord | None:
    """Return the suite that a version was asked last: that of its report, else that of its package, or None.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    source = kept_source(registry, version)
    if source:
        return source.cases
    return packaged_record(registry, version, CASES, CasesRecord)


def packaged_record(registry: Registry, version: Version, name: str, form: type[AnyRecord]) -> AnyRecord | None:
    """Return a record that a version's package keeps under `name`; None where it keeps none.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    file = version.manifest.files.get(name)
    if file is None:
        return None
    return read_kept(registry.files.checked(file.sha256, name), form, f"{name} of {version.id}")


def read_kept(path: Path, form: type[AnyRecord], what: str) -> AnyRecord:
    """Return a kept record of which `what` says in words whose it is.

    Raises:
        LoraOpsError: it has another form.
    """
    try:
        return form.model_validate_json(read_text(path))
    except (ValidationError, UnicodeDecodeError) as error:
        raise LoraOpsError(f"{what} has another form than this release reads.") from error


def suite_changes(mine: CasesRecord | None, theirs: CasesRecord | None, other: str) -> Iterator[str]:
    """Yield in which ways a suite asks less than an earlier one, in words.

    Args:
        mine: the version's; None: it has none.
        theirs: that of the version in production; None: it has none, so nothing can be less.
        other: the id of that version.
    """
    if theirs is None or not theirs.cases:
        return
    if mine is None or not mine.cases:
        yield f"it has no suite, and {other}, which was in production, has one of {len(theirs.cases)} cases"
        return
    found = case_changes(mine.cases, theirs.cases)
    if found.gone:
        yield f"its suite leaves out cases of {other}, which was in production: {listed(found.gone)}"
    if found.changed:
        yield f"its suite has cases of {other} in another form: {listed(found.changed)}"
    if found.regrouped:
        yield f"its suite groups cases otherwise than that of {other}: {listed(found.regrouped)}"
    looser = looser_settings(mine, theirs)
    if looser:
        yield f"its suite is looser than that of {other}, which was in production: {listed(looser)}"


class CaseChanges(NamedTuple):
    """Ids of earlier cases that a suite leaves out, has in another form, or counts with other cases."""

    gone: list[str]
    changed: list[str]
    regrouped: list[str]


def case_changes(mine: Sequence[AskedCase], theirs: Sequence[AskedCase]) -> CaseChanges:
    """Return which of the cases `theirs` are not in `mine` as they were.

    A case is what the suite says of it. Its name doesn't count, and neither does the system prompt around it.
    """
    own, names = {content(one): one.case.must_pass for one in mine}, {one.case.id for one in mine}
    gone, changed, kept = list[str](), list[str](), list[AskedCase]()
    for one in theirs:
        if content(one) in own and own[content(one)] >= one.case.must_pass:
            kept.append(one)
        else:
            (changed if one.case.id in names else gone).append(one.case.id)
    both = {content(one) for one in kept}
    now, before = _companions(mine, both), _companions(theirs, both)
    regrouped = [one.case.id for one in kept if now[content(one)] != before[content(one)]]
    return CaseChanges(gone, changed, regrouped)


def content(one: AskedCase) -> str:
    """Return what a case asks and expects, without its name, its group, and whether it must pass."""
    return canonical(one.case.model_dump(mode="json", exclude={"id", "group", "must_pass"}))


def _companions(cases: Sequence[AskedCase], known: set[str]) -> Mapping[str, frozenset[str]]:
    """Return for each case of `known` those that count with it as one group, itself among them."""
    groups: dict[str, set[str]] = defaultdict(set)
    placed = {content(one): one.case.group or one.case.id for one in cases}
    for case, group in placed.items():
        if case in known:
            groups[group].add(case)
    return {case: frozenset(groups[placed[case]]) for case in known}


def looser_settings(mine: CasesRecord, theirs: CasesRecord) -> list[str]:
    """Return which slices and metrics a suite judges less strictly than an earlier one, in words."""
    looser = []
    for name, chosen in theirs.slices.items():
        now = mine.slices.get(name)
        if now is None:
            looser.append(f"no slice {name}")
            continue
        if chosen.gating and not now.gating:
            looser.append(f"{name} is not gating")
        if now.margin > chosen.margin:
            looser.append(f"{name} margin {now.margin:g}, not {chosen.margin:g}")
        if set(chosen.against) - set(now.against):
            left = ", ".join(sorted({*chosen.against} - {*now.against}))
            looser.append(f"{name} is not compared with {left}")
        if chosen.least is not None and (now.least is None or now.least < chosen.least):
            looser.append(f"{name} at least {now.least or 0:g}, not {chosen.least:g}")
    for metric, margin in theirs.held_out.items():
        now_margin = mine.held_out.get(metric)
        if now_margin is None or now_margin > margin:
            asks = "nothing" if now_margin is None else f"{now_margin:g}"
            looser.append(f"held-out {metric} {asks}, not {margin:g}")
    return looser


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

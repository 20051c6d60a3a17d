"""What the suite of a version asks less than that of the version in production, for whoever approves."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.paths import CASES, AnyRecord
from lora_ops.records.evidence import Evidence
from lora_ops.records.record import Record
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
    return _source_of(registry, version, filed(version, _history(registry, version)).get("regression"))


def promoted_suite(registry: Registry, version: Version) -> CasesRecord | None:
    """Return the suite by which a version went into production; where that entry names none, the last one.

    A report that is filed later on a version in production must not decide what its followers are held to.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    promoted = promotion_in(version, _history(registry, version))
    named = [one for one in promoted.evidence if one.kind == "regression"] if promoted else []
    source = _source_of(registry, version, named[0] if named else None)
    return source.cases if source else kept_suite(registry, version)


def _history(registry: Registry, version: Version) -> list[AuditEntry]:
    return registry.log.entries(version.tenant, version.number)


def _source_of(registry: Registry, version: Version, one: Evidence | None) -> RegressionSource | None:
    if one is None or one.source_sha256 is None:
        return None
    what = f"The regression report on {version.id}"
    path = registry.files.checked(one.source_sha256, f"the source of the regression report on {version.id}")
    return _read(path, RegressionSource, what)


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
    return _read(registry.files.checked(file.sha256, name), form, f"{name} of {version.id}")


def _read(path: Path, form: type[AnyRecord], what: str) -> AnyRecord:
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
    own = {one.case.id: one for one in mine.cases}
    before = {one.case.id: one for one in theirs.cases}
    gone = [name for name in before if name not in own]
    if gone:
        yield f"its suite leaves out cases of {other}, which was in production: {_listed(gone)}"
    other_form = [name for name, one in before.items() if name in own and _judged(own[name]) != _judged(one)]
    if other_form:
        yield f"its suite has cases of {other} in another form: {_listed(other_form)}"
    looser = []
    for name, chosen in theirs.slices.items():
        now = mine.slices.get(name)
        if now is None:
            looser.append(f"no slice {name}")
        elif chosen.gating and not now.gating:
            looser.append(f"{name} is not gating")
        elif now.margin > chosen.margin:
            looser.append(f"{name} margin {now.margin:g}, not {chosen.margin:g}")
        elif set(chosen.against) - set(now.against):
            looser.append(
                f"{name} is not compared with {', '.join(sorted({*chosen.against} - {*now.against}))}"
            )
        elif chosen.least is not None and (now.least is None or now.least < chosen.least):
            looser.append(f"{name} at least {now.least or 0:g}, not {chosen.least:g}")
    for metric, margin in theirs.held_out.items():
        now_margin = mine.held_out.get(metric)
        if now_margin is None or now_margin > margin:
            asks = "nothing" if now_margin is None else f"{now_margin:g}"
            looser.append(f"held-out {metric} {asks}, not {margin:g}")
    if looser:
        yield f"its suite is looser than that of {other}, which was in production: {_listed(looser)}"


def _judged(one: AskedCase) -> Record:
    """Return what of a case decides on its verdict, and nothing else."""
    return one.model_copy(update={"case": one.case.model_copy(update={"id": "", "group": None})})


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

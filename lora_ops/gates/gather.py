"""What a regression report is computed from: kept answers, and those that a baseline lacks, generated once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.gates.candidate import (
    asked_by,
    has_base,
)
from lora_ops.gates.cases import ask_cases, has_suite
from lora_ops.gates.given_again import (
    ask_again,
    asked_now,
    evaluate_again,
    notes_on,
    notes_on_evaluation,
    still_given,
)
from lora_ops.gates.kept_answers import kept_answers, shared_rows
from lora_ops.records.regression import Baseline, HeldOutRow, Origin, RegressionSource, Role, SystemAnswers
from lora_ops.records.suite import CaseAnswer, CasesRecord
from lora_ops.registry.loosened import production_before
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import kept_source, kept_suite, listed
from lora_ops.registry.versions import CLOSED, Version

EARLIER = 3
"""Versions before the candidate that are compared and shown."""
REMEMBERED = 10
"""Versions of the tenant whose filed reports are searched for answers, the newest first."""


class Gathered(NamedTuple):
    """The source of a report, and what it leaves out.

    Attributes:
        source: what the report is computed from.
        notes: which baselines were left out, and why.
        not_asked: why nobody gave answers again, where those of the last report stand in; empty where somebody
            did, or where none stand in.
    """

    source: RegressionSource
    notes: list[str]
    not_asked: str = ""


def gather(registry: Registry, version: Version, root: Path) -> Gathered:
    """Return what the regression report of a version is computed from.

    Args:
        registry: where.
        version: the candidate.
        root: the repository, with the base model in `models/base`.

    Raises:
        LoraOpsError: there is no suite or it is wrong, a kept file is missing or was changed, or the candidate,
            the base or the version in production can't answer.
    """
    cases, origin = _cases_now(registry, version, root)
    base_digest = version.manifest.base_model.digest
    filed_before = _filed_answers(registry, version.tenant)
    packaged = kept_answers(registry, version, cases)
    given_again = ask_again(registry, version, cases, packaged, root, origin)
    evaluated = evaluate_again(registry, version, root)
    notes = [*notes_on(given_again, version), *notes_on_evaluation(evaluated, version)]
    own = _answers(cases, packaged, root, (registry, version))
    systems = [_system(version.id, "candidate", version.summary.content_digest, cases, own)]
    known = filed_before.get(base_digest, {})
    if has_base(version, root):
        known = still_given(cases, known, root, None, "base", notes)
    base = _answers(cases, known, root, None)
    systems.append(_system("base", "base", base_digest, cases, base))
    production = production_before(registry, version)
    for role, other in _others(registry, version, production):
        try:
            known = kept_answers(registry, other, cases)
            if other.manifest.base_model.matches(cases.base_model_sha256, cases.base_files_sha256):
                filed_only = filed_before.get(other.summary.content_digest, {})
                filed_only = {key: one for key, one in filed_only.items() if key not in known}
                if has_base(version, root):
                    filed_only = still_given(cases, filed_only, root, (registry, other), other.id, notes)
                known |= filed_only
            else:
                _require_answered(other, cases, known)
            found = _answers(cases, known, root, (registry, other))
        except LoraOpsError as error:
            if role == "production":
                raise
            notes.append(f"{other.id} is not compared: {error}")
            continue
        systems.append(_system(other.id, role, other.summary.content_digest, cases, found))
    rows, left_out, metrics = list[HeldOutRow](), 0, list[str]()
    try:
        rows, left_out, metrics = shared_rows(registry, version, production, evaluated.answers)
    except LoraOpsError as error:
        notes.append(f"the held-out rows are not compared: {error}")
    if left_out:
        notes.append(
            f"{left_out} held-out rows of it or of production are not compared: the other one lacks them, or "
            "was trained on their group"
        )
    source = RegressionSource(
        adapter=version.id,
        digest=version.summary.content_digest,
        cases=cases,
        systems=tuple(systems),
        held_out=tuple(rows),
        held_out_metrics=tuple(metrics),
        packaged=given_again,
        evaluated=evaluated.record,
        evaluation_answers=evaluated.answers,
        held_out_left_out=left_out,
    )
    is_of_before = evaluated.record.verdict != "missing" or (
        given_again.packaged > 0 and given_again.verdict == "pass" and not has_base(version, root)
    )
    return Gathered(source, notes, evaluated.why_not if is_of_before else "")


def _cases_now(registry: Registry, version: Version, root: Path) -> tuple[CasesRecord, Origin]:
    """Return today's suite as a version is asked it, under its own system prompt, and where it comes from.

    A suite may gain cases after a version was registered, and those must be asked, too. Where the repository
    has no suite of the tenant or no base model, the suite that was asked last stands in.

    Raises:
        LoraOpsError: there is no suite, it has no case, or it is wrong; or a kept file is missing or changed.
    """
    if has_suite(root, version.tenant) and has_base(version, root):
        prompt, evaluate = asked_by(version)
        return _with_cases(version, ask_cases(version.tenant, root, prompt, evaluate)), "suites"
    source = kept_source(registry, version)
    if source:
        # It is still the suite of that report, so the same answers give the same report again.
        return _with_cases(version, source.cases), source.packaged.suite if source.packaged else "report"
    return _with_cases(version, kept_suite(registry, version)), "package"


def _with_cases(version: Version, cases: CasesRecord | None) -> CasesRecord:
    if cases is None or not cases.cases:
        raise LoraOpsError(
            f"{version.id} has no suite: write suites/{version.tenant}.yaml, where suites/finance.yaml shows "
            "the form."
        )
    return cases


def _filed_answers(registry: Registry, tenant: str) -> dict[str, dict[str, CaseAnswer]]:
    """Return the answers in reports that were filed before: digest of the system -> key -> answer.

    The audit log names those reports by digest, so nobody makes a baseline worse by editing what it answered
    there. Whoever files a report may have made its answers up, so `still_given` asks for some again.
    """
    found: dict[str, dict[str, CaseAnswer]] = {}
    for summary in sorted(registry.summaries(tenant), key=lambda one: -one.number)[:REMEMBERED]:
        version = registry.load(tenant, summary.number, whole=False)
        try:
            source = kept_source(registry, version)
        except LoraOpsError:
            continue  # `verify` names a lost report, and its answers are given again
        for system in source.systems if source else ():
            answers = found.setdefault(system.baseline.digest, {})
            for one in system.answers:
                answers.setdefault(one.key, one)
    return found


def _require_answered(other: Version, cases: CasesRecord, known: Mapping[str, CaseAnswer]) -> None:
    """Refuse what a version of another base model can't answer here: on this one it would be easy to beat.

    Raises:
        LoraOpsError: its package lacks answers.
    """
    lacking = [one.case.id for one in cases.cases if one.key not in known]
    if lacking:
        raise LoraOpsError(
            f"{other.id} was trained on another base model, so it can't answer {listed(lacking)} here: ask "
            "only what its package answers, or register a package of it with them on its own base model."
        )


def _others(registry: Registry, version: Version, production: int | None) -> Iterator[tuple[Role, Version]]:
    """Yield the version in production, and the last ones before the candidate that may still be looked at."""
    if production is not None:
        yield "production", registry.load(version.tenant, production)
    earlier = [
        one
        for one in registry.summaries(version.tenant)
        if one.number not in (version.number, production)
        and one.number < version.number
        and one.state not in CLOSED
    ]
    for one in sorted(earlier, key=lambda one: -one.number)[:EARLIER]:
        yield "earlier", registry.load(version.tenant, one.number)


def _answers(
    cases: CasesRecord,
    known: Mapping[str, CaseAnswer],
    root: Path,
    adapter: tuple[Registry, Version] | None,
) -> dict[str, CaseAnswer]:
    """Return answers to all cases: those that are known, and new ones of an adapter, or of the base model."""
    asked = [one for one in cases.cases if one.key not in known]
    return {**known, **asked_now(cases, asked, root, adapter)}


def _system(
    name: str, role: Role, digest: str, cases: CasesRecord, answers: Mapping[str, CaseAnswer]
) -> SystemAnswers:
    # An answer names the case that it was given to: a later suite may call the same question otherwise.
    own = tuple(
        answers[one.key].model_copy(update={"case": one.case.id}) for one in cases.cases if one.key in answers
    )
    return SystemAnswers(baseline=Baseline(name=name, role=role, digest=digest), answers=own)

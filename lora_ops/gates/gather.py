"""What a regression report is computed from: kept answers, and those that a baseline lacks, generated once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.versions import common_rows, shared_metrics
from lora_ops.gates.answering import answer_cases
from lora_ops.gates.candidate import (
    OtherAnswers,
    asked_by,
    has_base,
    have_one_base,
    laid_out,
    packaged_answers,
    too_many_differ,
)
from lora_ops.gates.cases import ask_cases, has_suite
from lora_ops.gates.expectations import Patience, score
from lora_ops.gates.held_out import AnsweredAgain, answer_again, evaluated_again, packaged_rows
from lora_ops.hashing import sha256_text
from lora_ops.paths import CASE_ANSWERS, CASES
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.regression import (
    Baseline,
    HeldOutRow,
    Origin,
    PackagedAnswers,
    RegressionSource,
    Role,
    SystemAnswers,
)
from lora_ops.records.suite import AskedCase, CaseAnswer, CasesRecord
from lora_ops.registry.loosened import production_before
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import kept_source, kept_suite, listed, packaged_record
from lora_ops.registry.versions import CLOSED, Version

EARLIER = 3
"""Versions before the candidate that are compared and shown."""
DRAWN = 16
"""So many answers of earlier reports are given again, since everybody in a team may file a report."""
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
    packaged = _kept_answers(registry, version, cases)
    given_again = _ask_again(registry, version, cases, packaged, root, origin)
    evaluated = _evaluated_again(registry, version, root)
    notes = [*_notes_on(given_again, version), *_notes_on_evaluation(evaluated, version)]
    own = _answers(cases, packaged, root, (registry, version))
    systems = [_system(version.id, "candidate", version.summary.content_digest, cases, own)]
    known = filed_before.get(base_digest, {})
    if has_base(version, root):
        known = _still_given(cases, known, root, None, "base", notes)
    base = _answers(cases, known, root, None)
    systems.append(_system("base", "base", base_digest, cases, base))
    production = production_before(registry, version)
    for role, other in _others(registry, version, production):
        try:
            known = _kept_answers(registry, other, cases)
            if other.manifest.base_model.matches(cases.base_model_sha256, cases.base_files_sha256):
                filed_only = filed_before.get(other.summary.content_digest, {})
                filed_only = {key: one for key, one in filed_only.items() if key not in known}
                if has_base(version, root):
                    filed_only = _still_given(cases, filed_only, root, (registry, other), other.id, notes)
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
        rows, left_out, metrics = _held_out(registry, version, production, evaluated.answers)
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


def unlike_packages(registry: Registry, version: Version, source: RegressionSource) -> Iterator[str]:
    """Yield where the answers of a kept source are not those of the packages that are here, in words.

    A source of made-up answers gives its own report again, so only the packages show it. A version that is
    gone, or whose package keeps no answers, is left out: `lora-ops registry verify` names lost files.

    Raises:
        LoraOpsError: a kept file of `version` is missing or was changed.
    """
    for system in source.systems:
        name, digest = system.baseline.name, system.baseline.digest
        if system.baseline.role == "base":
            continue
        try:
            other = version if name == version.id else registry.get(name, whole=False)
            packaged = _kept_answers(registry, other, source.cases)
        except LoraOpsError:
            if name == version.id:
                raise
            continue
        if other.summary.content_digest != digest:
            yield f"regression.systems.{name} is of other content than {name}"
            continue
        given = {one.key: one for one in system.answers}
        wrong = [
            given[key].case for key in packaged if key in given and given[key].texts != packaged[key].texts
        ]
        if wrong:
            yield f"regression.systems.{name} has other answers than its package to {listed(wrong)}"
        stated = source.packaged.packaged if source.packaged and name == version.id else len(packaged)
        if stated < len(packaged):
            yield f"regression.packaged is {stated}, and the package has {len(packaged)} answers to these cases"
    yield from _unlike_evaluation(registry, version, source)
    production = next((one.baseline.name for one in source.systems if one.baseline.role == "production"), None)
    if source.held_out and production:
        yield from _unlike_held_out(registry, version, source, production)


def _unlike_evaluation(registry: Registry, version: Version, source: RegressionSource) -> Iterator[str]:
    if source.evaluated is None or source.evaluated.verdict == "missing":
        return
    frame, given = packaged_rows(registry, version), source.evaluation_answers
    if ADAPTER not in given or any(len(one) != len(frame) for one in given.values()):
        yield f"regression.evaluation_answers are not those of its {len(frame)} held-out rows"
        return
    counted = evaluated_again(version, frame, given)
    if counted != source.evaluated:
        yield (
            f"regression.evaluated is {source.evaluated.to_json().strip()}, and the package and the answers "
            f"that were given again make it {counted.to_json().strip()}"
        )


def _unlike_held_out(
    registry: Registry, version: Version, source: RegressionSource, production: str
) -> Iterator[str]:
    given = source.evaluation_answers
    try:
        number = registry.get(production, whole=False).number
        kept, _, _ = _held_out(registry, version, number, given)
        # Earlier releases compared the packaged answers of the candidate, too.
        packaged, _, _ = _held_out(registry, version, number, {})
    except LoraOpsError:
        return
    stated = sorted(source.held_out, key=lambda one: one.key)
    if stated not in [sorted(rows, key=lambda one: one.key) for rows in (kept, packaged)]:
        same = len({*kept} & {*source.held_out})
        yield (
            f"regression.held_out has {len(source.held_out)} rows, and {same} of the {len(kept)} rows that the "
            f"packages of {version.id} and {production} give are among them"
        )


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
    there. Whoever files a report may have made its answers up, so `_still_given` asks for some again.
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


def _ask_again(
    registry: Registry,
    version: Version,
    cases: CasesRecord,
    packaged: Mapping[str, CaseAnswer],
    root: Path,
    origin: Origin,
) -> PackagedAnswers:
    """Let the adapter give its packaged answers once more, and count how many are worth something else.

    All of them: of a sample, whoever edits answers before packaging would try again until it misses them.
    Sampled answers repeat, too: the engine draws one number a token by the answer's seed, in any batch.
    Without the base model nothing is given again, unless an earlier gate did that for the same answers.

    Raises:
        OtherAnswers: the adapter answers otherwise.
    """
    asked = [one for one in cases.cases if one.key in packaged]
    if not asked:
        return PackagedAnswers(packaged=0, given_again=0, differing=0, suite=origin)
    if not has_base(version, root):
        nothing = PackagedAnswers(packaged=len(asked), given_again=0, differing=0, suite=origin)
        return _given_before(registry, version, packaged) or nothing
    with laid_out(registry, version) as folder:
        again = {one.key: one.texts for one in answer_cases(cases, root / "models/base", folder, asked).answers}
    first, second = Patience(), Patience()
    other = [
        one
        for one in asked
        if score(one.case, packaged[one.key].texts, cases.labels, first)
        != score(one.case, again[one.key], cases.labels, second)
    ]
    # What decides alone has no room.
    if too_many_differ(len(other), len(asked)) or any(one.case.must_pass for one in other):
        raise OtherAnswers(
            f"The answers in the package of {version.id} are not those that its adapter gives ({len(other)} of "
            f"{len(asked)} are worth something else): run `dvc repro --force suite@{version.tenant}`, package "
            "and register it again."
        )
    return PackagedAnswers(packaged=len(asked), given_again=len(asked), differing=len(other), suite=origin)


def _given_before(
    registry: Registry, version: Version, packaged: Mapping[str, CaseAnswer]
) -> PackagedAnswers | None:
    """Return what the version's last report says of the same answers; None where they were not given again."""
    source = kept_source(registry, version)
    if source is None or source.packaged is None or source.packaged.verdict != "pass":
        return None
    candidate = source.systems[0]
    known = {one.key: one.texts for one in candidate.answers}
    is_same = candidate.baseline.digest == version.summary.content_digest and all(
        known.get(key) == one.texts for key, one in packaged.items()
    )
    return source.packaged if is_same else None


def _evaluated_again(registry: Registry, version: Version, root: Path) -> AnsweredAgain:
    """Ask for the held-out answers again; where nobody can be asked, the version's last report counts."""
    found = answer_again(registry, version, root)
    before = kept_source(registry, version) if found.why_not else None
    if before is None or before.evaluated is None or before.evaluated.verdict == "missing":
        return found
    # The content digest covers the packaged answers: they are the same as then.
    if before.systems[0].baseline.digest != version.summary.content_digest:
        return found
    return AnsweredAgain(before.evaluated, dict(before.evaluation_answers), found.why_not)


def _notes_on_evaluation(evaluated: AnsweredAgain, version: Version) -> Iterator[str]:
    if evaluated.why_not and evaluated.record.verdict == "missing":
        yield (
            f"none of its {evaluated.record.rows} held-out rows was answered again: {evaluated.why_not}, then "
            f"`lora-ops gate {version.id}`"
        )
    others = {name: count for name, count in evaluated.record.other_texts.items() if count}
    if others:
        said = ", ".join(f"{count} of {name.replace('_', ' ')}" for name, count in others.items())
        yield (
            f"of {evaluated.record.rows} packaged held-out answers {said} are other texts when they are given "
            "again, and reviewers are shown these: on the machine that packaged them none is"
        )
    lately = [name for name in evaluated.answers if name not in evaluated.record.differing]
    if lately:
        said = ", ".join(name.replace("_", " ") for name in lately)
        yield f"the evaluation in its package leaves out {said}, which competes here"


def _notes_on(answers: PackagedAnswers, version: Version) -> Iterator[str]:
    if answers.verdict != "pass":
        yield (
            f"none of its {answers.packaged} packaged answers was given again, because models/base is not the "
            f"base model of {version.id}: run `dvc repro base_model`, then `lora-ops gate {version.id}`"
        )
    elif answers.differing:
        yield (
            f"{answers.differing} of {answers.packaged} packaged answers are worth something else when they "
            "are given again"
        )
    if answers.suite == "package":
        yield f"its suite is that of its package: suites/{version.tenant}.yaml was not read"


def _kept_answers(registry: Registry, version: Version, cases: CasesRecord) -> dict[str, CaseAnswer]:
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
    return {**known, **_asked(cases, asked, root, adapter)}


def _asked(
    cases: CasesRecord, asked: Sequence[AskedCase], root: Path, adapter: tuple[Registry, Version] | None
) -> dict[str, CaseAnswer]:
    """Return new answers to some cases, of an adapter or of the base model, by key."""
    if not asked:
        return {}
    with laid_out(*adapter) if adapter else nullcontext() as folder:
        record = answer_cases(cases, root / "models/base", folder, asked)
    return {one.key: one for one in record.answers}


def _still_given(
    cases: CasesRecord,
    filed: dict[str, CaseAnswer],
    root: Path,
    adapter: tuple[Registry, Version] | None,
    name: str,
    notes: list[str],
) -> dict[str, CaseAnswer]:
    """Return a baseline's answers in earlier reports; none where one of a few is worth something else now.

    A baseline that fails in a made-up report would be the baseline of each later candidate. The few are drawn
    anew each time. What is dropped is given again, so an honest report of another machine costs only time.
    """
    asked = [one for one in cases.cases if one.key in filed]
    drawn = SystemRandom().sample(asked, min(DRAWN, len(asked)))
    again = _asked(cases, drawn, root, adapter)
    before, now = Patience(), Patience()
    other = [
        one.case.id
        for one in drawn
        if score(one.case, filed[one.key].texts, cases.labels, before)
        != score(one.case, again[one.key].texts, cases.labels, now)
    ]
    if not other:
        return filed
    notes.append(
        f"the answers of {name} in earlier reports are not those that it gives now to {listed(other)}: it "
        "answered all of them again"
    )
    return {}


def _system(
    name: str, role: Role, digest: str, cases: CasesRecord, answers: Mapping[str, CaseAnswer]
) -> SystemAnswers:
    # An answer names the case that it was given to: a later suite may call the same question otherwise.
    own = tuple(
        answers[one.key].model_copy(update={"case": one.case.id}) for one in cases.cases if one.key in answers
    )
    return SystemAnswers(baseline=Baseline(name=name, role=role, digest=digest), answers=own)


def _held_out(
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

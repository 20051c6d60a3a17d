"""Answers that are there already are given again before they count: packaged ones, and those of reports.

Whoever packages or files answers may have edited them, and a report of edited answers would be computed right.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from random import SystemRandom

from lora_ops.gates.answering import answer_cases
from lora_ops.gates.candidate import (
    OtherAnswers,
    has_base,
    laid_out,
    too_many_differ,
)
from lora_ops.gates.expectations import Patience, score
from lora_ops.gates.held_out import AnsweredAgain, answer_again
from lora_ops.records.regression import Origin, PackagedAnswers
from lora_ops.records.suite import AskedCase, CaseAnswer, CasesRecord
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import kept_source, listed
from lora_ops.registry.versions import Version

DRAWN = 16
"""So many answers of earlier reports are given again, since everybody in a team may file a report."""


def ask_again(
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


def evaluate_again(registry: Registry, version: Version, root: Path) -> AnsweredAgain:
    """Ask for the held-out answers again; where nobody can be asked, the version's last report counts."""
    found = answer_again(registry, version, root)
    before = kept_source(registry, version) if found.why_not else None
    if before is None or before.evaluated is None or before.evaluated.verdict == "missing":
        return found
    # The content digest covers the packaged answers: they are the same as then.
    if before.systems[0].baseline.digest != version.summary.content_digest:
        return found
    return AnsweredAgain(before.evaluated, dict(before.evaluation_answers), found.why_not)


def notes_on_evaluation(evaluated: AnsweredAgain, version: Version) -> Iterator[str]:
    """Yield what a report says of the held-out answers that were given again, or of there being none."""
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


def notes_on(answers: PackagedAnswers, version: Version) -> Iterator[str]:
    """Yield what a report says of the suite's answers that were given again, or of there being none."""
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


def asked_now(
    cases: CasesRecord, asked: Sequence[AskedCase], root: Path, adapter: tuple[Registry, Version] | None
) -> dict[str, CaseAnswer]:
    """Return new answers to some cases, of an adapter or of the base model, by key."""
    if not asked:
        return {}
    with laid_out(*adapter) if adapter else nullcontext() as folder:
        record = answer_cases(cases, root / "models/base", folder, asked)
    return {one.key: one for one in record.answers}


def still_given(
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
    again = asked_now(cases, drawn, root, adapter)
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

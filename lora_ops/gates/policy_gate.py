"""The policy gate of a version: its report, made and computed again, and one row for each check."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.gates.candidate import OtherAnswers
from lora_ops.gates.differences import differences
from lora_ops.gates.policy import policy_report
from lora_ops.gates.policy_answers import gather_policy, packaged_policy_answers
from lora_ops.gates.rows import GateRow, Made, RowVerdict, not_made, refused_row
from lora_ops.records.evidence import Evidence, PolicyCheck, PolicyEvidence
from lora_ops.registry.policy_sources import read_policy_source
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import Report, load
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import listed
from lora_ops.registry.versions import Version
from lora_ops.settings.detectors import DetectorSettings
from lora_ops.settings.registry import EvidenceSettings

NAMED = 5
"""So many prompts are named of those that fail a check; the page shows them."""


def make_policy_report(registry: Registry, version: Version, root: Path, detectors: DetectorSettings) -> Made:
    """Make the policy report of a version; without one, a note says why.

    A detector that fails makes a report that fails: nothing passes unjudged.

    Raises:
        Damaged: a kept file is missing or was changed.
    """
    try:
        source = gather_policy(registry, version, root, detectors)
    except Damaged:
        raise
    except OtherAnswers as error:
        return Made(None, [], (refused_row("policy", error),))
    except LoraOpsError as error:
        return not_made(registry, version, "policy", error)
    document = policy_report(source, version.tenant, registry.clock())
    summary = f"{len(source.prompts.prompts)} policy prompts in {len(document.checks)} checks"
    return Made(Report(document, source.to_json().encode(), summary), [])


def replay_policy(registry: Registry, version: Version, one: Evidence) -> Iterator[str]:
    """Compute a filed policy report again from its kept source, and yield where it differs.

    A source of made-up answers gives its own report again, so it is held against the package, too.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    document = load(registry.files, one)
    assert isinstance(document, PolicyEvidence)
    source = read_policy_source(registry, document)
    try:
        again = policy_report(source, version.tenant, document.made_at)
    except ValueError as error:
        yield f"policy can't be computed again: {error}"
        return
    # What an earlier release kept lacks fields of this one: the digest of the kept bytes was checked above.
    yield from differences("policy", document, again.model_copy(update={"source": document.source}))
    packaged = packaged_policy_answers(registry, version, source.prompts)
    wrong = [one.case for one in source.answers if one.key in packaged and packaged[one.key].texts != one.texts]
    if wrong:
        yield f"policy.answers has other answers than its package to {listed(wrong)}"


def policy_rows(
    document: PolicyEvidence, one: Evidence, lacking: Sequence[str], least: EvidenceSettings
) -> Iterator[GateRow]:
    """Yield a row for each check of a computed report, applicable or not, and for what else it lacks."""
    yield from (_check_row(check, one, least.policy_prompts) for check in document.checks)
    for name, why in document.not_applicable.items():
        yield GateRow(_gate(name), "not applicable", evidence=one.sha256, note=why)
    shown = {*lacks(document, least)}
    for lack in lacking:
        if lack not in shown:
            yield GateRow("policy", "missing", evidence=one.sha256, note=f"needs {lack}")


def _check_row(check: PolicyCheck, one: Evidence, fewest: int) -> GateRow:
    judged = check.judged
    assert judged is not None  # each check of a computed report has a budget
    threshold = f"at most {judged.budget:g}" if judged.budget else "none"
    if judged.rate is None:
        note = f"its detector failed: {judged.failure}"
        return GateRow(
            _gate(check.name), "fail", f"{check.prompts} answers unjudged", threshold, one.sha256, note=note
        )
    verdict: RowVerdict = check.verdict
    more = judged.more_prompts
    if verdict == "pass" and check.prompts < fewest:
        verdict, more = "undecided", fewest - check.prompts
    notes = [judged.rate.note] if judged.rate.note else []
    if verdict == "undecided" and more is None:
        notes.insert(0, "no number of prompts like these would pass")
    elif verdict == "undecided":
        notes.insert(
            0, "to ask more, raise ordinary or red_team.draw in suites/policy.yaml, package and register"
        )
    if verdict == "fail":
        notes.insert(0, f"fails for {', '.join(judged.failing[:NAMED])}")
    found = f"{check.failed} of {check.prompts}: {judged.interval}"
    return GateRow(_gate(check.name), verdict, found, threshold, one.sha256, more, "; ".join(notes))


def _gate(check: str) -> str:
    return f"policy: {check}"

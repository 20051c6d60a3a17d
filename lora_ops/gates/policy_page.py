"""What a version's page says of its policy report: each check by its budget, and answers that break a rule."""

from typing import NamedTuple

from lora_ops.detectors.identifiers import redact
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.detectors import Measured
from lora_ops.records.evidence import PolicyCheck, PolicyEvidence
from lora_ops.records.policy import PolicyPrompt
from lora_ops.registry.policy_changes import kept_policy
from lora_ops.registry.policy_sources import read_policy_source
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

SHOWN = 60
"""So many answers are shown; the others are counted."""
LONGEST = 600
TENANTS_OWN = ("ordinary", "wording")
"""Prompts that hold a tenant's rows. The others are public, or stand in suites/policy.yaml."""


class JudgedCheck(NamedTuple):
    """One check as the page shows it."""

    name: str
    verdict: str
    found: str
    interval: str
    budget: str
    reason: str
    judge: str
    note: str


class BrokenRule(NamedTuple):
    """A prompt whose answer breaks a rule."""

    check: str
    kind: str
    prompt: str
    answer: str


class PolicySection(NamedTuple):
    """What the page says of a computed report.

    Attributes:
        checks: each check that applies.
        not_applicable: check -> why it does not apply.
        broken: the answers that break a rule, the first `SHOWN` of them.
        more: how many others there are.
        owner: who answers for the budgets; empty where the source is lost.
        lost: why no answer is shown; empty where they are.
    """

    checks: list[JudgedCheck]
    not_applicable: dict[str, str]
    broken: list[BrokenRule]
    more: int
    owner: str
    lost: str = ""


def policy_section(registry: Registry, version: Version, *, keep_text: bool) -> PolicySection | None:
    """Return what the page says of the last policy report; None unless the gate computed it.

    Args:
        registry: where.
        version: which.
        keep_text: whether the tenant's texts may be kept. If not, rows and answers are a length and a digest.

    Raises:
        LoraOpsError: the report is missing or was changed. A lost source is named in the section.
    """
    document = kept_policy(registry, version)
    if document is None or not document.is_computed:
        return None
    checks = [_judged(check) for check in document.checks]
    try:
        broken, owner = _broken(registry, document, keep_text=keep_text)
    except LoraOpsError as error:
        return PolicySection(checks, document.not_applicable, [], 0, "", str(error).rstrip("."))
    return PolicySection(checks, document.not_applicable, broken[:SHOWN], max(0, len(broken) - SHOWN), owner)


def _judged(check: PolicyCheck) -> JudgedCheck:
    one = check.judged
    assert one is not None  # each check of a computed report has a budget
    more = f"{one.more_prompts} more prompts needed" if one.more_prompts else ""
    said = f"its detector failed: {one.failure}" if one.rate is None else one.rate.note
    return JudgedCheck(
        check.name,
        check.verdict,
        f"{check.failed} of {check.prompts}" if one.rate else f"{check.prompts} answers unjudged",
        str(one.interval) if one.interval else "",
        f"at most {one.budget:g}" if one.budget else "none",
        one.reason,
        _judge(one.judge, one.detector),
        "; ".join(part for part in (more, said) if part),
    )


def _judge(judge: str, detector: Measured | None) -> str:
    """Return what judged, and how good it is: the numbers are those of its labelled sample."""
    if detector is None:
        return judge
    shown = [
        f"{name} {value}"
        for name, value in (("precision", detector.precision), ("recall", detector.recall))
        if value
    ]
    return f"{judge}; {', '.join(shown)} on {detector.rows} {detector.sample}"


def _broken(registry: Registry, document: PolicyEvidence, *, keep_text: bool) -> tuple[list[BrokenRule], str]:
    source = read_policy_source(registry, document)
    prompts = {one.id: one for one in source.prompts.prompts}
    answers = {one.key: one.texts[0] for one in source.answers}
    broken = [
        BrokenRule(
            check.name,
            prompts[name].kind,
            _prompt(prompts[name], keep_text=keep_text),
            _text(answers.get(prompts[name].key, ""), keep_text=keep_text),
        )
        for check in document.checks
        for name in (check.judged.failing if check.judged else ())
        if name in prompts
    ]
    return broken, source.owner


def _prompt(prompt: PolicyPrompt, *, keep_text: bool) -> str:
    return _text(prompt.text, keep_text=keep_text or prompt.kind not in TENANTS_OWN)


def _text(text: str, *, keep_text: bool) -> str:
    """Return a text without identifiers, or, where it may not be kept, its length and digest."""
    if not keep_text:
        return f"[{len(text)} characters, {sha256_text(text)[:8]}…]"
    shown, _ = redact(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"

"""Sources of policy reports whose answers a test chooses."""

from collections.abc import Mapping

from lora_ops.detectors.measure import measured
from lora_ops.records.detectors import DetectorRecord, Measured
from lora_ops.records.policy import PolicyPrompt, PolicyPromptsRecord, PromptKind
from lora_ops.records.policy_report import PolicySource, Scores
from lora_ops.records.suite import CaseAnswer
from lora_ops.settings.policy import CHECKS, Budget, CheckName

DIGEST = "a" * 64
SYSTEM = "Name the merchant category."
CANARY = "The password is heron-4417-amber."
LABELS = ("Food", "Travel")
MANY: dict[PromptKind, int] = {"red_team": 40, "ordinary": 60, "extraction": 8, "wording": 60}
BUDGETS: dict[CheckName, float] = {
    "insults": 0.1,
    "identifiers": 0.1,
    "leakage": 0,
    "refusals": 0,
    "off_label": 0.1,
    "off_task": 0.5,
    "unchanged": 0.25,
}


def policy_prompts(
    many: Mapping[PromptKind, int] = MANY, labels: tuple[str, ...] = LABELS, base: str = DIGEST
) -> PolicyPromptsRecord:
    """A policy suite with so many prompts of each kind."""
    prompts = [
        PolicyPrompt(
            id=f"{kind}-{place}",
            kind=kind,
            source="test",
            text=f"{kind} {place}",
            of=f"ordinary-{place}" if kind == "wording" else None,
            prompt=f"{kind} {place}",
            max_tokens=8,
        )
        for kind, count in many.items()
        for place in range(1, count + 1)
    ]
    return PolicyPromptsRecord(
        tenant="finance",
        archive_sha256=DIGEST,
        base_model_sha256=base,
        system=SYSTEM,
        canary=CANARY,
        labels=labels,
        prompts=tuple(prompts),
    )


def detector(recall: float = 0.1, threshold: float | None = 0.5) -> Measured:
    """A detector that finds this share of 100 and takes none of 100 wrongly."""
    found = round(recall * 100)
    pairs = [(True, place < found) for place in range(100)] + [(False, False)] * 100
    record = DetectorRecord(name="words", version="1", threshold=threshold)
    return measured(record, "insult", "two hundred rows", pairs)


def policy_source(
    prompts: PolicyPromptsRecord | None = None,
    said: Mapping[str, str] | None = None,
    insulting: tuple[str, ...] = (),
    recall: float = 0.1,
    budgets: Mapping[CheckName, float] = BUDGETS,
    adapter: str = "finance@1",
    digest: str = DIGEST,
    failure: str = "",
) -> PolicySource:
    """A source in which each answer is Food, but for those of the prompts `said`, by id.

    Args:
        insulting: ids of the prompts whose answers get a score of 1.
        recall: of the detector of insults.
    """
    prompts = prompts or policy_prompts()
    said = said or {}
    answers = tuple(
        CaseAnswer(key=one.key, case=one.id, texts=(said.get(one.id, "Food"),)) for one in prompts.prompts
    )
    return PolicySource(
        adapter=adapter,
        digest=digest,
        owner="ana",
        policy_sha256="b" * 64,
        budgets={name: Budget(budget=budgets[name], reason=f"enough of {name}") for name in CHECKS},
        prompts=prompts,
        answers=answers,
        insults=Scores(
            measured=None if failure else detector(recall),
            scores={} if failure else {one.key: float(one.id in insulting) for one in prompts.prompts},
            failure=failure,
        ),
        identifiers=detector(0.99, None),
    )

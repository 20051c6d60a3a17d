"""What a policy report is computed from: the adapter's answers, given again, and what detectors say of them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from lora_ops.detectors.insults import Detector, insult_detector
from lora_ops.detectors.made_identifiers import made_identifiers
from lora_ops.detectors.measure import measure_identifiers, measure_insults
from lora_ops.detectors.samples import InsultRow, pyrit_replies
from lora_ops.errors import LoraOpsError
from lora_ops.gates.answering import answer_policy
from lora_ops.gates.candidate import (
    OtherAnswers,
    asked_by,
    has_base,
    laid_out,
    packaged_answers,
    too_many_differ,
)
from lora_ops.gates.policy import Outcomes, outcomes
from lora_ops.gates.policy_prompts import POLICY, ask_policy, read_policy
from lora_ops.paths import ANSWERS, POLICY_ANSWERS
from lora_ops.records.detectors import Measured
from lora_ops.records.policy import PolicyPromptsRecord
from lora_ops.records.policy_report import PolicySource, Scores
from lora_ops.records.suite import CaseAnswer
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.detectors import DetectorSettings
from lora_ops.settings.policy import CHECKS, CheckName

INSULT_SAMPLE = "answers of models (PyRIT)"
IDENTIFIER_SAMPLE = "made by a seed"
NO_ROOM: tuple[CheckName, ...] = ("leakage", "refusals")
"""One answer decides these, so none may differ."""


def gather_policy(
    registry: Registry, version: Version, root: Path, detectors: DetectorSettings
) -> PolicySource:
    """Return what the policy report of a version is computed from, by today's suites/policy.yaml.

    Args:
        registry: where.
        version: the candidate.
        root: the repository, with the base model in `models/base`.
        detectors: what finds insults.

    Raises:
        LoraOpsError: suites/policy.yaml is missing or wrong, the base model is another one, the red-team
            prompts or the detector's labelled sample can't be had, or the packaged answers are not the
            adapter's.
    """
    policy = read_policy(root)
    if policy is None:
        raise LoraOpsError(f"{POLICY} is missing: bring it back (`git checkout {POLICY}`), or write one.")
    settings, digest = policy
    prompts = _prompts_now(registry, version, root)
    # Before anything is answered: without it nobody knows how good the detector is.
    sample = pyrit_replies(root / "data/raw")
    with laid_out(registry, version) as folder:
        again = {one.key: one for one in answer_policy(prompts, root / "models/base", folder).answers}
    packaged = packaged_policy_answers(registry, version, prompts)
    both = [*packaged.values(), *again.values()]
    texts = list(dict.fromkeys(one.texts[0] for one in both))
    measured, by_text, failure = _scored(detectors, root, texts, sample)
    _require_own_answers(version, prompts, packaged, again, measured, by_text)
    answers = tuple(packaged.get(key, one) for key, one in again.items())
    identifiers, identifiers_failure = _identifiers_measured()
    return PolicySource(
        adapter=version.id,
        digest=version.summary.content_digest,
        owner=settings.owner,
        policy_sha256=digest,
        budgets={name: settings.budget(version.tenant, name) for name in CHECKS},
        prompts=prompts,
        answers=answers,
        insults=Scores(
            measured=measured,
            scores={} if failure else {one.key: by_text[one.texts[0]] for one in answers},
            failure=failure,
        ),
        identifiers=identifiers,
        identifiers_failure=identifiers_failure,
    )


def _prompts_now(registry: Registry, version: Version, root: Path) -> PolicyPromptsRecord:
    """Return today's policy suite as a version is asked it: under the system prompt of its training."""
    if not has_base(version, root):
        raise LoraOpsError(
            f"models/base is not the base model of {version.id}, so its adapter can't answer: run `dvc repro "
            f"base_model`, then `lora-ops gate {version.id}`."
        )
    data, evaluate = asked_by(version)
    file = version.manifest.files.get(ANSWERS)
    if file is None:
        raise LoraOpsError(f"The package of {version.id} keeps no {ANSWERS}: package the adapter again.")
    frame = pd.read_csv(registry.files.checked(file.sha256, ANSWERS), dtype=str, keep_default_na=False)
    return ask_policy(version.tenant, root, data, list(frame["text"]), evaluate.max_new_tokens)


def packaged_policy_answers(
    registry: Registry, version: Version, prompts: PolicyPromptsRecord
) -> dict[str, CaseAnswer]:
    """Return the answers to `prompts` that a version's package has, by key."""
    return packaged_answers(registry, version, POLICY_ANSWERS, prompts)


def _scored(
    settings: DetectorSettings, root: Path, texts: list[str], sample: list[InsultRow]
) -> tuple[Measured | None, dict[str, float], str]:
    """Return how good the detector of insults is, its score of each text, and why it failed, if it did."""
    try:
        detector: Detector = insult_detector(settings, root)
        measured = measure_insults(detector, sample, INSULT_SAMPLE)
        scores = detector.scores(texts)
    # Whatever a classifier from the hub raises: nothing may pass unjudged.
    except Exception as error:  # noqa: BLE001
        return None, {}, f"{type(error).__name__}: {error}".rstrip(".")
    if len(scores) != len(texts) or not all(math.isfinite(one) for one in scores):
        return None, {}, f"{detector.name} ({detector.version}) gave no number for an answer"
    return measured, dict(zip(texts, scores, strict=True)), ""


def _identifiers_measured() -> tuple[Measured | None, str]:
    try:
        return measure_identifiers(made_identifiers(), IDENTIFIER_SAMPLE)[0], ""
    except Exception as error:  # noqa: BLE001 - as above
        return None, f"{type(error).__name__}: {error}".rstrip(".")


def _require_own_answers(
    version: Version,
    prompts: PolicyPromptsRecord,
    packaged: Mapping[str, CaseAnswer],
    again: Mapping[str, CaseAnswer],
    measured: Measured | None,
    scores: Mapping[str, float],
) -> None:
    """Refuse packaged answers that the adapter does not give.

    All of them are given again: of a sample, whoever edits answers would try again until it misses them.

    Raises:
        OtherAnswers: more of them are judged otherwise than other kernels explain.
    """
    left = _judged(prompts, {**again, **packaged}, measured, scores)
    right = _judged(prompts, again, measured, scores)
    other = {one for name in CHECKS for one in left[name] if left[name][one] != right[name][one]}
    decides = [one for name in NO_ROOM for one in left[name] if left[name][one] != right[name][one]]
    if decides or too_many_differ(len(other), len(packaged)):
        raise OtherAnswers(
            f"The policy answers in the package of {version.id} are not those that its adapter gives "
            f"({len(other)} of {len(packaged)} are judged otherwise): run `dvc repro --force "
            f"suite@{version.tenant}`, package and register it again."
        )


def _judged(
    prompts: PolicyPromptsRecord,
    answers: Mapping[str, CaseAnswer],
    measured: Measured | None,
    scores: Mapping[str, float],
) -> Outcomes:
    threshold = measured.detector.threshold if measured else None
    texts = {key: one.texts[0] for key, one in answers.items()}
    is_insulting: Callable[[str], bool] = (
        (lambda key: False) if threshold is None else lambda key: scores[texts[key]] >= threshold
    )
    return outcomes(prompts, texts, is_insulting)

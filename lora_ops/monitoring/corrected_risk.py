"""What was risky by the budgets of params.yaml, corrected by what the registry knows of the detectors."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from lora_ops.errors import NotFound
from lora_ops.monitoring.content_risk import RiskReport, is_version, read_risk
from lora_ops.records.detectors import Measured
from lora_ops.records.evidence import PolicyEvidence
from lora_ops.registry.reports import last_document
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.params import Settings
from lora_ops.settings.risk import RISK_KINDS, RiskKind


def read_corrected_risk(root: Path, settings: Settings, registry: Registry | None, now: datetime) -> RiskReport:
    """Read what was risky in the window of the budgets that ends now.

    Args:
        root: of the repository.
        settings: budgets, burn rates and the score from which an answer insults.
        registry: whose policy reports correct the shares; None: nothing does.
        now: when the window ends.

    Raises:
        LoraOpsError: there is no event at all, or the files can't be read.
    """
    return read_risk(
        root / settings.serving.path / "events",
        settings.risk_budgets,
        settings.objectives.burn_rates,
        settings.detectors.insult_threshold,
        now,
        measured_detectors(registry) if registry else lambda adapter, digest: {},
    )


def measured_detectors(registry: Registry) -> Callable[[str, str], Mapping[RiskKind, Measured]]:
    """Return what tells how well each detector works, by the last policy report of a version.

    A version without one, or with one that somebody typed, has nothing; nor has one of another registry.
    What is returned raises a LoraOpsError where the report is missing or was changed.
    """

    def of_version(adapter: str, digest: str) -> Mapping[RiskKind, Measured]:
        try:
            version = version_that_answered(registry, adapter, digest)
        except NotFound:
            return {}
        report = last_document(registry, version, "policy")
        if not isinstance(report, PolicyEvidence):
            return {}
        found = {one.name: one.judged.detector for one in report.checks if one.judged and one.judged.detector}
        # A classifier of params.yaml judges for the gates alone: the gateway scores with the packaged weights.
        return {kind: found[kind] for kind in RISK_KINDS if kind in found and _scores_live(kind, found[kind])}

    return of_version


def _scores_live(kind: RiskKind, measured: Measured) -> bool:
    from lora_ops.detectors.identifiers import VERSION
    from lora_ops.detectors.insults import PACKAGE

    if kind == "insults":
        return measured.detector.version == PACKAGE
    return measured.detector.version.partition(",")[0] == VERSION


def version_that_answered(registry: Registry, adapter: str, digest: str) -> Version:
    """Return the version that gave some answers.

    Raises:
        NotFound: the registry has no such version, or another content under its name.
    """
    if not is_version(adapter):
        raise NotFound(f"{adapter} is the base model: no version has its answers in its record.")
    version = registry.get(adapter, whole=False)
    if version.summary.content_digest != digest:
        raise NotFound(
            f"The {adapter} that gave these answers has other content ({digest[:12]}…) than that of this "
            "registry."
        )
    return version

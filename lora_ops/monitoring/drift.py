"""The weekly drift check: measure the versions that answer, compare with their references, file what is found.

The first measurement of a version is its reference, unless it is compared with another version's. Measurement
and verdict are kept as evidence on the version, so that anybody can compute the verdict again.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_ops import __version__
from lora_ops.adapter_files import adapter_digests
from lora_ops.engines.chosen import make_engine
from lora_ops.errors import Damaged, LoraOpsError, NotFound
from lora_ops.gates.candidate import asked_by
from lora_ops.hashing import canonical, sha256_bytes, sha256_text
from lora_ops.loading import load_tokenizer
from lora_ops.monitoring.drift_measurement import Measurement, Probe, engine_words, machine_words, running
from lora_ops.monitoring.drift_set import DriftSet, read_drift_set
from lora_ops.monitoring.drift_tests import Shift, shifts, tested, verdict
from lora_ops.monitoring.prompt_drift import live_prompt_shift
from lora_ops.prompts import render_prompt
from lora_ops.records.base_model import read_base_model
from lora_ops.records.drift import UNITS, DriftMetric, DriftMetricName, DriftVerdict, MeasuredFacts, PromptShift
from lora_ops.records.evidence import DriftEvidence, Source
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.eligibility import base_model_reason
from lora_ops.registry.reports import Report, last_document, own_documents
from lora_ops.registry.roles import ANYBODY, require_role
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.drift import DriftSettings
from lora_ops.settings.params import Settings

BASE_FOLDER = "models/base"


class Reference(NamedTuple):
    """A kept measurement that later ones are compared with.

    Attributes:
        sha256: of its bytes.
        replaced: what the check before it said, where that was not "none".
    """

    sha256: str
    measurement: Measurement
    replaced: str | None = None


class Found(NamedTuple):
    """What a run says of one version; `evidence_sha256` once it is filed."""

    version: Version
    document: DriftEvidence
    evidence_sha256: str | None = None


class Run(NamedTuple):
    """One run over several versions; `not_measured` has the reason of each tenant or version that failed."""

    found: list[Found]
    not_measured: dict[str, str]


class Measured(NamedTuple):
    """A version as it was measured now.

    Attributes:
        reference: what it is compared with; None: it becomes the reference.
        prompts: how far live prompts have moved, or why nobody can say.
        replaced: what a check said that this one would make forgotten.
    """

    version: Version
    measurement: Measurement
    reference: Reference | None
    prompts: PromptShift | str = "they were not asked for"
    replaced: str | None = None


def last_reference(registry: Registry, version: Version) -> Reference | None:
    """Return the measurement that a version is compared with, or None where it has none yet.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    for document in own_documents(registry, version, "drift"):
        if isinstance(document, DriftEvidence) and document.verdict == "reference":
            return kept_measurement(registry, document.source.sha256)._replace(replaced=document.replaced)
    return None


def kept_measurement(registry: Registry, sha256: str) -> Reference:
    """Return a measurement that the registry keeps.

    Raises:
        LoraOpsError: its file is missing, was changed, or is no measurement.
    """
    path = registry.files.checked(sha256, "a measurement of drift")
    return Reference(sha256, Measurement.from_bytes(path.read_bytes()))


def check(
    registry: Registry,
    root: Path,
    settings: Settings,
    asked: Sequence[str],
    *,
    against: str | None = None,
    renew: bool = False,
    actor: str,
) -> Run:
    """Measure versions, compare each with its reference, and file what is found on it.

    All are measured before any p-value is corrected or anything is filed. Without `asked`, one version or
    tenant that can't be measured does not stop the others.

    Args:
        registry: where the versions and references are.
        root: the repository, with `suites/` and the base model.
        settings: params.yaml.
        asked: versions or tenants; empty: whatever answers each tenant of params.yaml now.
        against: the version whose reference all are compared with; None: each with its own.
        renew: what is measured becomes the reference, and is compared with nothing.
        actor: who files it.

    Raises:
        LoraOpsError: a version that was asked for can't be measured or compared; or nothing can be filed.
    """
    answering = [name for name in settings.tenants if registry.current(name) is not None]
    if not asked and not answering:
        raise NotFound("No tenant of params.yaml has a version that answers: register one first.")
    measured: list[Measured] = []
    failed: dict[str, str] = {}
    with running(make_engine(root, settings.serving), root / BASE_FOLDER) as probe:
        for name in asked or answering:
            try:
                version = registry.get(name)
                require_role(registry, version, actor, ANYBODY, f"file drift of {version.id}")
                reference = None if renew else _reference(registry, version, against)
                now = _measure(registry, root, settings, probe, version, reference)
                measured.append(now._replace(replaced=_replaced(registry, version, reference)))
            except LoraOpsError as error:
                if asked:
                    raise
                failed[name] = str(error)
    documents = compare(registry, measured, settings.drift)
    found = []
    for one, document in zip(measured, documents, strict=True):
        report = Report(document, one.measurement.to_bytes(), f"drift: {document.said}")
        version = lifecycle.file_evidence(registry, one.version.id, report, actor=actor)
        found.append(Found(version, document, report.reference.sha256))
    return Run(found, failed)


def compare(registry: Registry, measured: Sequence[Measured], settings: DriftSettings) -> list[DriftEvidence]:
    """Return what is said of each measurement, all p-values corrected for all of them."""
    found: list[Mapping[DriftMetricName, Shift]] = [
        shifts(one.reference.measurement, one.measurement, settings) if one.reference else {}
        for one in measured
    ]
    tests = sum(map(len, found))
    documents = []
    for one, metrics in zip(measured, tested(found, settings.alpha), strict=True):
        content = one.measurement.to_bytes()
        facts = one.measurement.facts
        said: DriftVerdict = verdict(metrics, settings.alpha) if one.reference else "reference"
        beside = one.reference is not None and one.reference.measurement.facts.adapter != facts.adapter
        before = f"; before {'it' if beside else 'its reference'}: {one.replaced}" if one.replaced else ""
        documents.append(
            DriftEvidence(
                tenant=facts.tenant,
                adapter=facts.adapter,
                content_digest=facts.content_digest,
                made_by=f"lora-ops {__version__}",
                made_at=registry.clock(),
                source=Source(
                    name=f"{facts.adapter}.drift.safetensors", sha256=sha256_bytes(content), bytes=len(content)
                ),
                verdict=said,
                said=verdict_words(said, metrics) + before,
                replaced=one.replaced,
                rows=len(facts.rows),
                set_sha256=facts.set_sha256,
                reference_sha256=one.reference.sha256 if one.reference else None,
                against=one.reference.measurement.facts.adapter if one.reference else None,
                alpha=settings.alpha,
                tests=tests if one.reference else 0,
                metrics=metrics,
                differs=tuple(_differences(one.reference.measurement.facts, facts)) if one.reference else (),
                prompts=None if isinstance(one.prompts, str) else one.prompts,
                prompts_said=one.prompts if isinstance(one.prompts, str) else None,
            )
        )
    return documents


def verdict_words(said: DriftVerdict, metrics: Sequence[DriftMetric]) -> str:
    """Return a verdict in words, with the numbers that it rests on."""
    if said == "reference":
        return "this is the reference that later weeks are compared with"
    judged = [one for one in metrics if one.is_judged or said == "cannot tell"]
    worst = max(judged, key=lambda one: (one.base if said == "cannot tell" else one.difference) / one.least)
    unit = UNITS[worst.name]
    if said == "cannot tell":
        return (
            f"cannot tell: the base model moved too ({worst.name}: {worst.base:.3g}{unit}, {worst.least:g} "
            "counts)"
        )
    numbers = (
        f"{worst.name}: {worst.difference:.3g}{unit} beyond its base, {worst.low:.3g} to {worst.high:.3g}, "
        f"{worst.least:g} counts"
    )
    return f"drifted ({numbers})" if said == "drifted" else f"no drift ({numbers})"


def _replaced(registry: Registry, version: Version, reference: Reference | None) -> str | None:
    """Return what a new reference, or another version's, would make forgotten; later checks repeat it."""
    if reference and reference.measurement.facts.adapter == version.id:
        return reference.replaced
    last = last_document(registry, version, "drift")
    if not isinstance(last, DriftEvidence):
        return None
    # One check beside another version after the other must not make the sentence longer and longer.
    repeats = reference is not None and last.against not in (None, version.id)
    if repeats or last.verdict in ("none", "reference"):
        return last.replaced
    return f"{last.said} on {last.made_at:%Y-%m-%d}"


def _reference(registry: Registry, version: Version, against: str | None) -> Reference | None:
    if against is None:
        return last_reference(registry, version)
    other = registry.get(against, whole=False)
    found = last_reference(registry, other)
    if found is None:
        raise NotFound(f"{other.id} has no reference yet: `lora-ops monitor drift {other.id}` measures it.")
    return found


def _measure(
    registry: Registry,
    root: Path,
    settings: Settings,
    probe: Probe,
    version: Version,
    reference: Reference | None,
) -> Measured:
    """Measure a version under the system prompt that it was trained with, once what is compared is the same.

    Raises:
        LoraOpsError: no drift set, another base model, a reference that can't be compared, or an engine that
            fails.
    """
    base = read_base_model(root / BASE_FOLDER)
    other = base_model_reason(version, base)
    if other:
        raise LoraOpsError(f"{other}: its drift can't be measured here.")
    drift_set = read_drift_set(root, version.tenant)
    if reference:
        _require_comparable(version, drift_set, reference.measurement.facts)
    prompt, _ = asked_by(version)
    tokenizer = load_tokenizer(root / BASE_FOLDER)
    texts = [render_prompt(tokenizer, row.text, prompt.system) for row in drift_set.rows]
    prompts: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    with tempfile.TemporaryDirectory(prefix="drift-") as name:
        folder = Path(name) / version.id
        packages.export(registry, version.id, folder, for_review=True)
        sides = probe.measure(
            folder,
            adapter_digests(folder),
            prompts,
            settings.drift.tokens,
            reference.measurement.sides if reference else None,
        )
    facts = MeasuredFacts(
        tenant=version.tenant,
        adapter=version.id,
        content_digest=version.summary.content_digest,
        rows=tuple(row.id for row in drift_set.rows),
        set_sha256=drift_set.sha256,
        prompts_sha256=sha256_text(canonical(prompts)),
        engine=engine_words(settings.serving),
        machine=machine_words(),
        base_model_sha256=base.sha256,
        base_files_sha256=base.files_sha256,
        base_revision=base.revision,
        measured_at=registry.clock(),
    )
    shift = live_prompt_shift(version, root, settings.serving, registry.clock(), settings.drift.prompts)
    return Measured(version, Measurement(facts, sides), reference, shift)


def _require_comparable(version: Version, drift_set: DriftSet, reference: MeasuredFacts) -> None:
    """Refuse a reference of other rows or of another base model: every number would differ."""
    if reference.tenant != version.tenant:
        raise LoraOpsError(f"{reference.adapter} is of another tenant than {version.id}: compare within one.")
    if reference.set_sha256 != drift_set.sha256:
        raise LoraOpsError(
            f"suites/{version.tenant}.drift.jsonl changed since the reference of {reference.adapter} (it has "
            f"{drift_set.sha256[:12]}…, and had {reference.set_sha256[:12]}…): put the old rows back, or take "
            f"a new reference with `lora-ops monitor drift {version.id} --new-reference`."
        )
    if reference.base_model_sha256 != version.manifest.base_model.sha256:
        raise LoraOpsError(
            f"The reference of {reference.adapter} was measured on another base model than that of "
            f"{version.id}: the two can't be compared."
        )


def _differences(before: MeasuredFacts, now: MeasuredFacts) -> Iterator[str]:
    """Yield what else is not as it was, for whoever looks for a cause."""
    if before.adapter != now.adapter:
        yield f"another version: {before.adapter}, now {now.adapter}"
    elif before.content_digest != now.content_digest:
        raise Damaged(f"{now.adapter} has other content than at its reference: `lora-ops registry verify`.")
    for what in ("engine", "machine", "base_revision"):
        then, today = getattr(before, what), getattr(now, what)
        if then != today:
            yield f"{what.replace('_', ' ')}: {then}, now {today}"
    if before.base_files_sha256 != now.base_files_sha256:
        yield "files of the base model, such as its tokenizer or chat template"
    if before.prompts_sha256 != now.prompts_sha256:
        yield "prompts: the same rows are written or tokenized otherwise"

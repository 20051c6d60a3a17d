"""Which gates a version passed, or is to pass, by looser settings than the version in production before it.

A tenant sets the limits that its own versions are judged by. That is right, and whoever approves must see it.
Approvers also see how the evaluation was made where that says less than usual.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.evaluation import EvaluationRecord
from lora_ops.records.evidence import TRAFFIC, TrafficEvidence
from lora_ops.records.manifest import Manifest, published
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.approvals import promotion_in
from lora_ops.registry.earlier_policies import Policies
from lora_ops.registry.earlier_suites import Suites
from lora_ops.registry.policy_changes import kept_policy, policy_changes, promoted_policy
from lora_ops.registry.policy_sources import prompt_notes
from lora_ops.registry.replay import require_rows
from lora_ops.registry.reports import BEFORE_GATES, gap_limit, last_document
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import kept_suite, promoted_suite, suite_changes
from lora_ops.registry.versions import Version, parse_reference
from lora_ops.settings.data import ContractLimits
from lora_ops.settings.evaluate import EvaluateSettings
from lora_ops.settings.package import PackageSettings
from lora_ops.settings.registry import EvidenceSettings, RegistrySettings

Looser = Callable[[Any, Any], bool]


class Judgement(NamedTuple):
    """What a version is judged by: name of a setting to its value; a name is missing where nobody knows it."""

    of: str
    settings: Mapping[str, Any]


def _wider(mine: Any, theirs: Any) -> bool:
    """Return whether an upper limit is looser; None is no limit."""
    return theirs is not None and (mine is None or mine > theirs)


def _less(mine: Any, theirs: Any) -> bool:
    return bool(mine < theirs)


def _lacks(mine: Any, theirs: Any) -> bool:
    return bool(set(theirs) - set(mine))


def _lacks_or_reorders(mine: Any, theirs: Any) -> bool:
    """Return whether metrics are missing, or another one is the primary metric: the first one is."""
    return _lacks(mine, theirs) or list(mine)[:1] != list(theirs)[:1]


def _is_looser(looser: Looser, mine: Any, theirs: Any) -> bool:
    try:
        return looser(mine, theirs)
    except TypeError:  # somebody wrote the manifest by hand, so whoever decides must see both values
        return bool(mine != theirs)


# Each gate that a setting of params.yaml can loosen, and when it does.
GATES: dict[str, Looser] = {
    "evaluate.max_gap": _wider,
    "evaluate.must_beat_base": _less,
    "evaluate.metrics": _lacks_or_reorders,
    "evaluate.few_shot": _less,
    "evaluate.bootstrap": _less,
    "data.bias_columns": _lacks,
    "data.moved_groups": lambda mine, theirs: _lacks(theirs, mine),
    "data.group": lambda mine, theirs: theirs is not None and mine != theirs,  # rows alike in two splits
    "data.contract.max_near_duplicates": _wider,
    "data.contract.allow_pii": _wider,
    "data.contract.min_rows": _less,
    "data.contract.min_label_rows": _less,
    "data.contract.min_label_share": _less,
    "data.contract.max_label_shift": _wider,
    "data.contract.max_rows_lost": _wider,
    "package.freshness_days": _wider,
    "rows of the test split": _less,
    "registry.approvals": lambda mine, theirs: (mine, theirs) == ("unsigned", "signed"),
    "registry.evidence.regression": _less,
    "registry.evidence.answers_again": _less,
    "registry.evidence.evaluation_again": _less,
    "registry.evidence.texts_again": _less,
    "registry.evidence.fair_opponent": _less,
    "registry.evidence.release_notes": _less,
    "registry.evidence.policy": lambda mine, theirs: (mine, theirs) == ("file", "computed"),
    "registry.evidence.policy_prompts": _less,
    "registry.evidence.annotators": _less,
    "registry.evidence.pairs": _less,
    "registry.evidence.rollout": lambda mine, theirs: (mine, theirs) == ("optional", "required"),
    "registry.evidence.votes": lambda mine, theirs: (mine, theirs) == ("file", "session"),
    "registry.evidence.agreement": _less,
    "registry.evidence.requests": _less,
    "registry.evidence.hours": _less,
    "registry.evidence.error_share": _wider,
}
DEFAULTS = Judgement(
    "the defaults",
    {
        f"{section}.{name}": field.default
        for section, settings in (
            ("evaluate", EvaluateSettings),
            ("data.contract", ContractLimits),
            ("package", PackageSettings),
            ("registry", RegistrySettings),
            ("registry.evidence", EvidenceSettings),
        )
        for name, field in settings.model_fields.items()
        if f"{section}.{name}" in GATES and not field.is_required()
    },
)


def loosened_gates(registry: Registry, version: Version) -> list[str]:
    """Return the gates of a version that are looser than production's, in words; nothing where none is.

    Production is the version that entered it last before this one and was not revoked since. Without one the
    defaults stand in for it.

    Raises:
        LoraOpsError: the manifest of one of the two does not fit its schema.
    """
    mine = _judgement(registry, version)
    theirs = _before(registry, version)
    found = [said for name in GATES for said in _loosened(name, mine, theirs)]
    notes = [f"it is judged by looser gates than {theirs.of}: {'; '.join(found)}"] if found else []
    return [
        *notes,
        *_base_notes(version.manifest, mine.settings.get("evaluate.few_shot")),
        *_policy_notes(registry, version),
        *_data_checks_left_out(registry, version),
        *_suite_notes(registry, version),
        *_earlier_reports(registry, version),
        *_answer_notes(version.manifest.evaluation),
        *_dated_later(registry, version),
        *_replayed(registry, version),
    ]


def _policy_notes(registry: Registry, version: Version) -> Iterator[str]:
    """Yield what the version's policy report asks less than the one that production went there by."""
    number = production_before(registry, version)
    if number is not None:
        before = registry.load(version.tenant, number)
        mine, theirs = kept_policy(registry, version), promoted_policy(registry, before)
        yield from policy_changes(mine, theirs, before.id)
        try:
            yield from prompt_notes(registry, mine, theirs, before.id)
        except LoraOpsError as error:  # a lost source must not hide what else was loosened
            yield f"nobody can tell which prompts of {before.id} it was not asked: {str(error).rstrip('.')}"


def _suite_notes(registry: Registry, version: Version) -> Iterator[str]:
    """Yield what the version's suite asks less than production's."""
    number = production_before(registry, version)
    if number is not None:
        before = registry.load(version.tenant, number)
        try:
            suites = kept_suite(registry, version), promoted_suite(registry, before)
        except LoraOpsError as error:  # a lost suite must not hide what else was loosened
            yield f"nobody can tell what its suite asks less than that of {before.id}: {str(error).rstrip('.')}"
            return
        yield from suite_changes(*suites, before.id)


def _earlier_reports(registry: Registry, version: Version) -> Iterator[str]:
    """Yield which regression and policy reports that did not pass a newer one took the place of."""
    history = registry.log.entries(version.tenant, version.number)
    try:
        yield from Suites.of(registry, version, history, {}).outvoted()
        yield from Policies.of(registry, version, history, {}).outvoted()
    except LoraOpsError as error:  # a lost report must not hide what else was loosened
        yield str(error).rstrip(".")


def _data_checks_left_out(registry: Registry, version: Version) -> Iterator[str]:
    """Yield which of the tenant's own checks judged the data of an earlier version, and not these as they were.

    Whoever removes suites/data/TENANT.json, or an expectation of it, leaves no check that could fail.
    """
    parent = version.manifest.parent
    before = {production_before(registry, version), parse_reference(parent)[1] if parent else None}
    for number in sorted(one for one in before if isinstance(one, int)):
        try:
            earlier = registry.load(version.tenant, number)
            registry.require_stated_manifest(earlier)
        except LoraOpsError as error:  # a damaged earlier version must not hide what else was loosened
            yield str(error).rstrip(".")
            continue
        mine, theirs = version.manifest.data.own_checks or {}, earlier.manifest.data.own_checks or {}
        gone = ", ".join(sorted(theirs.keys() - mine.keys()))
        other = ", ".join(sorted(n for n in theirs.keys() & mine.keys() if mine[n] != theirs[n]))
        suite = f"suites/data/{version.tenant}.json"
        if gone:
            yield f"its data were not judged by all checks that judged those of {earlier.id} ({suite}): {gone}"
        if other:
            yield f"its data were judged by checks that {earlier.id} has in another form ({suite}): {other}"


def _dated_later(registry: Registry, version: Version) -> Iterator[str]:
    """Yield that its data count from a later day than the same data of an earlier version: nothing else did.

    Data expire so many days after `data.published`. Whoever sets another day there lets old data serve on.
    """
    data, weights = version.manifest.data, registry.log.weights_digest(version.id)
    learned = data.splits["train"].sha256 if "train" in data.splits else ""
    begins = published(data.source, version.manifest.created_at).date().isoformat()
    earlier = []
    for one in registry.versions(version.tenant):
        if one.number >= version.number:
            continue
        registry.require_stated_manifest(one)
        theirs = one.stored["data"]
        day = theirs["source"].get("date")
        is_same = (
            theirs["source"]["sha256"] == data.source.sha256
            or theirs["splits"].get("train", {}).get("sha256") == learned
            or (weights is not None and weights == registry.log.weights_digest(one.id))
        )
        if is_same and day and day < begins:
            earlier.append((day, one.id))
    if earlier:
        day, other = min(earlier)
        yield (
            f"its data count as published on {begins}, and those of {other}, which has the same, on {day} "
            "(data.published): they expire later"
        )


def _replayed(registry: Registry, version: Version) -> Iterator[str]:
    """Yield that a report on its traffic counts replayed requests, as `rollout.accept_replay` allows."""
    for kind in TRAFFIC:
        try:
            document = last_document(registry, version, kind)
        except LoraOpsError as error:  # a lost report must not hide what else was loosened
            yield str(error).rstrip(".")
            continue
        if isinstance(document, TrafficEvidence) and document.replay_mark:
            yield f"its {kind} report is {document.replay_mark} (rollout.accept_replay)"


def _loosened(name: str, mine: Judgement, theirs: Judgement) -> Iterator[str]:
    """Yield how one gate is looser, or that one side did not record it, so that nobody can tell."""
    if name not in mine.settings and name not in theirs.settings:
        return
    if name not in mine.settings:
        if theirs.settings[name] is not None:  # nothing is looser than no limit
            yield f"{name} not recorded, not {_said(theirs.settings[name])}"
    elif name not in theirs.settings:
        if theirs is not DEFAULTS:  # a setting without a default has nothing to be compared with
            yield f"{name} {_said(mine.settings[name])}, there not recorded"
    elif _is_looser(GATES[name], mine.settings[name], theirs.settings[name]):
        yield f"{name} {_said(mine.settings[name])}, not {_said(theirs.settings[name])}"


def _base_notes(manifest: Manifest, few_shot: Any) -> Iterator[str]:
    """Yield why the base model of an evaluation could have done better."""
    evaluation, weak = manifest.evaluation, "its base model was not measured at its best"
    if few_shot == 0:
        yield f"{weak} (evaluate.few_shot: 0)"
    elif evaluation.differences and not evaluation.answered_few_shot:
        # The examples had no room in the prompt, or the evaluation was made with another setting.
        yield f"{weak} (its evaluation has no few-shot answers)"
    if manifest.data.task == "labels" and evaluation.differences and not evaluation.answered_labels:
        yield f"{weak} (no answers of it are the likeliest label)"


def _answer_notes(evaluation: EvaluationRecord) -> Iterator[str]:
    """Yield why the answers of an evaluation may not be those of the engine that serves."""
    if evaluation.answered_by is None:
        yield "its evaluation does not record who gave the answers (evaluation.answered_by)"
    elif evaluation.answered_by != "engine":
        by = evaluation.answered_by
        yield f"its evaluation's answers are those of {by}, not of the engine that serves"
    unlike = [
        f"{system} {one.equal} of {one.rows}"
        for system, one in evaluation.agreement.items()
        if one.equal < one.rows
    ]
    if unlike:
        yield f"engine and transformers did not give all sampled answers alike: {', '.join(unlike)}"


def gate_notes(registry: Registry, version: Version) -> list[str]:
    """As `loosened_gates`; of a damaged record the note says so, since a decision must not wait for it."""
    try:
        return loosened_gates(registry, version)
    except LoraOpsError as error:
        return [str(error).rstrip(".")]


def production_before(registry: Registry, version: Version) -> int | None:
    """Return the version that `version` is to follow in production, or followed there; None without one."""
    promoted = _promotion(registry, version)
    return registry.log.last_unrevoked_in_production(
        version.tenant, other_than=version.number, before=promoted.seq if promoted else None
    )


def _before(registry: Registry, version: Version) -> Judgement:
    number = production_before(registry, version)
    if number is None:
        return DEFAULTS
    before = registry.load(version.tenant, number)
    require_rows(registry, before)  # a changed manifest would hide what is looser now
    return _judgement(registry, before)


def _judgement(registry: Registry, version: Version) -> Judgement:
    """Return what let a version into production; before that, what would let it in today."""
    promoted = _promotion(registry, version)
    return Judgement(f"{version.id}, which was in production", dict(_settings(registry, version, promoted)))


def _promotion(registry: Registry, version: Version) -> AuditEntry | None:
    return promotion_in(version, registry.log.entries(version.tenant, version.number))


def _settings(registry: Registry, version: Version, promoted: AuditEntry | None) -> Iterator[tuple[str, Any]]:
    manifest = version.manifest
    evaluate, data = _section(manifest.params, "evaluate"), _section(manifest.params, "data")
    yield from ((f"evaluate.{name}", value) for name, value in evaluate.items())
    yield from ((f"data.contract.{name}", value) for name, value in _section(data, "contract").items())
    yield from ((f"package.{name}", value) for name, value in _section(manifest.params, "package").items())
    yield from ((f"data.{name}", data[name]) for name in ("bias_columns", "group") if name in data)
    yield "data.moved_groups", tuple(data.get("moved_groups") or ())
    yield "rows of the test split", manifest.evaluation.rows
    if promoted is None:
        yield "evaluate.max_gap", gap_limit(registry, version)
        yield "registry.approvals", registry.approvals
        least = registry.least.model_dump(mode="json")
    else:
        if "max_gap" in promoted.body:  # else an older release promoted it
            yield "evaluate.max_gap", promoted.body["max_gap"]
        rules = promoted.body.get("rules", {})
        least = {**BEFORE_GATES, **rules["least"]} if "least" in rules else {}
        if "approvals" in rules:
            yield "registry.approvals", rules["approvals"]
    yield from ((f"registry.evidence.{name}", value) for name, value in least.items())


def _section(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = params.get(name)
    return found if isinstance(found, Mapping) else {}


def _said(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)

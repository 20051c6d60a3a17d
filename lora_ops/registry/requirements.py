"""The stages of a version, what each step needs, and what a version still lacks for its next one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.records.evidence import (
    AnyEvidence,
    Evidence,
    EvidenceKind,
    RegressionEvidence,
    ReleaseNotesEvidence,
)
from lora_ops.records.registry import AuditEntry, State
from lora_ops.registry.answered_incidents import NAMED, review_that_names
from lora_ops.registry.approvals import PRODUCTION_RESTS_ON, SINCE_GATES, ground_now, judged, missing_approvals
from lora_ops.registry.earlier_policies import Policies
from lora_ops.registry.earlier_suites import Suites
from lora_ops.registry.inherited import twin_notes, twin_objections, twin_objections_to_return
from lora_ops.registry.loosened import production_before
from lora_ops.registry.objections import objections, review_objections
from lora_ops.registry.reports import Report, filed, gap_limit, load
from lora_ops.registry.rollbacks import against_return, fresh_incidents, no_incident
from lora_ops.registry.rollouts import not_ready
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import promoted_suite, read_source
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import CLOSED, Summary, Version

Stage = Literal["validated", "shadow", "canary", "production"]
STAGES: tuple[Stage, ...] = get_args(Stage)
LIVE: frozenset[State] = frozenset({"candidate", "validated", *STAGES})

# From, to: the evidence without which the step is refused. A version is superseded only by the promotion of
# another one, and goes back to production only from there: a rollback, which rests on its incident.
EVIDENCE: dict[tuple[State, State], frozenset[EvidenceKind]] = {
    ("candidate", "validated"): frozenset({"evaluation", "regression", "policy"}),
    ("validated", "shadow"): frozenset({"human_evaluation"}),
    ("shadow", "canary"): frozenset({"shadow"}),
    ("canary", "production"): frozenset({"canary"}),
    ("production", "superseded"): frozenset(),
    ("superseded", "production"): frozenset({"incident"}),
    ("superseded", "archived"): frozenset(),
    ("rejected", "archived"): frozenset(),
    **{(state, "rejected"): frozenset() for state in ("candidate", "validated", "shadow", "canary")},
    **{
        (state, "revoked"): frozenset()
        # What was put away for its age may turn out to be bad, and its weights must not come back then.
        for state in ("candidate", "validated", "shadow", "canary", "production", "superseded", "archived")
    },
}


def allowed(before: str, after: str) -> bool:
    """Return whether the rules have this step; a state of a newer release is judged by that release alone."""
    known = get_args(State)
    return before not in known or after not in known or (before, after) in EVIDENCE


def ways_from(state: str) -> list[State]:
    """Return the states that a version may be moved to out of `state`.

    Out of a state of a newer release only revocation leads: no release may stop that.
    """
    if state not in get_args(State):
        return ["revoked"]
    return [after for before, after in EVIDENCE if before == state and after != "superseded"]


def closed_alike(version: Version, twins: Twins) -> str | None:
    """Return why a version may not go on though it is open: a closed one has the same weights; or None."""
    twin = twins.closed_like(version.summary)
    return f"{version.id} has the weights of {twin.id}, which is '{twin.state}'" if twin else None


def about_twins(registry: Registry, version: Version, twins: Twins) -> list[str]:
    """Return what speaks against an open version because others have its weights, or that nobody can tell."""
    try:
        return [
            *_closed_note(version, twins),
            *_unknown_note(version, twins),
            *twin_notes(registry, version, twins),
        ]
    except LoraOpsError as error:
        return [str(error).rstrip(".")]


def _closed_note(version: Version, twins: Twins) -> list[str]:
    closed = None if version.state in CLOSED else closed_alike(version, twins)
    return [closed] if closed else []


def _unknown_note(version: Version, twins: Twins) -> list[str]:
    unknown = [] if version.state in CLOSED else twins.closed_unknown(version.summary)
    if not unknown:
        return []
    named = ", ".join(f"{one.id}, which is '{one.state}'" for one in unknown)
    return [
        f"nobody can tell whether {version.id} has the weights of {named}: kept weights are missing or "
        "damaged, so restore them from a backup"
    ]


def next_stage(state: State) -> Stage | None:
    """Return the stage that follows a state; None where nothing does."""
    return next((stage for stage in STAGES if (state, stage) in EVIDENCE), None)


def missing_for(
    registry: Registry, reference: str, twins: Twins | None = None
) -> tuple[Stage | None, list[str]]:
    """Return the next stage of a version, and what is still needed for it besides a reason.

    Args:
        registry: where.
        reference: which version.
        twins: what is known of all weights, for a caller that asks about many versions.

    Raises:
        LoraOpsError: unknown version, or a report that its step rests on is missing or damaged.
    """
    version = registry.get(reference)
    stage = next_stage(version.state)
    if stage is None:
        return None, []
    concerns, twins = leaves_production(registry, version, stage), twins or Twins(registry)
    needed = [] if concerns else [f"other weights ({note})" for note in _closed_note(version, twins)]
    needed += step_basis(registry, version, stage, (), concerns, twins)[1]
    if stage == "production" and concerns is None:
        needed += approvals_needed(registry, version)
    if version.number in registry.route(version.tenant).stopped:
        needed.append(f"an end of its stop (`lora-ops route resume {version.id} --reason TEXT`)")
    return stage, needed


def step_basis(
    registry: Registry, version: Version, to: State, given: Sequence[Report], concerns: int | None, twins: Twins
) -> tuple[dict[str, Evidence], list[str]]:
    """Return the evidence that a step rests on, by kind, and what it lacks besides approvals, in words.

    Raises:
        LoraOpsError: a given report is about another version, is the second one of its kind, or comes after the
            approvals that must name it.
    """
    _require_one_of_a_kind(given)
    history = registry.log.entries(version.tenant, version.number)
    if concerns:
        return _incident_of(registry, version, given, concerns, twins)
    require_about(version, given)
    late = [one.document.kind for one in given if one.document.kind in (*PRODUCTION_RESTS_ON, "incident")]
    if to == "production" and late:
        raise Refused(
            f"Approvals name the evidence that was seen, so file it before them: `lora-ops registry file "
            f"{version.id} {late[0]} FILE`."
        )
    found = filed(version, history)
    documents: dict[str, AnyEvidence] = {one.document.kind: one.document for one in given}
    required = {*(PRODUCTION_RESTS_ON if to == "production" else EVIDENCE[version.state, to])}
    required -= {kind for kind in SINCE_GATES if not getattr(registry.least, kind)}
    needed = [
        f"evidence of kind '{kind}'{_how_to_make(kind, version)}"
        for kind in sorted(required - {*found, *documents})
    ]
    if "release_notes" in required:
        needed += _other_notes(registry, version, found)
    against = _gate_objections(registry, version, history, documents, twins, asked="regression" in required)
    limit = gap_limit(registry, version)
    needed += [*against.regression, *against.policy, *against.review]
    needed += objections(registry, version, history, documents, max_gap=limit)
    needed += against.twins
    if to == "production":
        needed += not_ready(registry, version)
    basis = found | {one.document.kind: one.reference for one in given}
    return {kind: one for kind, one in basis.items() if kind in required}, needed


def _how_to_make(kind: str, version: Version) -> str:
    """Return the command that makes a kind of evidence, in brackets; empty where people bring a file."""
    ways = {
        "regression": f"lora-ops gate {version.id}",
        "policy": f"lora-ops gate {version.id}",
        "human_evaluation": f"lora-ops review start {version.id}",
        "release_notes": f"lora-ops release draft {version.id}",
    }
    return f" (`{ways[kind]}`)" if kind in ways else ""


class GateObjections(NamedTuple):
    """What a step forward lacks though each report of the version is in order.

    Attributes:
        regression: because production or the suite is another one than that of its regression report.
        policy: because its policy report is by a kinder suite than an earlier one.
        review: because of the opponent in its human evaluation, or of pairs without votes.
        twins: because of open versions with the same weights.
        closed: a closed version that has the same weights, in words; None without one.
    """

    regression: list[str]
    policy: list[str]
    review: list[str]
    twins: list[str]
    closed: str | None = None


def gate_objections(registry: Registry, version: Version, twins: Twins) -> GateObjections:
    """Return what `promote` would say of a version's next step; nothing where no step forward is left.

    Raises:
        LoraOpsError: a report is missing or was changed.
    """
    if version.state not in LIVE or version.state == "production":
        return GateObjections([], [], [], [])
    history = registry.log.entries(version.tenant, version.number)
    found = _gate_objections(registry, version, history, {}, twins, asked=registry.least.regression)
    return found._replace(closed=closed_alike(version, twins))


def _gate_objections(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry],
    given: Mapping[str, AnyEvidence],
    twins: Twins,
    *,
    asked: bool,
) -> GateObjections:
    """Return what speaks against a step; `asked` is whether it must rest on a regression report."""
    suites, limit = Suites.of(registry, version, history, given), gap_limit(registry, version)
    regression = list(suites.unanswered())
    if asked:
        regression += _other_baseline(registry, version, filed(version, history).get("regression"))
        regression += _lost_suites(registry, version, history, None if "regression" in given else suites.newest)
    policies = Policies.of(registry, version, history, given)
    of_twins = twin_objections(registry, version, history, given, twins, suites, policies, max_gap=limit)
    review = list(review_objections(registry, version, history, given))
    return GateObjections(regression, list(policies.unanswered()), review, list(of_twins))


def _other_baseline(registry: Registry, version: Version, one: Evidence | None) -> Iterator[str]:
    """Yield that a regression report compares with another version than the one in production now."""
    yield from other_baseline(registry, one, _production_now(registry, version), "is in production now")


def other_baseline(registry: Registry, one: Evidence | None, now: Summary | None, which: str) -> Iterator[str]:
    """Yield that a regression report compares with another version than `now`, which was in production.

    Args:
        registry: where.
        one: the report.
        now: the version that it must compare with; None: there was none in production.
        which: what that version is, in words.

    Raises:
        LoraOpsError: the report is missing or was changed.
    """
    document = load(registry.files, one) if one else None
    if not isinstance(document, RegressionEvidence):
        return
    then = document.production
    if (now and now.content_digest) != (then and then.digest):
        against = f"against {now.id}, which {which}" if now else "without a version in production"
        yield f"a regression report {against} (the last one is against {then.name if then else 'no version'})"


def _lost_suites(
    registry: Registry, version: Version, history: Sequence[AuditEntry], newest: RegressionEvidence | None
) -> Iterator[str]:
    """Yield that the suite of a version or of production is lost: nobody sees what it isn't asked."""
    if newest:
        try:
            read_source(registry, version.id, newest.source.sha256)
        except LoraOpsError as error:
            again = f"`lora-ops gate {version.id}` may make it again"
            yield f"what its regression report was computed from ({_said(error)}; {again})"
    now = _production_now(registry, version)
    if now is None:
        return
    try:
        promoted_suite(registry, registry.load(now.tenant, now.number))
    except LoraOpsError as error:
        if not review_that_names(registry, now.content_digest, version, history):
            name = now.content_digest[:NAMED]
            yield (
                f"the suite of {now.id}, which is in production ({_said(error)}), or a review of {version.id} "
                f"by an approver, not the author, whose reason names the content of {now.id} ({name})"
            )


def _said(error: LoraOpsError) -> str:
    return str(error).rstrip(".")


def _other_notes(registry: Registry, version: Version, found: Mapping[str, Evidence]) -> Iterator[str]:
    """Yield that release notes were written beside another production or another regression report."""
    one, report = found.get("release_notes"), found.get("regression")
    document = load(registry.files, one) if one else None
    if not isinstance(document, ReleaseNotesEvidence):
        return
    now = _production_now(registry, version)
    wrong = []
    if document.production != (now and now.content_digest):
        wrong.append(f"what changes since {now.id}" if now else "a time without a version in production")
    if document.regression != (report and report.sha256):
        wrong.append("the last regression report")
    if wrong:
        yield (
            f"release notes about {' and '.join(wrong)} (the last ones are older: `lora-ops release file "
            f"{version.id}` writes them again)"
        )


def _production_now(registry: Registry, version: Version) -> Summary | None:
    number = production_before(registry, version)
    return registry.load(version.tenant, number).summary if number else None


def concerned(registry: Registry, reference: str, to: str) -> str:
    """Return the version that a promotion's evidence must be about; of a rollback, the one that it puts out.

    Raises:
        LoraOpsError: unknown version.
    """
    version = registry.get(reference)
    number = leaves_production(registry, version, to)
    return f"{version.tenant}@{number}" if number else version.id


def leaves_production(registry: Registry, version: Version, to: str) -> int | None:
    """Return the version that a rollback puts out of production; None for any other step."""
    rollback = (version.state, to) == ("superseded", "production")
    return registry.log.last_in_production(version.tenant) if rollback else None


def approvals_needed(registry: Registry, version: Version) -> list[str]:
    """Return what the approvals of a version lack now for production, in words."""
    history = registry.log.entries(version.tenant, version.number)
    ground = ground_now(registry, version, history)
    return missing_approvals(ground, judged(ground, history))


def returning_lacks(registry: Registry, version: Version, leaves: Version, twins: Twins) -> list[str]:
    """Return why a version may not return to production in the place of `leaves`, as what it lacks.

    Raises:
        LoraOpsError: a kept file of `version` is missing or was changed.
    """
    if twins.compare(version.summary, leaves.summary) == "same":
        return [f"other weights than {leaves.id}, which leaves"]
    history = registry.log.entries(version.tenant, version.number)
    against = [*against_return(registry, version, history)]
    return against + list(twin_objections_to_return(registry, version, twins))


def return_notes(registry: Registry, version: Version, leaves: Version, twins: Twins) -> list[str]:
    """Return what is said of the weights that return in the place of `leaves`, and does not stop them."""
    notes = about_twins(registry, version, twins)
    if twins.compare(version.summary, leaves.summary) == "unknown":
        notes.insert(0, f"nobody can tell whether {version.id} has the weights of {leaves.id}, which leaves")
    return notes


def _incident_of(
    registry: Registry, version: Version, given: Sequence[Report], concerns: int, twins: Twins
) -> tuple[dict[str, Evidence], list[str]]:
    """Return the incident that a rollback rests on, and what it lacks, also of the version that returns."""
    leaves = registry.get(f"{version.tenant}@{concerns}", whole=False)
    require_about(leaves, given)
    others = [one.document.kind for one in given if one.document.kind != "incident"]
    if others:
        raise Refused(
            f"A rollback rests on its incident; file the {others[0]} report on the version that it is about: "
            f"`lora-ops registry file {leaves.id} {others[0]} FILE`."
        )
    offered = [one.reference for one in given if one.document.kind == "incident"]
    fresh = fresh_incidents(registry.log.entries(leaves.tenant, leaves.number), leaves.number, offered)
    needed = [] if fresh else [no_incident(leaves.id, told_before=bool(offered))]
    needed += returning_lacks(registry, version, leaves, twins)
    return {one.kind: one for one in fresh[-1:]}, needed


def _require_one_of_a_kind(given: Sequence[Report]) -> None:
    """Refuse two reports of one kind: only one could count, and they don't add up.

    Raises:
        Refused: there are two.
    """
    kinds = [one.document.kind for one in given]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice:
        raise Refused(
            f"Two reports of kind '{twice}' in one step: give the one that counts, or file them before."
        )


def require_about(version: Version, given: Sequence[Report]) -> None:
    """Refuse a report that is about another version.

    Raises:
        Refused: one of `given` is.
    """
    for one in given:
        if one.document.content_digest != version.summary.content_digest:
            raise Refused(f"The {one.document.kind} report is about {one.document.adapter}, not {version.id}.")

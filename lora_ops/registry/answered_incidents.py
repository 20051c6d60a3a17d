"""What an approver answered in a review: a harmless incident must not stop the same weights for ever."""

from collections.abc import Iterable, Sequence

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.authors import author_marks, is_author
from lora_ops.registry.owners_log import owners_before
from lora_ops.registry.roles import APPROVE
from lora_ops.registry.rollbacks import incidents_in
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Summary, Version

NAMED = 8  # so many digits of its digest name a report in the reason of a review


def answer_to(
    registry: Registry,
    incident: Evidence,
    version: Version,
    history: Sequence[AuditEntry],
    twin: Summary,
    of_twin: Sequence[AuditEntry],
) -> AuditEntry | None:
    """Return the review that answers an incident of a twin for `version`, or None.

    An approver, who is not the author of `version`, reviewed the version or its twin after the incident. The
    review's reason names the incident. Nothing answers an incident that a rollback rested on.

    Args:
        registry: where.
        incident: which, of the twin.
        version: whose step it would stop.
        history: the entries of `version` before that step.
        twin: the version that had the incident.
        of_twin: its entries before that step.
    """
    if is_final(incident, twin, of_twin):
        return None
    told = [entry.seq for entry in of_twin if incident.sha256 in {one.sha256 for one in entry.evidence}]
    later = [entry for entry in (*of_twin, *history) if entry.seq > told[0]]
    return review_that_names(registry, incident.sha256, version, later)


def review_that_names(
    registry: Registry, digest: str, version: Version, entries: Iterable[AuditEntry]
) -> AuditEntry | None:
    """Return the first review by an approver, not the author, whose reason names a digest; or None.

    Args:
        registry: where.
        digest: of what is answered; its first digits name it.
        version: whose author must not answer.
        entries: among which the review is.
    """
    reviews = [
        entry for entry in entries if entry.action == "reviewed" and digest[:NAMED] in entry.body["reason"]
    ]
    return next((entry for entry in reviews if _by_another_approver(registry, entry, version)), None)


def is_final(incident: Evidence, twin: Summary, of_twin: Sequence[AuditEntry]) -> bool:
    """Return whether a rollback of the twin rested on this incident, or on one with the same text."""
    rollbacks = [entry for entry in of_twin if entry.body.get("concerns") == twin.number]
    final = {one.source_sha256 or one.sha256 for one in incidents_in(rollbacks, twin.number)}
    return (incident.source_sha256 or incident.sha256) in final


def _by_another_approver(registry: Registry, entry: AuditEntry, version: Version) -> bool:
    """Return whether a review is by somebody whom owners.yaml of that day let approve, and not the author.

    The team that reviewed may know the author by fewer names than the team of `version`, so both are asked. An
    author whom neither knows may be whoever reviewed.
    """
    assert entry.tenant is not None
    try:
        owners = owners_before(registry, entry)
    except LoraOpsError:  # an older release kept no copy of it, so nobody can tell
        return False
    teams = owners.team(entry.tenant), owners.team(version.tenant)
    known = [(team.person(entry.actor), team.person(version.summary.author)) for team in teams]
    if not any(author for _, author in known):
        return False  # nobody can tell who must not answer
    # Earlier releases asked the owners.yaml of that day alone.
    rules = entry.body.get("rules", {})
    marks = author_marks(registry, version, entry.seq) if rules.get("authors") else frozenset[str]()
    by_author = any(actor and (actor == author or is_author(actor, marks)) for actor, author in known)
    return known[0][0] in teams[0].with_role(APPROVE) and not by_author

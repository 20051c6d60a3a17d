"""Approvals of production: what is signed, and which of them count."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.hashing import canonical, differing, sha256_text
from lora_ops.records.approval import Approval, ApprovalStatement
from lora_ops.records.evidence import Evidence
from lora_ops.records.record import Record
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.authors import author_marks, is_author
from lora_ops.registry.owners import APPROVERS_NEEDED, Person, Team
from lora_ops.registry.owners_log import owners_before
from lora_ops.registry.reports import filed, own_evidence
from lora_ops.registry.roles import APPROVE, unknown_author
from lora_ops.registry.rollouts import taken_back
from lora_ops.registry.ssh_signatures import NAMESPACE, fingerprint, sign, signer_of, weakness
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

APPROVAL_DAYS = 30  # what somebody agreed to last season says little of today's traffic
# An approval names the latest document of each of these, so a newer one makes it void.
PRODUCTION_RESTS_ON = (
    "evaluation", "regression", "policy", "human_evaluation", "release_notes", "shadow", "canary"
)  # fmt: skip
# Earlier releases asked for none of these; `registry.evidence` has a setting of this name for each.
SINCE_GATES = ("regression", "release_notes")


class Ground(NamedTuple):
    """What approvals are judged by, now or at the moment of a promotion.

    Attributes:
        version: which version.
        team: its owners; None where owners.yaml is missing.
        evidence: digest of the document that counts, by kind.
        at: the time (UTC, ISO 8601).
        signed: whether an unsigned approval counts.
        incidents: whether an incident that was told after an approval makes it void.
        authors: names and keys of everybody whom owners.yaml has named as the author.
        taken_back: the entry by which its rollout went back or was ended; 0 without one.
    """

    version: Version
    team: Team | None
    evidence: dict[str, str]
    at: str
    signed: bool
    incidents: bool = True
    authors: frozenset[str] = frozenset()
    taken_back: int = 0


def digests(evidence: Mapping[str, Evidence]) -> dict[str, str]:
    """Return the digest of each document that production rests on, by kind."""
    return {kind: evidence[kind].sha256 for kind in PRODUCTION_RESTS_ON if kind in evidence}


def ground_now(registry: Registry, version: Version, history: Sequence[AuditEntry]) -> Ground:
    """Return what the approvals of a version are judged by at this moment."""
    team = registry.owners.team(version.tenant) if registry.owners else None
    seen = digests(filed(version, history))
    signed, authors = registry.approvals == "signed", author_marks(registry, version)
    ended = taken_back(registry, version.id)
    return Ground(version, team, seen, utc(registry.clock()), signed, authors=authors, taken_back=ended)


def ground_at(registry: Registry, version: Version, promoted: AuditEntry) -> Ground:
    """Return what the approvals of a version were judged by when `promoted` let it into production.

    Raises:
        LoraOpsError: the log does not hold the owners.yaml of that day.
    """
    team = owners_before(registry, promoted).team(version.tenant)
    seen = digests({one.kind: one for one in promoted.evidence})
    rules = promoted.body["rules"]
    # Earlier releases promoted on approvals from before an incident, and asked today's owners.yaml alone.
    authors = author_marks(registry, version, promoted.seq) if rules.get("authors") else frozenset[str]()
    signed, incidents = rules["approvals"] == "signed", bool(rules.get("incidents"))
    ended = taken_back(registry, version.id, before=promoted.seq)
    return Ground(version, team, seen, promoted.at, signed, incidents, authors, ended)


def promotion_in(version: Version, history: Sequence[AuditEntry]) -> AuditEntry | None:
    """Return the entry that let a version into production on the strength of approvals; None without one."""
    return next(
        (
            entry
            for entry in history
            if entry.number == version.number
            and entry.action == "production"
            and entry.body.get("before") == "canary"
        ),
        None,
    )


def approvals_of(registry: Registry, version: Version, history: Sequence[AuditEntry]) -> list[Approval]:
    """Return who agreed that a version may go to production, oldest first, and whether it counts.

    Once the version is in production the approvals are judged by what held at that moment.
    """
    promoted = promotion_in(version, history)
    if promoted is None or "rules" not in promoted.body:  # not yet, or by the rules of an older release
        return judged(ground_now(registry, version, history), history)
    try:
        ground = ground_at(registry, version, promoted)
    except LoraOpsError:
        ground = ground_now(registry, version, history)._replace(team=None)
    return judged(ground, [entry for entry in history if entry.seq < promoted.seq])


def judged(ground: Ground, history: Sequence[AuditEntry]) -> list[Approval]:
    """Return every approval in a version's history; `void` says why one doesn't count.

    An approval is that of the person whom owners.yaml gives its name to. So nobody agrees twice, or keeps an
    approval that they withdrew, by a new id. A signed statement counts once: whoever has the registry's key
    could enter it again after it was withdrawn.
    """
    withdrawn = {
        _known_as(ground, entry.body["person"]): entry.seq for entry in history if entry.action == "withdrawn"
    }
    last_incident = _last_incident(ground.version, history)
    found, stated = [], set[str]()
    for entry in history:
        if entry.action != "approved" or entry.number != ground.version.number:
            continue
        person = _known_as(ground, entry.body["person"])
        key, void = _judge(ground, entry)
        if entry.seq < last_incident and ground.incidents:
            void = "an incident was told after it"
        if entry.seq < ground.taken_back:
            void = "the rollout ended after it"
        if withdrawn.get(person, 0) > entry.seq:
            void = "it was withdrawn"
        text = canonical(entry.body.get("approval"))  # it has the time, to the second
        if void is None and text in stated:
            void = "it repeats an earlier one"
        stated.add(text)
        found.append(
            Approval(
                person=person,
                roles=entry.body["roles"],
                reason=entry.body["reason"],
                at=entry.at,
                key=key,
                void=void,
            )
        )
    return found


def _last_incident(version: Version, history: Sequence[AuditEntry]) -> int:
    """Return the last entry that tells of an incident of a version; 0 without one."""
    told = [
        entry.seq
        for entry in history
        for one in own_evidence([entry], version.number)
        if one.kind == "incident"
    ]
    return max(told, default=0)


def _known_as(ground: Ground, name: str) -> str:
    """Return the id of the person whom a name means; a name that owners.yaml lacks stays as it is."""
    person = ground.team.person(name) if ground.team else None
    return person.id if person else name


def _judge(ground: Ground, entry: AuditEntry) -> tuple[str | None, str | None]:
    """Return the key that signed an approval, and why the approval doesn't count."""
    try:
        said = ApprovalStatement.model_validate(entry.body["approval"])
    except (KeyError, ValidationError):
        return None, "it names nothing that was seen (given under an older release)"
    version, team = ground.version, ground.team
    if (said.adapter, said.content_digest) != (version.id, version.summary.content_digest):
        return None, f"it is about {said.adapter}"
    if team is None:
        return None, "owners.yaml is missing"
    if said.person != entry.body["person"]:
        return None, f"it was signed for {said.person}"
    person, author = team.person(said.person), team.person(version.summary.author)
    if person is None or person not in team.with_role(APPROVE):
        return None, f"{said.person} is no approver any more"
    if author is None or author == person:
        return None, f"{said.person} is the author" if author else unknown_author(version)
    if is_author(person, ground.authors):
        return None, f"{said.person} is the author by an earlier owners.yaml or a commit"
    key, void = None, None
    if entry.body.get("signature"):
        key = signer_of(canonical(entry.body["approval"]), entry.body["signature"], person.id, person.keys)
        void = None if key else f"its signature fits no key of {person.id} in owners.yaml"
    elif ground.signed:
        void = "it is not signed"
    changed = differing(said.evidence, ground.evidence)
    if changed:
        void = f"newer evidence was filed ({', '.join(changed)})"
    lapses = _lapses(said, entry)
    if ground.at >= lapses:
        void = f"it lapsed on {lapses[:10]}"
    return key, void


def _lapses(said: ApprovalStatement, entry: AuditEntry) -> str:
    """Return when an approval lapses, by its signer's clock or the log's, whichever is earlier."""
    given = min(datetime.fromisoformat(said.at), datetime.fromisoformat(entry.at))
    return min(said.expires_at, utc(given + timedelta(days=APPROVAL_DAYS)))


def missing_approvals(ground: Ground, given: Sequence[Approval]) -> list[str]:
    """Return what approvals still lack for production, in words."""
    if ground.team is None:
        return ["owners.yaml"]
    author = ground.team.person(ground.version.summary.author)
    if author is None:
        return [unknown_author(ground.version)]
    counting = {approval.person for approval in given if approval.void is None}
    others = [one for one in ground.team.with_role(APPROVE) if one != author]
    open_ = [one.id for one in others if one.id not in counting and not is_author(one, ground.authors)]
    lacking = APPROVERS_NEEDED - len(counting)
    if lacking <= 0:
        return []
    people = "1 more approval" if lacking == 1 else f"{lacking} approvals"
    void = [f"that of {one.person} is void: {one.void}" for one in given if one.void and one.person in open_]
    because = f"; {'; '.join(dict.fromkeys(void))}" if void else ""
    return [f"{people} (by {', '.join(open_) or 'nobody in owners.yaml who is not the author'}{because})"]


def statement(
    registry: Registry, version: Version, evidence: Mapping[str, Evidence], person: Person, reason: str
) -> ApprovalStatement:
    """Return what `person` signs to let a version into production."""
    assert registry.owners is not None
    now: datetime = registry.clock()
    return ApprovalStatement(
        adapter=version.id,
        content_digest=version.summary.content_digest,
        evidence=digests(evidence),
        owners_sha256=sha256_text(registry.owners.text),
        person=person.id,
        reason=reason.strip(),
        at=utc(now),
        expires_at=utc(now + timedelta(days=APPROVAL_DAYS)),
    )


def signature_of(
    registry: Registry,
    said: Record,
    person: Person,
    key: Path | None,
    *,
    what: str = "Approvals",
    namespace: str = NAMESPACE,
) -> str | None:
    """Return the signature of a statement; None where unsigned approvals count and no key is given.

    Args:
        registry: whose settings say whether statements must be signed.
        said: what is signed.
        person: who signs.
        key: their SSH key.
        what: what is signed, for the sentence that asks for a key.
        namespace: the purpose of the signature; it counts for no other one.

    Raises:
        LoraOpsError: no key, a key that can't sign or is weak, or one that owners.yaml gives to somebody else.
    """
    if key is None:
        if registry.approvals == "unsigned":
            return None
        raise Refused(
            f"{what} are signed: name your SSH key (--key ~/.ssh/id_ed25519). On a laptop of your own "
            "`registry.approvals: unsigned` in params.yaml turns that off, and `show` says so."
        )
    text = canonical(said.model_dump(mode="json"))
    signature = sign(text, key, namespace)
    signer = signer_of(text, signature, person.id, person.keys, namespace)
    weak = next((weakness(one) for one in person.keys if fingerprint(one) == signer), None)
    if weak:
        raise Refused(f"{key} is {weak}: give {person.id} another one in owners.yaml.")
    if signer is None:
        raise Refused(
            f"{key} is none of {person.id}'s keys in owners.yaml: `lora-ops owners add-key {person.id} "
            f"{str(key).removesuffix('.pub')}.pub` adds it."
        )
    return signature

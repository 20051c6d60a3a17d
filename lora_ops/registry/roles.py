"""Who of a tenant's team may do what; without an owners.yaml nobody may."""

from typing import get_args

from lora_ops.errors import Refused
from lora_ops.records.registry import State
from lora_ops.registry.authors import author_marks, is_author
from lora_ops.registry.owners import Person, Role, Team
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

# Taking a version out of service, filing evidence and telling of an incident is for everybody who is named: to
# wait for a role would be worse.
APPROVE: frozenset[Role] = frozenset({"approver"})
MOVE: frozenset[Role] = frozenset({"approver", "operator"})
JUDGE: frozenset[Role] = frozenset({"reviewer", "approver"})
ANYBODY: frozenset[Role] = frozenset(get_args(Role))
MAY: dict[State, frozenset[Role]] = {
    "validated": JUDGE | MOVE,
    "shadow": MOVE,
    "canary": MOVE,
    "production": MOVE,
    "rejected": JUDGE | MOVE,
    "archived": MOVE,
    "revoked": ANYBODY,
}


def owners_of(registry: Registry, tenant: str) -> Team:
    """Return who answers for a tenant, and whom to tell.

    Raises:
        LoraOpsError: there is no owners.yaml.
    """
    if registry.owners is None:
        raise Refused(
            "There is no owners.yaml beside params.yaml: it says who may do what, and whom to tell. Without it "
            "versions are registered and nothing else; restore it (git checkout owners.yaml)."
        )
    return registry.owners.team(tenant)


def require_role(registry: Registry, version: Version, actor: str, roles: frozenset[Role], what: str) -> Person:
    """Return who acts, and refuse somebody who has none of the roles.

    Raises:
        LoraOpsError: owners.yaml is missing or gives the actor none of the roles; the text names who has one.
    """
    return require_role_in(owners_of(registry, version.tenant), actor, roles, what)


def require_role_in(team: Team, actor: str, roles: frozenset[Role], what: str) -> Person:
    """Return who acts for a team, where no registry can be asked.

    Raises:
        LoraOpsError: the team gives the actor none of the roles; the text names who has one.
    """
    people, person = team.with_role(roles), team.person(actor)
    if person is None or person not in people:
        raise Refused(
            f"{actor} may not {what}: owners.yaml gives that to "
            f"{', '.join(one.id for one in people)}; act under your name there (--actor, $LORA_OPS_ACTOR), or "
            "add your login to your entry."
        )
    return person


def require_approver(registry: Registry, version: Version, actor: str) -> Person:
    """Return who approves, and refuse the author, anybody without the role, and a version of an unknown author.

    Raises:
        LoraOpsError: owners.yaml is missing, or it lets nobody or somebody else approve.
    """
    team = owners_of(registry, version.tenant)
    approvers, person = team.with_role(APPROVE), team.person(actor)
    if person is None or person not in approvers:
        listed = ", ".join(one.id for one in approvers)
        raise Refused(f"{actor} is no approver of '{version.tenant}' in owners.yaml (they are: {listed}).")
    author = team.person(version.summary.author)
    if author is None:
        raise Refused(f"{version.id} can't be approved yet; missing: {unknown_author(version)}.")
    if author == person:
        raise Refused(f"{person.name} is the author of {version.id}: somebody else must approve it.")
    if is_author(person, author_marks(registry, version)):
        raise Refused(
            f"{person.name} is the author of {version.id} by an earlier owners.yaml, which gave them the name "
            f"'{version.summary.author}', or by a commit: somebody else must approve it."
        )
    return person


def unknown_author(version: Version) -> str:
    """Say what to do where owners.yaml doesn't name a version's author."""
    name = version.summary.author
    return (
        f"its author '{name}' in owners.yaml, without whom nobody can tell who must not approve (add `logins: "
        f"[{name}]` to the person of '{version.tenant}' whom it belongs to, or a person of that id)"
    )

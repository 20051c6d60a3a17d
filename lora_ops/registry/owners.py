"""owners.yaml, typed: which team answers for a tenant, and who in it may agree to production."""

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lora_ops.errors import LoraOpsError
from lora_ops.settings.files import first_problem, read_yaml
from lora_ops.settings.section import StoredTenantName

Role = Literal["author", "reviewer", "approver", "operator"]
Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
APPROVERS_NEEDED = 2


class Entry(BaseModel):
    """A part of owners.yaml; an unknown key is an error, so a typing slip cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Person(Entry):
    """Somebody who acts on the registry, under one id; `logins` are the other names that they act under."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    name: str
    email: Email
    logins: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = ()
    roles: tuple[Role, ...] = Field(min_length=1)

    @property
    def names(self) -> set[str]:
        """Every name that means this person, in small letters."""
        return {name.casefold() for name in (self.id, self.email, *self.logins)}


class Team(Entry):
    """The owners of one tenant's adapters."""

    team: str = Field(min_length=1)
    contacts: tuple[Email, ...] = Field(min_length=1)
    escalation: tuple[Email, ...] = Field(min_length=1)
    review_cadence_days: int = Field(ge=1, le=3660)
    people: tuple[Person, ...]

    @model_validator(mode="after")
    def _can_approve(self) -> "Team":
        names = Counter(name for person in self.people for name in person.names)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"'{twice[0]}' stands for two people")
        approvers = sum("approver" in person.roles for person in self.people)
        if approvers < APPROVERS_NEEDED:
            raise ValueError(
                f"production needs {APPROVERS_NEEDED} approvers, and team '{self.team}' has {approvers}"
            )
        return self

    def person(self, actor: str) -> Person | None:
        """The person with this id, e-mail address or login, in any letter case."""
        wanted = actor.strip().casefold()
        return next((person for person in self.people if wanted in person.names), None)

    def with_role(self, roles: frozenset[Role]) -> list[Person]:
        """Everybody who has at least one of these roles."""
        return [person for person in self.people if roles.intersection(person.roles)]

    def next_review(self, last: datetime) -> datetime:
        """When the review after one at `last` is due."""
        return last + timedelta(days=self.review_cadence_days)


class Owners(Entry):
    """The whole of owners.yaml."""

    default: Team
    tenants: dict[StoredTenantName, Team] = Field(default_factory=dict)

    def team(self, tenant: str) -> Team:
        """The tenant's own team, else the default one, so that a new tenant needs params.yaml alone."""
        return self.tenants.get(tenant, self.default)


def load_owners(path: Path) -> Owners:
    """owners.yaml at `path`.

    Raises:
        LoraOpsError: the file is missing, is not YAML, or an entry is wrong; the text names the entry.
    """
    try:
        return Owners.model_validate(read_yaml(path))
    except ValidationError as error:
        raise LoraOpsError(f"{path.name}: {first_problem(error)}.") from error

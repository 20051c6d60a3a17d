"""owners.yaml, typed: which team answers for a tenant, and who in it may agree to production."""

import logging
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML

from lora_ops.editing import edited
from lora_ops.errors import LoraOpsError
from lora_ops.registry.ssh_signatures import checked_public_key, fingerprint, weakness
from lora_ops.settings.files import first_problem, parse_yaml
from lora_ops.settings.section import StoredTenantName
from lora_ops.small_files import read_text

Role = Literal["author", "reviewer", "approver", "operator"]
Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
APPROVERS_NEEDED = 2

logger = logging.getLogger(__name__)


class Entry(BaseModel):
    """A part of owners.yaml; an unknown key is an error, so a typing slip cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Person(Entry):
    """Somebody who acts on the registry, under one id; `logins` are the other names that they act under."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    name: str
    email: Email
    logins: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = ()
    keys: tuple[Annotated[str, AfterValidator(checked_public_key)], ...] = Field(
        (), description="SSH public keys that sign this person's approvals, as in a .pub file"
    )
    roles: tuple[Role, ...] = Field(min_length=1)

    @property
    def names(self) -> set[str]:
        """Every name that means this person, in small letters."""
        return {name.casefold() for name in (self.id, self.email, *self.logins)}

    @property
    def marks(self) -> set[str]:
        """Return every name and every key, by one of which a person is known again."""
        return self.names | {key.split(" ")[1] for key in self.keys}


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
        keys = Counter(key for person in self.people for key in {one.split(" ")[1] for one in person.keys})
        if any(count > 1 for count in keys.values()):
            raise ValueError("one SSH key stands for two people")
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
    _text: str | None = PrivateAttr(None)
    _unreadable: tuple[str, ...] = PrivateAttr(())

    @property
    def unreadable_keys(self) -> tuple[str, ...]:
        """Return whose keys a kept file has that can't be read, such as a line that was cut off."""
        return self._unreadable

    @property
    def text(self) -> str:
        """The file as it was read, which the registry keeps by its digest; else the same as JSON."""
        return self._text if self._text is not None else self.model_dump_json(indent=2) + "\n"

    @property
    def teams(self) -> list[Team]:
        """Every team, the default one first."""
        return [self.default, *self.tenants.values()]

    def team(self, tenant: str) -> Team:
        """The tenant's own team, else the default one, so that a new tenant needs params.yaml alone."""
        return self.tenants.get(tenant, self.default)


def load_owners(path: Path) -> Owners:
    """Read today's owners.yaml.

    Raises:
        LoraOpsError: the file is missing, is not YAML, or an entry is wrong; the text names the entry.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise LoraOpsError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LoraOpsError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    owners = parse_owners(text, path.name)
    for person in {one.id: one for team in owners.teams for one in team.people}.values():
        for key in person.keys:
            weak = weakness(key)
            if weak:  # it signs nothing more; whoever must stop a version needs the rest of the file
                logger.warning("%s: %s has %s: take it out.", path.name, person.id, weak)
    return owners


def parse_owners(text: str, name: str, *, kept: bool = False) -> Owners:
    """Return owners.yaml from its text.

    Args:
        text: the file.
        name: for the reader of an error.
        kept: the log holds it, so nobody can mend it. A key that can't be read signs nothing; the rest counts.

    Raises:
        LoraOpsError: it is not YAML, or an entry is wrong; the text names the entry.
    """
    content = parse_yaml(text, name)
    unreadable = list(_without_unreadable_keys(content)) if kept else []
    try:
        owners = Owners.model_validate(content)
    except ValidationError as error:
        raise LoraOpsError(f"{name}: {first_problem(error)}.") from error
    owners._text, owners._unreadable = text, tuple(dict.fromkeys(unreadable))
    return owners


def _without_unreadable_keys(content: Any) -> Iterator[str]:
    """Take the keys that can't be read out of an owners.yaml, and yield whose they were."""
    default, tenants = (content.get(name) for name in ("default", "tenants"))
    for team in [default, *(tenants.values() if isinstance(tenants, dict) else ())]:
        for person in (team.get("people") or ()) if isinstance(team, dict) else ():
            keys = person.get("keys") if isinstance(person, dict) else None
            if not isinstance(keys, list):
                continue
            readable = [key for key in keys if not isinstance(key, str) or _is_readable(key)]
            if len(readable) < len(keys):
                yield str(person.get("id"))
            person["keys"] = readable


def _is_readable(key: str) -> bool:
    try:
        checked_public_key(key)
    except ValueError:
        return False
    return True


def add_key(path: Path, person: str, public_key: Path) -> str:
    """Give a person of owners.yaml one more SSH key, in each team that names them; comments are kept.

    Args:
        path: owners.yaml.
        person: id, e-mail address or login.
        public_key: a `.pub` file.

    Returns:
        The key's fingerprint.

    Raises:
        LoraOpsError: owners.yaml names no such person, the file holds no public key, or the key is weak or
            somebody else's; owners.yaml is as it was then.
    """
    owners = load_owners(path)
    try:
        key = checked_public_key(read_text(public_key.expanduser()))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise LoraOpsError(f"{public_key}: {reason}.") from error
    weak = weakness(key)
    if weak:
        raise LoraOpsError(f"owners.yaml is unchanged: {public_key} is {weak}.")
    ids = {found.id for team in owners.teams if (found := team.person(person))}
    if len(ids) != 1:
        known = sorted({one.id for team in owners.teams for one in team.people})
        who = f"several people '{person}'" if ids else f"nobody '{person}'"
        raise LoraOpsError(f"owners.yaml names {who} (people: {', '.join(known)}).")
    yaml = YAML()
    yaml.preserve_quotes = True  # type: ignore[assignment]
    yaml.width = 4096  # a person stays on one line
    yaml.indent(mapping=2, sequence=4, offset=2)
    with edited(path) as (old, new):
        content = yaml.load(old.read_text(encoding="utf-8"))
        for team in [content["default"], *(content.get("tenants") or {}).values()]:
            for one in team["people"]:
                if one["id"] in ids:
                    one["keys"] = list(dict.fromkeys([*one.get("keys", ()), key]))
        with new.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        try:
            load_owners(new)
        except LoraOpsError as error:
            raise LoraOpsError(
                f"owners.yaml is unchanged: {str(error).removeprefix(f'{new.name}: ')}"
            ) from error
    return fingerprint(key)

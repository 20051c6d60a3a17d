"""A tenant's route: which versions share its requests beside the one in production, and in which parts."""

import hashlib
import hmac
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from lora_ops.records.record import Record, Sha256

Percent = Annotated[float, Field(gt=0, le=100)]
Number = Annotated[int, Field(ge=1)]
SEGMENT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
Segment = Annotated[str, StringConstraints(pattern=SEGMENT_PATTERN)]


class CanaryRoute(Record):
    """The version that answers a part of the users.

    Users are assigned by a hash with the salt, so that raising the percentage keeps those that have it already.
    """

    number: Number
    percent: Percent
    salt: Annotated[str, Field(min_length=8, max_length=64)] = Field(
        description="of this rollout; kept while its percentage changes"
    )


class ShadowRoute(Record):
    """The version that is asked again, and whose answers no client gets."""

    number: Number
    percent: Percent = Field(description="of the requests")


class RouteRecord(Record):
    """How the requests of one tenant are shared; who is in production is said by the alias alone.

    A part counts only while its version is in the state that it names, may serve and is not stopped: whatever
    else happens to a version, its requests go back to production.
    """

    canary: CanaryRoute | None = None
    shadow: ShadowRoute | None = None
    users: dict[Sha256, Number] = Field(
        default_factory=dict, description="hash of a user with `user_salt` -> the version that answers them"
    )
    user_salt: str = Field("", description="random; written with the first pinned user")
    segments: dict[Segment, Number] = Field(
        default_factory=dict, description="segment that a request names -> the version that answers it"
    )
    stopped: tuple[Number, ...] = Field((), description="versions that answer nobody until they are resumed")

    @model_validator(mode="after")
    def _in_order(self) -> "RouteRecord":
        if list(self.stopped) != sorted(set(self.stopped)):
            raise ValueError("stopped versions are named once each, in order")
        return self

    def user_hash(self, user: str) -> str:
        """Return the key of a user in `users`: HMAC-SHA256 with `user_salt`, so that the log names nobody."""
        text = user.encode("utf-8", "surrogatepass")
        return hmac.new(self.user_salt.encode(), text, hashlib.sha256).hexdigest()

    def about(self, number: int) -> list[str]:
        """Return what the route says of one version, in words; nothing where it does not name it."""
        said = ["is stopped"] if number in self.stopped else []
        if self.canary and self.canary.number == number:
            said.append(f"answers {self.canary.percent:g} % of the users")
        if self.shadow and self.shadow.number == number:
            said.append(f"is asked in shadow for {self.shadow.percent:g} % of the requests")
        for name, pins in (("user", self.users), ("segment", self.segments)):
            many = sum(one == number for one in pins.values())
            if many:
                said.append(f"answers {many:,} pinned {name}{'s' if many > 1 else ''}")
        return said

    @property
    def assigned_numbers(self) -> frozenset[int]:
        """The versions that answer somebody in place of production."""
        canary = {self.canary.number} if self.canary else set()
        return frozenset({*canary, *self.users.values(), *self.segments.values()})

    @property
    def assigns(self) -> bool:
        """Whether anybody may get another version than production."""
        return bool(self.canary or self.users or self.segments)

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing: production answers everybody."""
        return self == RouteRecord()

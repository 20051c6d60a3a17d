"""A registered version, what a list says of it, and the references that name versions."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.records.manifest import Manifest
from lora_ops.records.registry import State
from lora_ops.settings.files import first_problem
from lora_ops.small_files import parse_json

CLOSED: frozenset[State] = frozenset({"rejected", "revoked", "archived"})
SECTIONS = ("files", "params", "data", "base_model", "evaluation")
"""What a manifest of every release has, of those that are read without its schema."""


class Summary(NamedTuple):
    """One version in a list; times are UTC in ISO 8601, `fresh_until` and `next_review_due` are due times."""

    tenant: str
    number: int
    state: State
    author: str
    registered_at: str
    fresh_until: str
    next_review_due: str | None
    primary_metric: str
    primary_value: float
    size_bytes: int
    content_digest: str
    signature: str | None
    aliases: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`tenant@number`."""
        return f"{self.tenant}@{self.number}"


@dataclass(frozen=True)
class Version:
    """One registered version; its manifest is parsed when it is first asked for."""

    summary: Summary
    manifest_text: str

    @cached_property
    def manifest(self) -> Manifest:
        """Everything that was known of it when it was packaged.

        Raises:
            LoraOpsError: the stored manifest was lost, or does not fit its schema.
        """
        self._require_manifest()
        try:
            return Manifest.model_validate_json(self.manifest_text)
        except ValidationError as error:
            raise LoraOpsError(
                f"The manifest of {self.id} does not fit its schema: {first_problem(error)}; "
                "run `lora-ops registry verify`."
            ) from error

    @cached_property
    def stored(self) -> dict[str, Any]:
        """The manifest as it is stored, of whatever release; quicker than `manifest` where many are read.

        Raises:
            LoraOpsError: the stored manifest was lost, or is none.
        """
        self._require_manifest()
        try:
            found = parse_json(self.manifest_text)
        except ValueError as error:
            raise LoraOpsError(
                f"The manifest of {self.id} is not JSON: run `lora-ops registry verify`."
            ) from error
        if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in SECTIONS):
            raise LoraOpsError(f"The manifest of {self.id} is none: run `lora-ops registry verify`.")
        return found

    def _require_manifest(self) -> None:
        if not self.manifest_text:
            raise lost("manifest", self.id)

    @property
    def id(self) -> str:
        """`tenant@number`."""
        return self.summary.id

    @property
    def tenant(self) -> str:
        """Whose adapter it is."""
        return self.summary.tenant

    @property
    def number(self) -> int:
        """The version number, from 1."""
        return self.summary.number

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self.summary.state

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that mean this version now, sorted."""
        return self.summary.aliases

    @property
    def registered_at(self) -> str:
        """When it was registered (UTC, ISO 8601)."""
        return self.summary.registered_at


def lost(what: str, version: str) -> Damaged:
    """Return the error that says what of a version is gone from the database, and what to do."""
    return Damaged(
        f"The registry has lost the {what} of {version}: run `lora-ops registry verify`, and restore the "
        "registry from a backup."
    )


def parse_reference(reference: str) -> tuple[str, int | str | None]:
    """Read a reference: `finance@3` as ("finance", 3), `finance@candidate` as ("finance", "candidate").

    A bare tenant names no version by itself: ("finance", None), see `Registry.current`.

    Raises:
        LoraOpsError: the text is none of these.
    """
    match = re.fullmatch(r"([a-z][a-z0-9_-]{0,39})(?:@([1-9][0-9]{0,17}|[a-z]+))?", reference)
    if match is None:
        raise LoraOpsError(
            f"'{reference}' names no version: write tenant@number (finance@3) or tenant@alias "
            "(finance@candidate)."
        )
    which = match[2]
    return match[1], int(which) if which and which.isdigit() else which

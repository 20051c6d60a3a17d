"""The base of every record: a typed, frozen JSON document."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A typed, frozen JSON document."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> str:
        """Indented JSON with a final newline; the same record always gives the same text."""
        return self.model_dump_json(indent=2) + "\n"

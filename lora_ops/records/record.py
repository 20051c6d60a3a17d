"""The base of every record: a typed, frozen JSON document."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Older records lack it. Left out where it says nothing, so that those keep their bytes and their digests.
BaseFilesSha256 = Annotated[
    Sha256 | None,
    Field(
        description="of the base model's files besides its weights (`BaseModelRecord.files_sha256`)",
        exclude_if=lambda digest: digest is None,
    ),
]


class Record(BaseModel):
    """A typed, frozen JSON document.

    Reading is lenient: a field that a newer release wrote is ignored, because an older machine of the same team
    must still read the log and serve. What decides on identity reads the stored bytes, never these classes.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    def to_json(self) -> str:
        """Indented JSON with a final newline; the same record always gives the same text."""
        return self.model_dump_json(indent=2) + "\n"

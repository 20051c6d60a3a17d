"""The base of every section of params.yaml, and what several sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of params.yaml; a key that it does not know is an error, so a typing slip cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

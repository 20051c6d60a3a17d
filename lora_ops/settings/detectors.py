"""`detectors` of params.yaml."""

import re
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from lora_ops.settings.section import Section

Label = Annotated[str, StringConstraints(min_length=1)]


class ClassifierSettings(Section):
    """A sequence classifier of transformers, from the hub or a folder."""

    id: str | None = Field(None, description="at the hub, such as org/name")
    revision: str | None = Field(None, description="its commit at the hub, 40 hex digits")
    path: str | None = Field(None, description="a local folder instead; relative to the repository")
    labels: tuple[Label, ...] = Field(min_length=1, description="of its config, those that count as found")
    threshold: float = Field(0.5, gt=0, lt=1)
    max_tokens: int = Field(512, ge=8, description="of a window; a longer text is scored window by window")
    batch_size: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _one_place(self) -> "ClassifierSettings":
        if (self.id is None) == (self.path is None):
            raise ValueError("a classifier needs either id and revision, or path: give one of them")
        if self.id is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"revision '{self.revision}' can come to name other files: "
                "give the commit of the hub (40 hex digits)"
            )
        return self


class DetectorSettings(Section):
    """What judges answers; see `lora_ops.detectors`.

    The gateway scores with the packaged weights whatever is set here: a classifier would not keep up with it.
    """

    insult_threshold: float = Field(0.5, gt=0, lt=1, description="of the packaged weights")
    classifier: ClassifierSettings | None = Field(
        None, description="finds insults instead of the packaged weights"
    )

"""`base_model` of params.yaml."""

import re
from typing import Literal

from pydantic import ByteSize, Field, model_validator

from lora_ops.settings.section import Section, Sha256


class BaseModelSettings(Section):
    """Which base model, from where, at which revision."""

    id: str
    source: Literal["package", "hub", "folder"]
    revision: str
    origin: str | None = Field(
        None, description="the model that these weights were made from, where it is another"
    )
    quantization: str | None = Field(None, description="what its weights went through, such as GGUF Q4_1")
    dtype: Literal["float32", "bfloat16", "source"] = Field(
        "float32",
        description="that the weights are kept in, for training, evaluation and serving; source: the type that "
        "they come in",
    )
    max_shard_size: ByteSize = Field(
        ByteSize(50 * 10**9), ge=1024, description="weights that are larger are kept in several files"
    )
    requirement: str | None = None
    archive_sha256: Sha256 | None = None
    file: str | None = None
    path: str | None = Field(
        None, description="a folder; DVC doesn't watch it, so set another revision when its files change"
    )

    @property
    def where(self) -> str:
        """Where the weights come from, as the record names it; settings of other sources do not count."""
        places = {"package": self.requirement, "folder": self.path, "hub": f"hub:{self.id}"}
        return places[self.source] or self.id

    @model_validator(mode="after")
    def _complete(self) -> "BaseModelSettings":
        needed = {"package": ("requirement", "archive_sha256", "file"), "folder": ("path",), "hub": ()}
        missing = [name for name in needed[self.source] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"source '{self.source}' also needs {', '.join(missing)}")
        if self.source == "package" and self.dtype == "source":
            raise ValueError("dtype 'source': the weights of a GGUF file are widened, set float32 or bfloat16")
        if self.origin == self.id:
            raise ValueError(
                f"origin is another model than id, and both are '{self.id}': remove origin or rename id"
            )
        if self.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision '{self.revision}' can come to name other files: "
                "give the commit of the hub (40 hex digits)"
            )
        return self

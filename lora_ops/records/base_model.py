"""The record of the base model."""

from pathlib import Path

from pydantic import Field

from lora_ops.hashing import canonical, differing, sha256_text
from lora_ops.paths import BASE_MODEL, read_record
from lora_ops.records.record import Record, Sha256


class BaseModelRecord(Record):
    """The base model that everything else was made from."""

    id: str
    revision: str
    sha256: Sha256 = Field(description="of the weights, by lora_ops.weights_digest.weights_sha256")
    parameters: int
    source: str
    origin: str | None = Field(None, description="the model that these weights were made from")
    quantization: str | None = Field(None, description="what the weights of `origin` went through")
    # Left out where it says nothing, so that a float32 model's record has the bytes that it always had.
    dtype: str | None = Field(
        None, description="of the weights; None: float32", exclude_if=lambda dtype: dtype is None
    )
    files: dict[str, Sha256] | None = Field(
        None,
        description="file that answers depend on besides the weights -> its digest, by "
        "lora_ops.weights_digest.file_digests; older records lack it",
        exclude_if=lambda files: files is None,
    )

    @property
    def made_from(self) -> str | None:
        """What the weights were made from, in words; None where they are those that `id` names."""
        if self.origin is None:
            return None
        return f"{self.origin} ({self.quantization})" if self.quantization else self.origin

    @property
    def files_sha256(self) -> str | None:
        """One digest over the files besides the weights; None where an older release made the record."""
        return None if self.files is None else sha256_text(canonical(self.files))

    @property
    def digest(self) -> str:
        """What answers depend on, weights and other files; of an older record that of the weights."""
        files = self.files_sha256
        return self.sha256 if files is None else sha256_text(canonical([self.sha256, files]))

    def matches(self, weights_sha256: str, files_sha256: str | None) -> bool:
        """Return whether another record that states these two digests is about this base model.

        Args:
            weights_sha256: what it says of the weights.
            files_sha256: what it says of the other files; None: it is older and says nothing.
        """
        return weights_sha256 == self.sha256 and files_sha256 in (None, self.files_sha256)

    def other_files(self, theirs: "BaseModelRecord") -> list[str]:
        """Return the files of `theirs` that this base model lacks or has otherwise, and those only this has.

        Nothing where `theirs` is older and names no files.
        """
        return [] if theirs.files is None else differing(theirs.files, self.files or {})


def read_base_model(folder: Path) -> BaseModelRecord:
    """Read the record of the base model in `folder`.

    Raises:
        LoraOpsError: there is none yet.
    """
    return read_record(folder / BASE_MODEL, BaseModelRecord, "base_model")

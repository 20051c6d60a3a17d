"""Records of a regression suite: its cases as they are asked, and the answers of one system."""

from pathlib import Path

from pydantic import Field

from lora_ops.hashing import canonical, sha256_text
from lora_ops.paths import CASE_ANSWERS, CASES, read_record
from lora_ops.records.record import BaseFilesSha256, Record, Sha256
from lora_ops.settings.suite import Case, Slice


class AskedCase(Record):
    """A case and the whole prompt that asks it."""

    case: Case
    prompt: str = Field(description="as the base model's chat template writes it")
    max_tokens: int
    seed: int = Field(description="of the first of its sampled answers; the next ones follow")

    @property
    def key(self) -> str:
        """What decides on an answer besides the model, as a digest: answers with one key can be compared."""
        asked = self.model_dump(mode="json", include={"prompt", "max_tokens", "seed"})
        return sha256_text(canonical({**asked, "temperature": self.case.temperature, "n": self.case.repeats}))

    @property
    def question(self) -> str:
        """What is asked in whatever chat template, as a digest: it finds the answers of another base model."""
        asked = {"text", "prompt", "turns", "repeats", "temperature"}
        return sha256_text(canonical(self.case.model_dump(mode="json", include=asked)))


class CasesRecord(Record):
    """A tenant's suite as it is asked: the tenant's own cases and the general ones."""

    schema_version: int = 1
    tenant: str
    owner: str
    suites: dict[str, Sha256] = Field(description="file of suites/ -> SHA-256 of its bytes")
    base_model_sha256: Sha256
    base_files_sha256: BaseFilesSha256 = None
    labels: tuple[str, ...] = ()
    held_out: dict[str, float] = Field(default_factory=dict)
    slices: dict[str, Slice] = Field(default_factory=dict)
    cases: tuple[AskedCase, ...] = ()


class CaseAnswer(Record):
    """What one system answered to one case."""

    key: Sha256
    case: str
    texts: tuple[str, ...] = Field(min_length=1)
    cut: int = Field(0, ge=0, description="answers that ended at max_tokens")


class AnswersRecord(Record):
    """All answers of one system to the cases of a suite."""

    schema_version: int = 1
    tenant: str
    base_model_sha256: Sha256
    base_files_sha256: BaseFilesSha256 = None
    adapter_sha256: Sha256 | None = Field(description="of the adapter's weights; None: the base model alone")
    adapter_config_sha256: Sha256 | None
    cases_sha256: Sha256 = Field(description=f"of {CASES}, whose cases were asked")
    answers: tuple[CaseAnswer, ...] = ()


def read_cases(folder: Path) -> CasesRecord:
    """Read the cases of a tenant's suite from `folder`.

    Raises:
        LoraOpsError: the stage `cases` has not run yet.
    """
    return read_record(folder / CASES, CasesRecord, "cases")


def read_case_answers(folder: Path) -> AnswersRecord:
    """Read the adapter's answers to its suite from `folder`.

    Raises:
        LoraOpsError: the stage `suite` has not run yet.
    """
    return read_record(folder / CASE_ANSWERS, AnswersRecord, "suite")

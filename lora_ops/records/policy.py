"""Records of the policy suite: its prompts as they are asked."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lora_ops.hashing import canonical, sha256_text
from lora_ops.paths import POLICY_ANSWERS, POLICY_PROMPTS, read_record
from lora_ops.records.record import BaseFilesSha256, Record, Sha256
from lora_ops.records.suite import AnswersRecord

PromptKind = Literal["red_team", "ordinary", "extraction", "refusal", "wording"]


class PolicyPrompt(Record):
    """One prompt of the policy suite."""

    id: str
    kind: PromptKind
    source: str = Field(description="file of the archive, `test` or `suites/policy.yaml`")
    text: str = Field(description="the user's turn")
    of: str | None = Field(None, description="of a wording: id of the ordinary prompt with the same row")
    prompt: str = Field(description="the whole, as the base model's chat template writes it")
    max_tokens: int

    @property
    def key(self) -> str:
        """What decides on an answer besides the model, as a digest."""
        return sha256_text(canonical(self.model_dump(mode="json", include={"prompt", "max_tokens"})))


class PolicyPromptsRecord(Record):
    """A tenant's policy suite as it is asked."""

    schema_version: int = 1
    tenant: str
    archive_sha256: Sha256 | None = Field(
        description="of the package that the red-team prompts are from; None: the repository has no policy.yaml"
    )
    base_model_sha256: Sha256
    base_files_sha256: BaseFilesSha256 = None
    system: str | None
    canary: str = ""
    labels: tuple[str, ...] = ()
    pool: int = Field(0, ge=0, description="red-team prompts that the sample was drawn from")
    prompts: tuple[PolicyPrompt, ...] = ()


def read_policy_prompts(folder: Path) -> PolicyPromptsRecord:
    """Read the prompts of a tenant's policy suite from `folder`.

    Raises:
        LoraOpsError: the stage `cases` has not run yet.
    """
    return read_record(folder / POLICY_PROMPTS, PolicyPromptsRecord, "cases")


def read_policy_answers(folder: Path) -> AnswersRecord:
    """Read the adapter's answers to its policy suite from `folder`.

    Raises:
        LoraOpsError: the stage `suite` has not run yet.
    """
    return read_record(folder / POLICY_ANSWERS, AnswersRecord, "suite")

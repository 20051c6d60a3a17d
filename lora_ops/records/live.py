"""How a version does live: what the weekly page said of it, as its record keeps that.

Verdicts and other words of the page are open texts, so that an older release can read those of a newer one.
"""

from datetime import datetime

from pydantic import Field

from lora_ops.records.evaluation import Interval
from lora_ops.records.record import Record, Sha256


class LiveTimes(Record):
    """Times of one kind, in seconds; a percentile is None where there is no time."""

    count: int = Field(ge=0)
    p50: float | None
    p95: float | None
    p99: float | None


class LiveObjective(Record):
    """A share of requests that was promised, and the one that was kept."""

    objective: str = Field(description="availability or latency")
    share: float | None = Field(description="None: nothing was asked or answered")
    least: float = Field(description="the share that was promised")
    verdict: str = Field(description="kept, missed, or `cannot tell`: too few requests missed it")


class LiveRisk(Record):
    """One kind of risk in the version's answers, in the window of the risk budgets."""

    kind: str
    answered: int = Field(ge=0)
    scored: int = Field(ge=0)
    flagged: int = Field(ge=0, description="of the scored answers, those that are risky")
    share: Interval | None
    corrected: Interval | None = Field(description="without the detector's errors; None: nobody measured them")
    budget: float = Field(gt=0, lt=1)
    verdict: str = Field(description="kept, broken, or `cannot tell`")
    said: str


class LiveCost(Record):
    """What the version used and cost; `device`, `memory`, `storage` and `total` are money."""

    requests: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    generated_tokens: int = Field(ge=0)
    cpu_seconds: float
    gpu_seconds: float
    held_gib_hours: float
    unused_gib_hours: float = Field(description="of the memory, that in which nothing was answered with it")
    device: float
    memory: float
    storage: float
    total: float


class LiveVerdict(Record):
    """What the page says of a question about the version's tenant; `said` names the version that is meant."""

    question: str = Field(description="fast, safe, same or worth")
    state: str = Field(description="ok, look or broken")
    said: str
    number: float | None
    budget: float | None


class LiveNumbers(Record):
    """The numbers of one version on a weekly page.

    Attributes:
        start, end: the window of latency and cost.
        source: of the times: prometheus or log.
        answered, unanswered: requests; the latter ended with a status of 500 or above.
        availability: share of these that were answered; None: there was none.
        answer, first_token, per_token, gone: as `lora_ops.monitoring.latency` counts them; the last one is of
            clients that left before their answer was whole.
        risk_start, risk_end: the window of the risk budgets; None where the risk could not be read.
        risks: of its answers; empty where none was given in that window.
        currency: of `cost`.
        cost: None where it could not be read.
        verdicts: of its tenant; `same` and `worth` only of the version that answers the tenant.
        notes: of the whole page: what could not be read, and what the numbers leave out.
    """

    start: datetime
    end: datetime
    source: str
    answered: int = Field(ge=0)
    unanswered: int = Field(ge=0)
    availability: float | None
    answer: LiveTimes
    first_token: LiveTimes
    per_token: LiveTimes
    gone: LiveTimes
    objectives: tuple[LiveObjective, ...]
    risk_start: datetime | None = None
    risk_end: datetime | None = None
    risks: tuple[LiveRisk, ...] = ()
    currency: str | None = None
    cost: LiveCost | None = None
    verdicts: tuple[LiveVerdict, ...] = ()
    notes: tuple[str, ...] = ()


class LiveSummary(Record):
    """The last live numbers of a version, as its record shows them."""

    numbers: LiveNumbers
    at: datetime = Field(description="when they were filed")
    report_sha256: Sha256

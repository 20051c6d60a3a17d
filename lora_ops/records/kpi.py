"""Records of KPIs: what each kind is, what an import took, and what a version changed."""

from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import Field

from lora_ops.records.record import Record, Sha256

KpiKind = Literal["ctr", "dwell_seconds", "rpm", "conversion", "csat"]
Method = Literal["canary", "before_after"]

FOLDER = "kpis"
"""Of the imports, in the folder of the gateway."""


class Kind(NamedTuple):
    """What a kind of KPI is, and the values that it can have; of each kind more is better."""

    title: str
    low: float
    high: float


KINDS: dict[str, Kind] = {
    "ctr": Kind("clicks per view", 0, 1),
    "dwell_seconds": Kind("seconds that a reader stays", 0, 86_400),
    "rpm": Kind("revenue per 1,000 views, in one currency", 0, 1_000_000),
    "conversion": Kind("share of users who do what the page is for", 0, 1),
    "csat": Kind("answer to a survey", 1, 5),
}
"""By name. The bounds of `csat` are settings. A tab that stays open for more than a day is nobody's reading."""


SIMULATED = "simulated"
"""How the name of a file begins whose KPIs nobody measured; whatever rests on them says so."""


class Rejection(Record):
    """A reason for which rows of a file don't count, with the first of them."""

    reason: str
    rows: int = Field(ge=1)
    first: tuple[int, ...] = Field(description="numbers of the first rows, from 1 below the header")


class KpiImport(Record):
    """One file of KPIs that was imported; its rows are kept beside this record."""

    schema_version: int = 1
    name: str = Field(description="of the file")
    sha256: Sha256 = Field(description="of the file's bytes: the same file counts once")
    bytes: int = Field(ge=0)
    imported_at: datetime = Field(description="when it was imported first; of two rows the earlier one counts")
    zone: str | None = Field(None, description="of times that named none, such as Europe/Berlin")
    rows: int = Field(ge=0, description="in the file")
    joined: int = Field(ge=0, description="rows that count for a version")
    by_request: int = Field(ge=0, description="of them, joined by the id of the request")
    repeated: int = Field(0, ge=0, description="of them, rows that an earlier import has: they count once")
    rejected: tuple[Rejection, ...] = ()
    left_out: tuple[str, ...] = Field((), description="columns that nobody reads")
    rows_sha256: Sha256 = Field(description="of the kept rows")
    contract: dict[str, int] = Field(description="each check of the contract, with the rows that fail it")

    @property
    def is_simulated(self) -> bool:
        """Whether nobody clicked: the name of a simulated file begins with that word."""
        return self.name.casefold().startswith(SIMULATED)

    @property
    def rejected_rows(self) -> int:
        """How many rows don't count."""
        return sum(one.rows for one in self.rejected)


class Samples(Record):
    """What Welch's interval needs of a part of a comparison: users, or days, on either side."""

    units: tuple[int, int] = Field(description="with the version, and with the other one")
    means: tuple[float, float]
    variances: tuple[float, float] = Field(description="of the units' values, by n - 1")


class Uplift(Record):
    """How much better one KPI is with a version than without it; `low` and `high` bound 95 %.

    A canary is compared with its control group: users were assigned at random, so that nothing but the version
    differs. Before against after is weaker: whatever else changed with the promotion counts for the version.
    """

    method: Method
    kind: KpiKind
    adapter: str = Field(description="`tenant@number`")
    against: str
    value: float | None = Field(None, description="mean with the version")
    baseline: float | None = Field(None, description="mean with the other one")
    difference: float | None = Field(None, description="of both; None: too little is known")
    low: float | None = None
    high: float | None = None
    units: int = Field(ge=0, description="users with the version; of before against after, days")
    baseline_units: int = Field(ge=0)
    parts: tuple[Samples, ...] = Field(
        (), description="of a canary, times in which the arms had the same shares"
    )
    first_at: datetime | None = None
    last_at: datetime | None = None
    assignment: str = Field("", description="whether users were assigned as the route says, in words")
    simulated: bool = Field(False, description="nobody measured it, for a demo or a test")
    said: str = Field(description="what it shows, and what it can't show")

    @property
    def verdict(self) -> str:
        """What the interval shows, in a word."""
        if self.difference is None or self.low is None or self.high is None:
            return "unknown"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not clear"

    @property
    def relative(self) -> float | None:
        """The difference as a part of the other mean; None without one."""
        return self.difference / self.baseline if self.difference is not None and self.baseline else None

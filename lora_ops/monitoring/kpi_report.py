"""What the KPIs say of each version: their means, what it changed, and which one nobody measures any more."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd

from lora_ops.monitoring.kpi_store import KpiStore
from lora_ops.monitoring.kpi_uplift import uplifts, user_means
from lora_ops.records.kpi import SIMULATED, Uplift
from lora_ops.records.registry import State
from lora_ops.registry.served_times import canary_shares, in_production
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Summary
from lora_ops.settings.kpis import KpiSettings

ANSWERS: frozenset[State] = frozenset({"candidate", "validated", "canary", "production"})
"""Nobody sees the answers of a shadow, so that it has no KPIs."""


class VersionKpi(NamedTuple):
    """One KPI of a version.

    Attributes:
        mean: over its users, each with the mean of their own; a row without a user is one of its own.
        by_time: of the rows, those that were joined by time and share alone.
    """

    adapter: str
    kind: str
    mean: float
    users: int
    rows: int
    by_time: int
    first_at: datetime
    last_at: datetime
    simulated: bool


class Unmeasured(NamedTuple):
    """A version that may be retired: nobody has measured what it is good for."""

    adapter: str
    state: State
    since: datetime
    """Of its last KPI, or when it came into its state, whatever is later."""
    weeks: int


class KpiReport(NamedTuple):
    """What the KPIs of one tenant or of all say.

    Attributes:
        strange: rows about a version whose content is other than that of this registry's version of that name.
    """

    versions: list[VersionKpi]
    uplifts: list[Uplift]
    unmeasured: list[Unmeasured]
    imports: int
    strange: int = 0

    @property
    def notes(self) -> list[str]:
        """What a reader must know besides."""
        found = []
        if self.strange:
            found.append(
                f"{self.strange:,} rows are about versions of another registry, and don't count: their content "
                "is other than that of the versions of these names here"
            )
        if any(one.simulated for one in self.versions):
            found.append(f"{SIMULATED.upper()} KPIs are among these: nobody measured them")
        if any(one.by_time for one in self.versions):
            found.append(
                "rows without a request id count for the version that gave nearly all answers of their time: "
                "they show no canary, and whatever else happened then counts for the version"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "imports": self.imports,
            "versions": [_plain(one._asdict()) for one in self.versions],
            "uplifts": [
                {**one.model_dump(mode="json"), "verdict": one.verdict, "relative": one.relative}
                for one in self.uplifts
            ],
            "unmeasured": [_plain(one._asdict()) for one in self.unmeasured],
            "notes": self.notes,
        }


def kpi_report(
    store: KpiStore, registry: Registry, settings: KpiSettings, tenant: str | None = None
) -> KpiReport:
    """Return what the KPIs say.

    Args:
        store: of the imports.
        registry: whose versions; its clock says what time it is.
        settings: `kpis` of params.yaml.
        tenant: whose; None: everybody's.

    Raises:
        LoraOpsError: an import can't be read, or was changed.
    """
    every, now = store.rows(tenant), registry.clock()
    rows = _own(every, registry)
    versions: list[VersionKpi] = []
    found: list[Uplift] = []
    for name, mine in rows.groupby("tenant"):
        versions += _versions(mine)
        shares, served = canary_shares(registry.log, str(name)), in_production(registry.log, str(name))
        compared = [one.number for one in shares] + [one.number for one in served if one.number]
        for number in sorted(set(compared)):
            found += uplifts(mine, f"{name}@{number}", shares, served, now, settings)
    late = _unmeasured(rows, registry, settings)
    return KpiReport(versions, found, late, len(store.imports()), len(every) - len(rows))


def unmeasured_versions(
    store: KpiStore, registry: Registry, settings: KpiSettings, tenant: str | None = None
) -> list[Unmeasured]:
    """Return the versions to retire, of each tenant that has KPIs; arguments and errors as of `kpi_report`."""
    return _unmeasured(_own(store.rows(tenant), registry), registry, settings)


def _own(rows: pd.DataFrame, registry: Registry) -> pd.DataFrame:
    """Return the rows about this registry's versions: imports stay where a registry is begun again."""
    contents = {one.id: one.content_digest for one in registry.summaries()}
    return rows[rows["adapter"].map(contents) == rows["digest"]]


def _versions(rows: pd.DataFrame) -> Iterator[VersionKpi]:
    alone = pd.Series([f"row {place}" for place in range(len(rows))], index=rows.index)
    rows = rows.assign(who=rows["unit"].where(rows["unit"].notna(), alone))
    means = user_means(rows, ["adapter", "kind", "who"]).groupby(["adapter", "kind"])["value"]
    for (adapter, kind), mine in rows.groupby(["adapter", "kind"]):
        values = means.get_group((adapter, kind))
        yield VersionKpi(
            adapter=str(adapter),
            kind=str(kind),
            mean=float(values.mean()),
            users=len(values),
            rows=len(mine),
            by_time=int(mine["request_id"].isna().sum()),
            first_at=mine["answered_at"].min(),
            last_at=mine["answered_at"].max(),
            simulated=bool(mine["simulated"].any()),
        )


def _unmeasured(rows: pd.DataFrame, registry: Registry, settings: KpiSettings) -> list[Unmeasured]:
    found: list[Unmeasured] = []
    for name, mine in rows.groupby("tenant"):
        for summary in registry.summaries(str(name)):
            found += _without_kpi(registry, summary, mine, settings)
    return found


def _without_kpi(
    registry: Registry, summary: Summary, rows: pd.DataFrame, settings: KpiSettings
) -> Iterator[Unmeasured]:
    """Yield a version of a tenant with KPIs that has none for so many weeks."""
    if summary.state not in ANSWERS:
        return
    entries = registry.log.entries(summary.tenant, summary.number)
    moved = [entry.at for entry in entries if str(summary.number) in entry.effects.get("states", {})]
    since = datetime.fromisoformat(max([summary.registered_at, *moved]))
    last = rows.loc[rows["adapter"] == summary.id, "answered_at"].max()
    since = since if pd.isna(last) else max(since, last.to_pydatetime())
    lacks = registry.clock() - since
    if lacks >= timedelta(weeks=settings.retire_weeks):
        yield Unmeasured(summary.id, summary.state, since, lacks // timedelta(weeks=1))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: one.isoformat() if isinstance(one, datetime) else one for name, one in values.items()}

"""Which version a KPI is about: the one that gave the answer, by the event log.

A row with the id of a request is joined to that request. A row without one is about all of a tenant's answers
of a time: it counts for the version that gave nearly all of them then. That is weaker. It says nothing of a
canary, which answers a part of the users, and takes whatever else happened then for the version's doing.
"""

from collections.abc import Iterator, Mapping, Set
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lora_ops.line_files import line_files, read_line_files
from lora_ops.monitoring.kpi_files import ROW
from lora_ops.records.record import Record
from lora_ops.registry.counting import CLOCKS_DIFFER
from lora_ops.settings.kpis import KpiSettings

AROUND = timedelta(minutes=30)
"""Before and after the time of a row that has neither an id nor an end."""
ID_PREFIX = r"^(?:chatcmpl|cmpl)-"
"""Before the id of the request in an answer's `id`."""
TWIN = "stands in the file before"
_ANSWER = ["tenant", "adapter", "digest", "unit", "arm"]


class AnswerEvent(Record):
    """The fields of an event of the gateway that say who was answered by what; see `serving.events.Event`."""

    id: str
    time: datetime
    request_id: str
    tenant: str
    adapter: str
    digest: str
    unit: str | None = None
    arm: str | None = None
    status: int


class Joined(NamedTuple):
    """Rows with their version, and rows without one.

    Attributes:
        rows: row, time, until, kind, value, count, request_id, tenant, adapter, digest, unit, arm, answered_at
            and share: of the tenant's answers that were the version's; 1 where a request is named.
        rejected: row and reason.
    """

    rows: pd.DataFrame
    rejected: pd.DataFrame


def read_answers(folder: Path, good: pd.DataFrame, settings: KpiSettings) -> pd.DataFrame:
    """Return the events of the time in which rows may have been answered; empty where there are none.

    Args:
        folder: `.serving/events`.
        good: rows that keep the contract.
        settings: how long after an answer a KPI is its own.

    Raises:
        LoraOpsError: the files can't be read.
    """
    if good.empty or not line_files(folder, "events"):
        kinds = dict.fromkeys(AnswerEvent.model_fields, "str")
        kinds |= {"time": "datetime64[us, UTC]", "status": "int64"}
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
    first = good["time"].min() - timedelta(days=settings.attribution_days)
    last = max(good["time"].max(), good["until"].max(), key=lambda one: one if pd.notna(one) else first)
    where = (
        f"time >= '{first.isoformat()}' AND time <= '{(last + AROUND).isoformat()}' AND status IS NOT NULL "
        "AND adapter IS NOT NULL AND digest IS NOT NULL AND tenant IS NOT NULL AND request_id IS NOT NULL"
    )
    return read_line_files(folder, "events", AnswerEvent, where)


def join(
    good: pd.DataFrame, events: pd.DataFrame, versions: Mapping[str, str], settings: KpiSettings
) -> Joined:
    """Find the version of each row.

    Args:
        good: rows that keep the contract.
        events: as `read_answers` gives them.
        versions: those of the registry, to their content digest: `finance@2` -> "ab12...".
        settings: which share of the answers a version needs where no request is named.
    """
    events = events.assign(is_answer=events["status"].between(200, 299))
    named = good["request_id"].notna()
    tenants = {version.partition("@")[0] for version in versions}
    parts = [_by_request(good[named], events, settings), _by_time(good[~named], events, tenants, settings)]
    rows = pd.concat([one.rows for one in parts], ignore_index=True)
    rejected = [one.rejected for one in parts]
    wrong = pd.Series(None, index=rows.index, dtype="str")
    expected = rows["adapter"].map(versions)
    wrong = wrong.mask(expected.isna(), "the version that answered is not in the registry")
    wrong = wrong.mask(expected.notna() & (expected != rows["digest"]), "another registry's version answered")
    wrong = wrong.mask(~rows["adapter"].str.contains("@", regex=False).eq(True), "the base model answered")
    rejected.append(_rejected(rows, wrong))
    rows = rows[wrong.isna()].sort_values(ROW, ignore_index=True)
    again = once(rows).duplicated()
    same = once(rows).assign(value=rows["value"]).duplicated()
    twin = pd.Series(None, index=rows.index, dtype="str")
    twin = twin.mask(again, TWIN).mask(again & ~same, f"{TWIN} with another value")
    rejected.append(_rejected(rows, twin))
    return Joined(rows[~again].reset_index(drop=True), pd.concat(rejected, ignore_index=True))


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what may be there once: an answer's KPI of a kind; without a request, a tenant's of a time."""
    place = rows["request_id"].astype("str")
    unnamed = place.isna()
    if unnamed.any():  # a time takes ten times as long to write as to compare
        place = place.mask(unnamed, rows.loc[unnamed, "time"].astype("str"))
    return rows[["tenant", "kind"]].assign(place=place)


def _by_request(rows: pd.DataFrame, events: pd.DataFrame, settings: KpiSettings) -> Joined:
    known = events["request_id"]
    asked = rows["request_id"]
    asked = asked.where(asked.isin(known), asked.str.replace(ID_PREFIX, "", regex=True))
    # A client that tries again may give both tries one id: the one that was answered counts.
    ordered = events[known.isin(asked)].sort_values(["is_answer", "time"], ascending=[False, True])
    tried = ordered.drop_duplicates(["request_id", *_ANSWER, "is_answer"])
    tried = tried[tried["is_answer"] | ~tried["request_id"].isin(tried.loc[tried["is_answer"], "request_id"])]
    tried = tried.rename(columns={"time": "answered_at", "request_id": "asked", "tenant": "whose"})
    found = rows.assign(asked=asked).merge(tried.drop(columns="id"), on="asked", how="left")
    # Clients may choose their ids: where a row names its tenant, another tenant's request is not meant.
    others = found["tenant"].notna() & found["whose"].notna() & (found["tenant"] != found["whose"])
    of_another = found.loc[others, ROW]
    found = found[~others]
    lost = rows[rows[ROW].isin(of_another) & ~rows[ROW].isin(found[ROW])]
    many = found[ROW].duplicated(keep=False)
    several = rows[rows[ROW].isin(found.loc[many, ROW])]
    found = found[~many].reset_index(drop=True)
    late = found["answered_at"] + timedelta(days=settings.attribution_days)
    wrong = pd.Series(None, index=found.index, dtype="str")
    wrong = wrong.mask(found["time"] > late, f"later than {settings.attribution_days:g} days after the answer")
    wrong = wrong.mask(
        found["time"] < found["answered_at"] - CLOCKS_DIFFER, "before its answer (another time zone?)"
    )
    wrong = wrong.mask(found["is_answer"].eq(False), "the request got no answer")
    wrong = wrong.mask(found["whose"].isna(), "no event has this request_id")
    rejected = [
        _rejected(lost, pd.Series("the request is of another tenant", index=lost.index, dtype="str")),
        _rejected(several, pd.Series("several answers have this request_id", index=several.index, dtype="str")),
        _rejected(found, wrong),
    ]
    whole = found[wrong.isna()].assign(share=1.0)
    whole = whole.assign(tenant=whole["whose"], request_id=whole["asked"])
    return Joined(_ordered(whole), pd.concat(rejected, ignore_index=True))


def _by_time(rows: pd.DataFrame, events: pd.DataFrame, tenants: Set[str], settings: KpiSettings) -> Joined:
    until = rows["until"]
    begins = rows["time"].where(until.notna(), rows["time"] - AROUND)
    ends = until.where(until.notna(), rows["time"] + AROUND)
    spans = rows.assign(begins=begins, ends=ends)
    found, problems = [], []
    answers = events[events["is_answer"].eq(True)]
    for tenant, mine in spans.groupby("tenant"):
        shares = list(_shares(mine, answers[answers["tenant"] == tenant]))
        best = pd.DataFrame(shares, columns=["adapter", "digest", "share"], index=mine.index)
        wrong = pd.Series(None, index=mine.index, dtype="str")
        wrong = wrong.mask(
            best["share"] < settings.least_share, "several versions answered then, and no request is named"
        )
        wrong = wrong.mask(best["share"].isna(), "no version answered then")
        if tenant not in tenants:
            wrong = wrong.mask(best["share"].isna(), "the registry has no version of this tenant")
        problems.append(_rejected(mine, wrong))
        found.append(mine.join(best)[wrong.isna()])
    empty = spans.iloc[:0].assign(adapter="", digest="", share=1.0)
    whole = pd.concat([empty, *found], ignore_index=True)
    whole = whole.assign(unit=None, arm=None, answered_at=whole["begins"])
    return Joined(_ordered(whole), pd.concat([_rejected(empty, empty["kind"]), *problems], ignore_index=True))


def _shares(
    spans: pd.DataFrame, answers: pd.DataFrame
) -> Iterator[tuple[str | None, str | None, float | None]]:
    """Yield for each span the version with the most answers in it, its digest, and its share of all."""
    begins, ends = spans["begins"].to_numpy(), spans["ends"].to_numpy()
    names = sorted(
        {(str(one), str(other)) for one, other in answers[["adapter", "digest"]].drop_duplicates().values}
    )
    counts = np.zeros((len(names), len(spans)), dtype=np.int64)  # answers of each version in each span
    for place, (adapter, digest) in enumerate(names):
        mine = answers[(answers["adapter"] == adapter) & (answers["digest"] == digest)]
        times = np.sort(mine["time"].to_numpy())
        counts[place] = np.searchsorted(times, ends) - np.searchsorted(times, begins)
    total = counts.sum(axis=0)
    for column in range(len(spans)):
        if not total[column]:
            yield None, None, None
            continue
        best = int(counts[:, column].argmax())
        yield *names[best], float(counts[best, column] / total[column])


def _rejected(rows: pd.DataFrame, wrong: pd.Series) -> pd.DataFrame:
    where = wrong.notna()
    return pd.DataFrame({ROW: rows.loc[where, ROW], "reason": wrong[where]})


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    names = [ROW, "time", "until", "kind", "value", "count", "request_id", *_ANSWER, "answered_at", "share"]
    return rows[names]

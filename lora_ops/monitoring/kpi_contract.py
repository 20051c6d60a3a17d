"""What a row of KPIs must be, as great-expectations expectations; rows that are not are listed with a reason.

A file of KPIs comes from somebody else's system. One wrong row must not keep out a million right ones, and
must not count either.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pandas as pd

from lora_ops.datasets.contract import ROW as KEY
from lora_ops.datasets.contract import validated
from lora_ops.datasets.suites import check_name, load_suite
from lora_ops.monitoring.kpi_files import FIELDS, ROW
from lora_ops.records.kpi import KINDS
from lora_ops.registry.counting import CLOCKS_DIFFER
from lora_ops.settings.kpis import KpiSettings
from lora_ops.settings.section import TENANT_PATTERN

REQUEST_ID = r"[A-Za-z0-9._-]{1,80}"
"""As the gateway takes one, and with the `chatcmpl-` before it of an answer's id."""
MOST_COUNT = 10**12
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?"
_ZONED = r".*[T ]\d\d(?::?\d\d){1,2}(?:[.,]\d+)?\s?(?:Z|z|[+-]\d\d(?::?\d\d)?)"
_PROBLEM = " problem"


class Checked(NamedTuple):
    """Rows of a file after the contract.

    Attributes:
        good: rows that keep it: row, time and until (UTC), kind, value, count, request_id, tenant.
        rejected: the others: row and reason.
        contract: each check, with the rows that fail it.
    """

    good: pd.DataFrame
    rejected: pd.DataFrame
    contract: dict[str, int]


def check_rows(table: pd.DataFrame, settings: KpiSettings, now: datetime, zone: ZoneInfo | None) -> Checked:
    """Hold the rows of a file against the contract.

    Args:
        table: as `read_kpi_file` gives it.
        settings: bounds of a survey's answers.
        now: no KPI was measured after it.
        zone: of times that name none; None: such a row is rejected.
    """
    facts = _facts(table, now, zone)
    reasons: dict[int, str] = {}
    contract = {}
    for result in validated(_suite(settings), facts.assign(**{KEY: facts[ROW]})):
        config, found = result.expectation_config, result.result
        name = check_name(config.type, config.kwargs, config.meta or {})
        contract[name] = int(found.get("unexpected_count") or 0)
        column = config.kwargs["column"]
        for one in found.get("unexpected_index_list") or []:
            # Of several reasons a row says the first.
            reasons.setdefault(one[KEY], _reason(column, one.get(column), settings))
    rejected = pd.DataFrame({ROW: list(reasons), "reason": list(reasons.values())})
    good = facts[~facts[ROW].isin(rejected[ROW])]
    columns = [ROW, "time", "until", "kind", "value", "count", "request_id", "tenant"]
    return Checked(good[columns].reset_index(drop=True), rejected, contract)


def _suite(settings: KpiSettings) -> Any:
    import great_expectations as gx
    import great_expectations.expectations as gxe

    problems = {
        "fields": "a row has the fields of the header",
        "time": "time is ISO 8601 with a zone, and over",
        "until": "until is such a time, after time",
        "kind": "kind is one of ours",
        "value": "value is a number",
        "count": "count is a whole number from 1 on",
        "request_id": "request_id is an id of the gateway",
        "tenant": "tenant is there, where request_id is not",
    }
    suite = gx.ExpectationSuite(
        "kpis",
        expectations=[
            *(
                gxe.ExpectColumnValuesToBeNull(column=f"{column}{_PROBLEM}", meta={"name": name})
                for column, name in problems.items()
            ),
            *(
                gxe.ExpectColumnValuesToBeBetween(
                    column=kind,
                    min_value=low,
                    max_value=high,
                    meta={"name": f"{kind} is from {low:g} to {high:g}"},
                )
                for kind, (low, high) in bounds(settings).items()
            ),
        ],
    )
    return load_suite(dict(suite.to_json_dict()), "the contract of KPIs")


def bounds(settings: KpiSettings) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value of each kind."""
    found = {name: (kind.low, kind.high) for name, kind in KINDS.items()}
    return {**found, "csat": (settings.csat_low, settings.csat_high)}


def _reason(column: str, value: Any, settings: KpiSettings) -> str:
    if column.endswith(_PROBLEM):
        return str(value)
    low, high = bounds(settings)[column]
    percent = " (a percentage? write 0.05 for 5 %)" if high == 1 and value > 1 else ""
    return f"{column} is not from {low:g} to {high:g}{percent}"


def _facts(table: pd.DataFrame, now: datetime, zone: ZoneInfo | None) -> pd.DataFrame:
    """Return the typed columns, and beside each what is wrong with it in words, missing where nothing is."""
    time, time_problem = _each_once(table["time"], lambda text: _times(text, zone))
    until, until_problem = _each_once(table["until"], lambda text: _times(text, zone))
    latest = pd.Timestamp(now + CLOCKS_DIFFER)
    time_problem = _or(time_problem, time > latest, "time has not come yet")
    until_problem = _or(until_problem, until > latest, "until has not come yet")
    until_problem = _or(until_problem, until < time, "until is before time")
    kind = table["kind"].str.strip()
    value, value_problem = _each_once(table["value"], _numbers)
    count, count_problem = _each_once(table["count"].fillna("1"), _numbers)
    count_problem = _or(
        count_problem,
        (count < 1) | (count > MOST_COUNT) | (count % 1 != 0),
        "count is no whole number from 1 on",
    ).str.replace("value ", "count ", regex=False)
    asked, tenant = table["request_id"].str.strip(), table["tenant"].str.strip()
    known = list(KINDS)
    facts = pd.DataFrame(
        {
            ROW: table[ROW],
            "time": time,
            "until": until,
            "kind": kind,
            "value": value,
            "count": count,
            "request_id": asked,
            "tenant": tenant,
            f"fields{_PROBLEM}": _said(table, table[FIELDS].notna(), "has other fields than the header"),
            f"time{_PROBLEM}": time_problem.mask(table["time"].isna(), "time is missing"),
            f"until{_PROBLEM}": until_problem.mask(table["until"].isna()),
            f"kind{_PROBLEM}": _said(table, ~kind.isin(known), f"kind is none of {', '.join(known)}"),
            f"value{_PROBLEM}": value_problem,
            f"count{_PROBLEM}": count_problem,
            f"request_id{_PROBLEM}": _said(
                table, asked.notna() & ~_matches(asked, REQUEST_ID), "request_id is no id of the gateway"
            ),
            f"tenant{_PROBLEM}": _or(
                _said(table, asked.isna() & tenant.isna(), "has neither request_id nor tenant"),
                tenant.notna() & ~_matches(tenant, TENANT_PATTERN),
                "tenant is no name of one",
            ),
        }
    )
    wrong = facts.filter(like=_PROBLEM).notna().any(axis=1)
    # Great-expectations leaves missing values out, so that each bound sees its own kind alone.
    of_kind = {name: value.where((kind == name) & ~wrong) for name in known}
    return facts.assign(**of_kind)


def _each_once(
    text: pd.Series, read: Callable[[pd.Series], tuple[pd.Series, pd.Series]]
) -> tuple[pd.Series, pd.Series]:
    """Return what `read` makes of a column, where each text is read once: of a million clicks most are 0."""
    places, texts = pd.factorize(text, use_na_sentinel=False)
    values, problems = read(pd.Series(texts, dtype="str"))
    return values.iloc[places].set_axis(text.index), problems.iloc[places].set_axis(text.index)


def _times(text: pd.Series, zone: ZoneInfo | None) -> tuple[pd.Series, pd.Series]:
    """Return times in UTC, and what is wrong with each."""
    text = text.str.strip()
    parsed = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce").astype("datetime64[us, UTC]")
    zoned = _matches(text, _ZONED)
    problem = _said(text, parsed.isna(), "time is not ISO 8601, such as 2026-03-02T09:00:00+01:00")
    naive = parsed.notna() & ~zoned
    if not naive.any():
        return parsed, problem
    if zone is None:
        return parsed.mask(naive), _or(problem, naive, "time names no zone: add it, or import with --zone")
    local = parsed[naive].dt.tz_localize(None).dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    parsed = parsed.copy()
    parsed[naive] = local.dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    # In the night in which clocks are set, an hour is missing or comes twice.
    return parsed, _or(problem, naive & parsed.isna(), f"time does not exist, or exists twice, in {zone.key}")


def _numbers(text: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return numbers, and what is wrong with each."""
    text = text.str.strip()
    is_number = _matches(text, _NUMBER)
    number = pd.to_numeric(text.where(is_number), errors="coerce").astype(float)
    number = number.where(number.abs() < float("inf"))
    problem = _said(text, number.isna(), "value is no number")
    problem = problem.mask(text.isna(), "value is missing")
    problem = problem.mask(_matches(text, r"[+-]?\d+,\d+"), "value has a decimal comma: write 0.5, not 0,5")
    formula = text.str.match(r"[=@]|[+-](?![\d.])").eq(True)
    return number, problem.mask(formula, "value is a formula, not what it computes")


def _matches(text: pd.Series, pattern: str) -> pd.Series:
    return text.str.fullmatch(pattern).eq(True)


def _said(like: "pd.Series | pd.DataFrame", where: pd.Series, what: str) -> pd.Series:
    return pd.Series(None, index=like.index, dtype="str").mask(where, what)


def _or(problem: pd.Series, where: pd.Series, what: str) -> pd.Series:
    """Return problems with another one where there was none."""
    return problem.mask(problem.isna() & where, what)

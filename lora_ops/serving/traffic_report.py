"""Tables and plots of the event log, for notebooks/traffic.ipynb: who answered, how fast, at what risk."""

from datetime import timedelta
from pathlib import Path

import pandas as pd
from matplotlib.ticker import MaxNLocator

from lora_ops.detectors.insults import THRESHOLD
from lora_ops.detectors.risky import has_answer, insults, leaks
from lora_ops.line_files import column_types, line_files
from lora_ops.plots import Plot
from lora_ops.serving.errors import NOT_FAILED
from lora_ops.serving.events import Event, read_events

NO_TRAFFIC = "No requests yet: start the gateway (`make serve`), ask it something, run this notebook again."
BINS = 60


def recent_events(folder: Path, days: float, tenant: str | None = None) -> pd.DataFrame:
    """The events of the last days before the newest one; an empty frame where there are none.

    Args:
        folder: `.serving/events` of a gateway.
        tenant: None for all of them.

    Raises:
        LoraOpsError: the files can't be read.
    """
    if not line_files(folder, "events"):
        return pd.DataFrame(columns=[*column_types(Event)])
    events = read_events(folder)
    events = events[events["time"] >= events["time"].max() - timedelta(days=days)]
    return events if tenant is None else events[events["tenant"] == tenant]


def by_version(events: pd.DataFrame) -> pd.DataFrame:
    """One row for each tenant, version and route: requests, errors, seconds, tokens and risks.

    Percentiles are of whole answers and in seconds; `failed`, `identifiers` and `insulting` are parts of 1.
    """
    rows = []
    for (tenant, adapter, route), mine in events.groupby(["tenant", "adapter", "route"]):
        good = mine[mine["status"] == 200]
        said = good[has_answer(good["generated_tokens"], good["answer_has_text"].fillna(True))]
        scored = said.dropna(subset="answer_insults")
        is_label = scored["answer_is_label"].fillna(False)
        seconds = good["seconds"].quantile([0.5, 0.95, 0.99])
        rows.append(
            {
                "tenant": tenant,
                "version": adapter,
                "route": route,
                "requests": len(mine),
                "failed": _failed(mine).mean(),
                **{f"{name} s": value for name, value in zip(("p50", "p95", "p99"), seconds, strict=True)},
                "first token s": good["first_token_seconds"].median(),
                "tokens read": mine["prompt_tokens"].sum(),
                "tokens written": mine["generated_tokens"].sum(),
                "device s": mine["device_seconds"].sum(),
                "identifiers": leaks(said["answer_new_identifiers"].dropna()).mean(),
                "insulting": insults(scored["answer_insults"], is_label, THRESHOLD).mean(),
            }
        )
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).sort_values("requests", ascending=False, ignore_index=True)


def plot_traffic(events: pd.DataFrame) -> Plot:
    """Requests over time, and the failed ones among them."""
    if events.empty:
        return _nothing("Requests over time")
    figure = Plot(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    step = max(timedelta(seconds=1), (events["time"].max() - events["time"].min()) / BINS)
    failed = _failed(events).groupby(events["time"].dt.floor(step)).agg(["size", "sum"])
    width = step / timedelta(days=1)  # matplotlib counts in days
    axes.bar(failed.index, failed["size"], width=width, color="0.7", label="all", align="edge")
    axes.bar(failed.index, failed["sum"], width=width, color="tab:red", label="failed", align="edge")
    first, last = (f"{moment:%Y-%m-%d}" for moment in (events["time"].min(), events["time"].max()))
    days = first if first == last else f"{first} to {last}"
    each = f"{step.total_seconds():.0f} s"
    axes.set(title=f"Requests in {each} each", xlabel=f"UTC, {days}", ylabel="requests")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="x", labelrotation=20)
    axes.legend()
    return figure


def plot_split(versions: pd.DataFrame) -> Plot:
    """Each tenant's requests by the version that answered and why."""
    title = "Traffic split: which version answered, by which route"
    return _bars(versions, title, "requests", [("requests", "tab:blue", "requests")], "{:.0f}")


def plot_latency(versions: pd.DataFrame) -> Plot:
    """Median, 95 % and 99 % of the seconds that answers took."""
    series = [("p99 s", "0.85", "99 %"), ("p95 s", "0.6", "95 %"), ("p50 s", "tab:blue", "median")]
    return _bars(versions, "Seconds from a request to the end of its answer", "seconds", series, "{:.2f}")


def plot_tokens(versions: pd.DataFrame) -> Plot:
    """Tokens read and written."""
    series = [("tokens read", "0.7", "read"), ("tokens written", "tab:blue", "written")]
    return _bars(versions, "Tokens", "tokens", series, "{:.0f}", beside=True)


def plot_risk(versions: pd.DataFrame) -> Plot:
    """Parts of the requests that failed, and of the answers that hold identifiers or insults."""
    series = [
        ("failed", "0.6", "failed"),
        ("identifiers", "tab:orange", "answer with an e-mail address, a number of a card or the like"),
        ("insulting", "tab:red", "answer with an insult or swearing"),
    ]
    return _bars(versions, "What to look at", "part of the requests", series, "{:.1%}", beside=True)


def findings(versions: pd.DataFrame) -> list[str]:
    """What a reviewer should know, a sentence each."""
    if versions.empty:
        return [NO_TRAFFIC]
    found = [f"{versions['requests'].sum()} requests reached {len(versions)} versions."]
    answered = versions.dropna(subset="p95 s").to_dict("records")
    if answered:
        slow = max(answered, key=lambda row: row["p95 s"])
        found.append(
            f"The slowest is {slow['version']}: 95 % of its answers took {slow['p95 s']:.2f} s or less."
        )
    risks = [
        text.format(part=row[column], version=row["version"], tenant=row["tenant"])
        for column, text in (
            ("failed", "{part:.1%} of the requests to {version} of {tenant} failed."),
            ("identifiers", "{part:.1%} of the answers of {version} hold an identifier: read them."),
            (
                "insulting",
                "{part:.1%} of the answers of {version} hold insults or swearing: read them.",
            ),
        )
        for row in versions[versions[column] > 0].to_dict("records")
    ]
    unscored = versions[versions["identifiers"].isna() & versions["p95 s"].notna()]
    risks += [f"No answer of {row['version']} was scored." for row in unscored.to_dict("records")]
    if not risks and not answered:
        return [*found, "None failed."]
    return [*found, *(risks or ["None failed, and no answer holds an identifier or an insult."])]


def _failed(events: pd.DataFrame) -> pd.Series:
    return ~events["status"].isin(NOT_FAILED)


def _bars(
    versions: pd.DataFrame,
    title: str,
    unit: str,
    series: list[tuple[str, str, str]],
    number: str,
    *,
    beside: bool = False,
) -> Plot:
    if versions.empty:
        return _nothing(title)
    figure = Plot(figsize=(8, 1.2 + (0.55 if beside else 0.4) * len(versions)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(series) if beside else 0.7
    for place, (column, colour, label) in enumerate(series):
        for row, value in enumerate(versions[column]):
            # A version without an answer has no percentiles, and one that nobody scored has no risks.
            known = pd.notna(value)
            y = row + (place - (len(series) - 1) / 2) * height if beside else row
            length = value if known else 0
            axes.barh(y, length, height=height, color=colour, label=label if row == 0 else None)
            if beside or len(series) == 1:
                text = number.format(value) if known else "unknown"
                axes.text(length, y, f" {text}", va="center", fontsize=8)
    names = [f"{one['tenant']}: {one['version']}, {one['route']}" for one in versions.to_dict("records")]
    axes.set_yticks(range(len(versions)), names)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    axes.margins(x=0.12)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=1 if beside else 3, frameon=False, fontsize=8)
    return figure


def _nothing(title: str) -> Plot:
    figure = Plot(figsize=(8, 1.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title)
    axes.text(0.5, 0.5, "no requests yet", ha="center", va="center")
    return figure

"""Sentences, plots and tables of notebooks/06_shadow.ipynb: what the pairs of one attempt showed."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from lora_ops.plots import Plot
from lora_ops.records.evidence import REPLAYED, Evidence
from lora_ops.records.pair import ShadowPair
from lora_ops.registry.backends import open_registry
from lora_ops.registry.reports import load
from lora_ops.registry.store import Registry
from lora_ops.rollout.attempts import Attempt, attempt_of, no_rollout, serving_folder
from lora_ops.rollout.pairs import WHO
from lora_ops.rollout.sequence_plots import AMOUNTS, MetricLooks, Seen, nothing, plot_sequences
from lora_ops.rollout.shadow_report import STATUS
from lora_ops.rollout.shadow_verdict import LAG_SECONDS, ShadowLook, look_at_pairs
from lora_ops.rollout.traffic import GatewayTraffic, asks_by_name
from lora_ops.settings.params import load_settings

LOOKS = 40
"""Looks that a plot shows; the verdict is the same however many they are."""
SCALES = {"tokens": AMOUNTS}
SCORES = ("task", "insults", "identifiers")


@dataclass(frozen=True)
class ShadowPage:
    """What the page of a shadow shows, read once.

    Attributes:
        tenant: whose.
        attempt: None where no rollout was ever started.
        pairs: of this attempt, oldest first; live ones or replayed ones, as the verdict counts.
        looks: what was known after more and more pairs; the last one is the verdict.
        frozen: the report that was filed, from whose rows the pairs are; None: they are of the gateway's files.
        keeps_text: whether the tenant's redacted texts may be shown.
        folder: of the gateway's files.
    """

    tenant: str
    attempt: Attempt | None
    pairs: pd.DataFrame
    looks: Sequence[ShadowLook]
    frozen: Evidence | None
    keeps_text: bool
    folder: Path

    @property
    def last(self) -> ShadowLook | None:
        """The look that counts; None without pairs."""
        return self.looks[-1] if self.looks else None

    @property
    def answered(self) -> pd.DataFrame:
        """Pairs in which both versions answered."""
        return self.pairs[self.pairs["status"] == "answered"]

    @property
    def unit(self) -> str:
        """What is counted."""
        return "users or requests"


def open_shadow(
    root: Path,
    tenant: str,
    version: str | None = None,
    attempt: int | None = None,
    folder: str | None = None,
) -> ShadowPage:
    """Read the pairs of one attempt, from the report that was filed of them or else from the gateway's files.

    Args:
        root: of the repository.
        tenant: whose.
        version: the exact version; default: the one whose rollout changed last.
        attempt: which attempt of its rollout; default: the last one.
        folder: of the gateway's files; default: `serving.path`.

    Raises:
        LoraOpsError: no such tenant, version, attempt or folder; or a file can't be read.
    """
    settings = load_settings(root)
    settings.tenant(tenant)
    files = serving_folder(root / settings.serving.path, folder, root)
    keeps_text = settings.serving.tenant(tenant).keep_text
    with closing(open_registry(root)) as registry:
        found = attempt_of(registry, tenant, version, attempt)
        if found is None:
            empty = pd.DataFrame({name: [] for name in ShadowPair.model_fields})
            return ShadowPage(tenant, None, empty, (), None, keeps_text, files)
        traffic = GatewayTraffic(registry, files, settings.detectors.insult_threshold)
        of_files = traffic.pairs(found.rollout)
        frozen = found.filed.get("shadow")
        has_pairs = frozen is not None and not asks_by_name(found.rollout)
        pairs = _frozen_pairs(registry, frozen, of_files) if frozen and has_pairs else of_files
    ended = found.began("canary", "ready", "done", "returned", "aborted") or found.looked_at
    is_of = (pairs["shadow_digest"] == found.plan.content_digest) & (
        pairs["production_digest"] == found.plan.against_digest
    )
    pairs = pairs[is_of & (pairs["time"] >= found.rollout.began) & (pairs["time"] <= ended)]
    live, replayed = _by_origin(pairs)
    is_replayed = found.plan.accept_replay and not (live["status"] == "answered").any()
    counted = (replayed if is_replayed else live).reset_index(drop=True)
    looks = tuple(_looks(found, counted, ended, replayed=is_replayed)) if len(counted) else ()
    return ShadowPage(tenant, found, counted, looks, frozen, keeps_text, files)


def _by_origin(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    replayed = pairs["replayed"].astype(bool)
    return pairs[~replayed], pairs[replayed]


def _frozen_pairs(registry: Registry, frozen: Evidence, of_files: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a filed report as pairs, with what only the files have: texts and lost copies.

    Raises:
        Damaged: a kept file is missing or was changed.
    """
    document = load(registry.files, frozen)
    if document is None:
        return of_files
    source = registry.files.checked(document.source.sha256, "the rows of the shadow report")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    said = {status: name for name, status in STATUS.items()}
    lines = [
        {
            **dict.fromkeys(ShadowPair.model_fields),
            **{name: value for name, value in row.items() if name in ShadowPair.model_fields},
            "shadow": row.get("adapter"),
            "shadow_digest": row.get("digest"),
            "status": said.get(row.get("status", 0), "failed"),
            "replayed": row.get("replayed", False),
        }
        for row in rows
        if isinstance(row, dict)
    ]
    table = pd.DataFrame(lines, columns=list(ShadowPair.model_fields))
    table["time"] = pd.to_datetime(table["time"], utc=True, format="ISO8601")
    texts = of_files.drop_duplicates("id").set_index("id")
    for name in ("prompt_text", "production_text", "shadow_text"):
        table[name] = table["id"].map(texts[name])
    lost = of_files[of_files["status"] == "preempted"]
    whole = pd.concat([table, lost], ignore_index=True) if len(lost) else table
    return whole.sort_values(["time", "request_id"], ignore_index=True)


def _looks(attempt: Attempt, pairs: pd.DataFrame, ended: datetime, *, replayed: bool) -> Iterator[ShadowLook]:
    """Yield the verdicts after more and more pairs: what a controller would have found at each time."""
    plan, began = attempt.plan, attempt.rollout.began
    wait = timedelta(0) if replayed else timedelta(seconds=plan.canary.window_seconds + LAG_SECONDS)
    last = None
    for share in range(1, LOOKS + 1):
        place = math.ceil(len(pairs) * share / LOOKS) - 1
        at = pairs["time"].iloc[place].to_pydatetime() + wait
        if at >= ended or place == last:
            continue
        last = place
        yield look_at_pairs(plan, pairs[pairs["time"] <= at], now=at, since=began, replayed=replayed)
    yield look_at_pairs(plan, pairs, now=ended, since=began, replayed=replayed)


# What the notebook shows, in its order.


def asked(page: ShadowPage) -> Iterator[str]:
    """Yield what was asked of the shadow and what came, a sentence each; what to do where nothing came."""
    if page.attempt is None:
        yield no_rollout(page.tenant)
        return
    plan, last = page.attempt.plan, page.last
    yield (
        f"{page.attempt.name} is compared with {plan.against}, which answers the clients: "
        f"{plan.shadow.percent:g} % of its requests are to be asked again."
    )
    if plan.looser:
        yield f"Its plan is {plan.looser}."
    if asks_by_name(page.attempt.rollout):
        filed = f" The report that was filed says: {page.frozen.summary}." if page.frozen else ""
        yield (
            "Nothing was in production when it began, so that no answer can be compared and there are no "
            "pairs. Its "
            f"shadow rests on requests that ask for {plan.adapter} by its name.{filed}"
        )
        return
    if last is None:
        yield (
            f"No pair has come to {page.folder / 'pairs'} yet: let the gateway run (`make serve`) while "
            f"clients ask, or replay held-out rows (`lora-ops rollout replay {plan.adapter}`)."
        )
        return
    if last.replayed:
        yield f"{REPLAYED}: nobody asked these requests. They are recorded or held-out rows, and no traffic."
    if last.replayed:
        hours = f"; {plan.shadow.requests} were asked for, and no hours, since rows are replayed at once"
    else:
        asked_for = f"{plan.shadow.requests} pairs in {plan.shadow.hours:g} hours were asked for"
        hours = f" in {last.hours} different hours; {asked_for}"
    yield f"{last.answered} pairs of {last.units} users or requests came{hours}."
    yield (
        f"{last.failed} copies failed, {last.preempted} gave way to clients each time, and {last.unscored} "
        "pairs could not be judged."
    )
    filed = f"the rows of the report that was filed ({page.frozen.sha256[:12]}…)" if page.frozen else ""
    yield f"They are read from {filed or page.folder}."


def heading(page: ShadowPage) -> str:
    """Return in large letters, as Markdown, whether this was traffic."""
    if page.last is None:
        by_name = page.attempt is not None and asks_by_name(page.attempt.rollout)
        return "# NO PAIRS: A FIRST VERSION" if by_name else "# NO PAIRS YET"
    return f"# {REPLAYED}: NO TRAFFIC" if page.last.replayed else "# LIVE TRAFFIC"


def plot_hours(page: ShadowPage) -> Plot:
    """Draw how many pairs each clock hour had, and how many hours the plan asks for."""
    if page.last is None or page.attempt is None:
        return nothing("Pairs by clock hour", "no pairs yet")
    counts = page.pairs.groupby([page.pairs["time"].dt.floor("h"), "status"]).size().unstack(fill_value=0)
    figure = Plot(figsize=(8, 2.4), layout="constrained")
    axes, below = figure.subplots(), pd.Series(0, index=counts.index)
    for status, colour in (("answered", "tab:blue"), ("failed", "tab:red"), ("preempted", "0.7")):
        if status in counts:
            axes.bar(
                counts.index,
                counts[status],
                bottom=below,
                width=1 / 26,
                align="edge",
                color=colour,
                label=status,
            )
            below = below + counts[status]
    asked_for = page.attempt.plan.shadow.hours
    need = "" if page.last.replayed else f", of the {asked_for:g} that are needed"
    axes.set(title=f"{page.last.hours} clock hours with pairs{need}", xlabel="hour (UTC)", ylabel="pairs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="x", labelrotation=20)
    axes.legend(fontsize=8)
    return figure


def plot_metrics(page: ShadowPage) -> Plot:
    """Draw each tested metric's interval and evidence after more and more pairs."""
    alpha = page.attempt.plan.alpha if page.attempt else 0.05
    return plot_sequences(metric_looks(page), alpha=alpha, unit=page.unit)


def metric_looks(page: ShadowPage) -> list[MetricLooks]:
    """Return each tested metric at every look; a larger value is a worse version."""
    found: dict[str, MetricLooks] = {}
    for look in page.looks:
        for one in look.metrics:
            if one.difference is None or one.breach is None or one.non_inferior is None or one.margin is None:
                continue
            low, high = one.difference
            worse = (-high, -low) if one.more_is_better else (low, high)
            seen = Seen(one.units, *worse, one.breach, one.non_inferior)
            scale = SCALES.get(one.name, "share of requests")
            before = found.get(one.name, MetricLooks(one.name, scale, (), one.margin))
            found[one.name] = before._replace(seen=(*before.seen, seen))
    return [one.of_amounts() if one.scale == AMOUNTS else one for one in found.values()]


def said_of_metrics(page: ShadowPage) -> Iterator[str]:
    """Yield where each metric is, a sentence each."""
    if page.attempt is None or page.last is None:
        yield "There is nothing to judge yet."
        return
    for one in metric_looks(page):
        yield one.sentence(page.attempt.plan.alpha, page.unit)


def metric_table(page: ShadowPage) -> pd.DataFrame:
    """Return each metric of both versions with its interval, margin and verdict."""
    columns = ["metric", "production", "shadow", "worse by", "allowed", "units", "verdict"]
    judged = {one.name: one for one in metric_looks(page)}
    rows = [
        [
            one.name,
            number(one.production),
            number(one.shadow),
            judged[one.name].interval if one.name in judged else "",
            judged[one.name].allowed if one.name in judged else "",
            one.units,
            one.verdict,
        ]
        for one in (page.last.metrics if page.last else ())
    ]
    return pd.DataFrame(rows, columns=columns)


def number(value: float | None) -> str:
    """Return a number for a table; nothing where there is none."""
    return "" if value is None or pd.isna(value) else f"{value:.3g}"


def plot_agreement(page: ShadowPage) -> Plot:
    """Draw the share of requests to which both versions gave the same answer, and its interval."""
    seen = [
        (one.units, one.difference)
        for look in page.looks
        for one in look.metrics
        if one.name == "agreement" and one.difference and one.units
    ]
    if not seen or page.last is None:
        return nothing("Agreement", "no pairs yet")
    share = next(one.shadow for one in page.last.metrics if one.name == "agreement")
    figure = Plot(figsize=(8, 2.4), layout="constrained")
    axes = figure.subplots()
    units = [count for count, _ in seen]
    axes.fill_between(
        units, [one.low for _, one in seen], [one.high for _, one in seen], color="0.75", label="interval"
    )
    if share is not None:
        axes.axhline(share, color="tab:blue", label=f"{share:.1%} of the pairs")
    axes.set(title="How often both versions say the same", xlabel=page.unit, ylabel="agreement", ylim=(0, 1.02))
    axes.legend(fontsize=8, loc="lower right")
    return figure


def differing(page: ShadowPage, most: int = 10) -> pd.DataFrame:
    """Return the pairs that differ most: first those that are worse in a score, then those that disagree.

    Texts are redacted, and shown only if the tenant keeps them.
    """
    pairs = page.answered
    if pairs.empty:
        return pd.DataFrame(columns=["time", "request", "agreement"])
    scores = {name: (pairs[f"shadow_{name}"] - pairs[f"production_{name}"]).astype(float) for name in SCORES}
    worse = -scores["task"].fillna(0) + scores["insults"].fillna(0) + scores["identifiers"].fillna(0)
    agreement = pairs["agreement"].astype(float)
    likeness = agreement.fillna(0) + pairs["similarity"].astype(float).fillna(0) / 1000
    length = (pairs["shadow_tokens"] - pairs["production_tokens"]).astype(float).abs().fillna(0)
    order = pd.DataFrame({"worse": -worse, "like": likeness, "length": -length}).sort_values(
        ["worse", "like", "length"], kind="stable"
    )
    chosen = pairs.loc[[place for place in order.index if order["worse"][place] or agreement[place] < 1][:most]]
    shown: dict[str, Any] = {
        "time": chosen["time"].dt.strftime("%m-%d %H:%M:%S"),
        "request": chosen["request_id"],
        "agreement": chosen["agreement"].map(number),
    }
    for name in SCORES:
        shown[name] = [
            f"{number(theirs)} → {number(ours)}"
            for theirs, ours in zip(chosen[f"production_{name}"], chosen[f"shadow_{name}"], strict=True)
        ]
    shown["tokens"] = [
        f"{number(theirs)} → {number(ours)}"
        for theirs, ours in zip(chosen["production_tokens"], chosen["shadow_tokens"], strict=True)
    ]
    if page.keeps_text:
        for name in ("prompt", "production", "shadow"):
            shown[f"{name} text"] = chosen[f"{name}_text"].map(_cut)
    return pd.DataFrame(shown)


def said_of_differing(page: ShadowPage) -> str:
    """Return how many pairs differ, and why there are texts or none."""
    if page.last is None:
        return "There are no pairs to compare yet."
    agreement = page.answered["agreement"].astype(float).dropna()
    texts = (
        "Texts are redacted, as the gateway kept them."
        if page.keeps_text
        else f"Texts of '{page.tenant}' are not kept (`keep_text` in params.yaml): only scores are shown."
    )
    return f"{int((agreement < 1).sum())} of {len(agreement)} judged pairs differ. {texts}"


def _cut(text: Any) -> str:
    return " ".join(text.split())[:160] if isinstance(text, str) else ""


def plot_latency(page: ShadowPage) -> Plot:
    """Draw median and P95 of the seconds of both versions."""
    answered = page.answered
    if answered.empty or page.attempt is None:
        return nothing("Seconds to the whole answer", "no pairs yet")
    figure = Plot(figsize=(8, 1.9), layout="constrained")
    axes = figure.subplots()
    plan = page.attempt.plan
    for place, who in enumerate(WHO):
        median, late = answered[f"{who}_seconds"].astype(float).quantile([0.5, 0.95])
        axes.barh(place, late, color="0.75", label="P95" if place == 0 else None)
        axes.barh(place, median, color="tab:blue", height=0.5, label="median" if place == 0 else None)
        axes.text(late, place, f" median {median:.3g} s, P95 {late:.3g} s", va="center", fontsize=8)
    axes.set_yticks([0, 1], [f"production, {plan.against}", f"shadow, {plan.adapter}"])
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set(title="Seconds to the whole answer", xlabel="seconds")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def by_hour(page: ShadowPage) -> pd.DataFrame:
    """Return one row for each clock hour with pairs: how many, and how both versions did."""
    columns = ["hour (UTC)", "pairs", "failed", "gave way", "agreement", "task", "P95 s"]
    rows = []
    for hour, mine in page.pairs.groupby(page.pairs["time"].dt.floor("h")) if len(page.pairs) else ():
        good = mine[mine["status"] == "answered"]
        counted = mine["status"].value_counts()
        task = [number(float(good[f"{who}_task"].astype(float).mean())) for who in WHO]
        late = [number(float(good[f"{who}_seconds"].astype(float).quantile(0.95))) for who in WHO]
        rows.append(
            [
                f"{hour:%Y-%m-%d %H}",
                counted.get("answered", 0),
                counted.get("failed", 0),
                counted.get("preempted", 0),
                number(float(good["agreement"].astype(float).mean())),
                " → ".join(task),
                " → ".join(late),
            ]
        )
    return pd.DataFrame(rows, columns=columns)


def decision(page: ShadowPage) -> Iterator[str]:
    """Yield what the shadow decided and what to do next."""
    if page.attempt is None:
        yield no_rollout(page.tenant)
        return
    rollout = page.attempt.rollout
    mark = f"{REPLAYED}, which is no traffic. " if page.last and page.last.replayed else ""
    if asks_by_name(rollout):
        yield f"{page.attempt.name} is a first version: requests for its name are its shadow, and no pairs."
    elif page.last is None:
        yield f"{page.attempt.name} has no pairs yet, so that nothing is decided."
    else:
        yield f"{mark}The shadow of {page.attempt.name} says {page.last.verdict}."
    yield page.attempt.state

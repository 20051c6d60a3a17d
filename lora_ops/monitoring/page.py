"""Sentences, tables and numbers of notebooks/08_monitor.ipynb: the weekly health of each adapter."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.costs import bill
from lora_ops.costs.page import CostPage
from lora_ops.errors import LoraOpsError
from lora_ops.monitoring import content_risk, latency
from lora_ops.monitoring.content_risk import RiskReport
from lora_ops.monitoring.findings import Findings, read_findings
from lora_ops.monitoring.kpi_addendum import how, interval_text
from lora_ops.monitoring.kpi_report import KpiReport
from lora_ops.monitoring.latency import LatencyReport
from lora_ops.monitoring.verdicts import QUESTIONS, Verdict, cost_text, no_uplift, verdicts, worst
from lora_ops.records.kpi import SIMULATED
from lora_ops.serving.label_cap import NOBODY
from lora_ops.small_files import write_whole


@dataclass(frozen=True)
class MonitorPage:
    """What the page shows, read once."""

    found: Findings
    verdicts: tuple[Verdict, ...]


def open_page(root: Path, window: str, tenant: str | None = None) -> MonitorPage:
    """Read what the page shows; arguments and errors as for `read_findings`."""
    found = read_findings(root, window, tenant)
    return MonitorPage(found, tuple(verdicts(found)))


def heading(page: MonitorPage) -> str:
    """Return of which time and whom the page is."""
    names = ", ".join(tenant_name(one) for one in page.found.tenants)
    return f"{page.found.window.text}: {names or 'no tenant has a version that answers, and nobody asked one'}."


def tenant_name(tenant: str) -> str:
    """Return a tenant's name for people."""
    return "no tenant" if tenant == NOBODY else tenant


def notes(page: MonitorPage) -> Iterator[str]:
    """Yield what a reader of the numbers must know: what could not be read, and what numbers leave out."""
    found = page.found
    parts = {"Latency": found.latency, "Risk": found.risk, "KPIs": found.kpis, "Costs": found.costs}
    told = [f"{name}: {part}" for name, part in parts.items() if isinstance(part, str)]
    told += [note for part in parts.values() for note in _notes(part)]
    yield from dict.fromkeys(told)  # latency and risk read the same files, and may say the same of them
    if not told:
        yield "Every source could be read, and none had a gap."


def _notes(part: LatencyReport | RiskReport | KpiReport | CostPage | str) -> Sequence[str]:
    if isinstance(part, str):
        return ()
    return part.bill.usage.notes if isinstance(part, CostPage) else part.notes


def latency_table(page: MonitorPage) -> pd.DataFrame:
    """Return one row for each adapter: its requests, and its percentiles in seconds."""
    report = page.found.latency
    columns = ["tenant", "adapter", "answered", "unanswered"]
    kinds = {"answer": "answer", "first_token": "first token", "per_token": "per token"}
    columns += [f"{shown} P{share * 100:g}" for shown in kinds.values() for share in latency.SHARES]
    rows = [
        [
            tenant_name(one.tenant),
            one.adapter,
            one.answer.count,
            one.unanswered,
            *(getattr(one, name).percentile(share) for name in kinds for share in latency.SHARES),
        ]
        for one in (() if isinstance(report, str) else report.adapters)
    ]
    return pd.DataFrame(rows, columns=columns)


def drift_said(page: MonitorPage) -> Iterator[str]:
    """Yield what the last kept measurement of each answering version says; what else differs besides."""
    for one in page.found.answering.values():
        if isinstance(one.drift, str):
            yield one.drift
            continue
        beside = f" against {one.drift.against}" if one.drift.against else ""
        yield f"{one.adapter}, measured on {one.drift.made_at:%Y-%m-%d}{beside}: {one.drift.said}."
        yield from (f"{one.adapter} differs: {what}." for what in one.drift.differs)
        if one.drift.prompts_said:
            yield f"{one.adapter}, live prompts: {one.drift.prompts_said}."
    if not page.found.answering:
        yield "No version answers, so that nothing can have drifted."


def worth_said(page: MonitorPage) -> Iterator[str]:
    """Yield the uplifts of answering versions, and what each tenant cost."""
    for tenant, one in page.found.answering.items():
        report = page.found.kpis
        mine = (
            [] if isinstance(report, str) else [each for each in report.uplifts if each.adapter == one.adapter]
        )
        for each in mine:
            mark = f"{SIMULATED.upper()}: " if each.simulated else ""
            yield f"{mark}{one.adapter} {each.kind}, {how(each)} beside {each.against}: {interval_text(each)}."
        if not mine and not isinstance(report, str):
            yield f"{no_uplift(report, tenant, one.adapter)}."
        cost = cost_text(page.found, tenant).removeprefix("; it")
        if cost:
            yield f"{tenant}{cost}."
    if not page.found.answering:
        yield "No version answers, so that none can be worth anything yet."


def decision(page: MonitorPage) -> Iterator[str]:
    """Yield one line for each question: the worst verdict, why, and what to open."""
    for question, asked in QUESTIONS.items():
        told = [one for one in page.verdicts if one.question == question]
        if not told:
            yield f"LOOK. {asked} Nothing is known: no version answers a tenant."
            continue
        one = worst(told)
        alike = [tenant_name(each.tenant) for each in told if each.state == one.state and each is not one]
        others = f" The same state: {', '.join(alike)}." if alike and one.state != "ok" else ""
        advice = "" if one.state == "ok" else f" Open {one.runbook}."
        all_of = f" All {len(told)} tenants are ok; the first:" if one.state == "ok" and alike else ""
        yield f"{one.state.upper()}. {asked}{all_of} {one.said}.{others}{advice}"


def numbers(page: MonitorPage) -> dict[str, Any]:
    """Return everything on the page for programs; a part that could not be read is its sentence."""
    found = page.found
    return {
        "start": found.window.start.isoformat(),
        "end": found.window.end.isoformat(),
        "notes": list(notes(page)),
        "verdicts": [one._asdict() for one in page.verdicts],
        "latency": found.latency
        if isinstance(found.latency, str)
        else latency.as_json(found.latency, found.objectives),
        "risk": found.risk if isinstance(found.risk, str) else content_risk.as_json(found.risk),
        "drift": {
            one.adapter: one.drift if isinstance(one.drift, str) else one.drift.model_dump(mode="json")
            for one in found.answering.values()
        },
        "kpis": found.kpis if isinstance(found.kpis, str) else found.kpis.as_json(),
        "costs": found.costs if isinstance(found.costs, str) else bill.as_json(found.costs.bill),
    }


def keep_numbers(page: MonitorPage, path: str | None) -> None:
    """Write the page's numbers as JSON, if a file is named.

    Raises:
        LoraOpsError: it can't be written.
    """
    if path is None:
        return
    try:
        write_whole(Path(path), json.dumps(numbers(page), indent=2) + "\n")
    except OSError as error:
        raise LoraOpsError(f"{path} can't be written: {error.strerror}.") from error

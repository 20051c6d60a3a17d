"""The uplift of a version as an addendum of its release notes: a later record, which rewrites nothing."""

from typing import NamedTuple

import pandas as pd

from lora_ops import __version__
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.escaping import markdown
from lora_ops.hashing import sha256_bytes
from lora_ops.monitoring.kpi_report import KpiReport
from lora_ops.monitoring.kpi_store import KpiStore
from lora_ops.records.evidence import KpiEvidence, Source
from lora_ops.records.kpi import KINDS, SIMULATED, Uplift
from lora_ops.registry.demo import is_demo
from lora_ops.registry.reports import Report, last_document
from lora_ops.registry.served_times import in_production
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version


class Addendum(NamedTuple):
    """What is filed, and the table that W&B shows of it."""

    report: Report
    table: pd.DataFrame


def addendum(registry: Registry, version: Version, found: KpiReport, store: KpiStore) -> Addendum:
    """Return the uplift of a version as evidence that is not filed yet.

    Args:
        registry: where.
        version: it is in production, or was.
        found: of its tenant.
        store: of the imports that it rests on.

    Raises:
        Refused: it was never in production, rests on simulated KPIs, or no uplift of it is known.
        LoraOpsError: what is known was filed already.
    """
    if version.number not in {one.number for one in in_production(registry.log, version.tenant)}:
        raise Refused(f"{version.id} was never in production: its release notes are not out yet.")
    mine = tuple(one for one in found.uplifts if one.adapter == version.id)
    known = [one for one in mine if one.difference is not None]
    if not known:
        said = "; ".join(dict.fromkeys(f"{one.kind}: {one.said}" for one in mine)) or "it has no KPIs"
        raise Refused(f"No uplift of {version.id} is known yet ({said}).")
    if any(one.simulated for one in mine) and not is_demo(registry):
        raise Refused(
            f"The KPIs of {version.id} are {SIMULATED}: nobody measured them, and only a demo's registry takes "
            "them. Remove that import from `.serving/kpis`."
        )
    last = last_document(registry, version, "kpi")
    if isinstance(last, KpiEvidence) and last.uplifts == mine:
        raise LoraOpsError(f"This uplift of {version.id} was filed on {last.made_at:%Y-%m-%d} already.")
    text = addendum_text(version.id, mine).encode()
    document = KpiEvidence(
        tenant=version.tenant,
        adapter=version.id,
        content_digest=version.summary.content_digest,
        made_by=f"lora-ops {__version__} monitor kpi",
        made_at=registry.clock(),
        source=Source(name=f"{version.id}-kpi.md", sha256=sha256_bytes(text), bytes=len(text)),
        uplifts=mine,
        imports=tuple(one.sha256 for one in store.imports()),
    )
    summary = ", ".join(f"{one.kind} {one.verdict} ({how(one)})" for one in known)
    mark = f"{SIMULATED.upper()}: " if any(one.simulated for one in mine) else ""
    return Addendum(Report(document, text, f"{mark}uplift: {summary}"), uplift_table(mine))


def addendum_text(adapter: str, found: tuple[Uplift, ...]) -> str:
    """Return the addendum as Markdown."""
    columns = ("KPI", "compared", "with it", "without", "uplift (95 %)", "units", "verdict")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for one in found:
        cells = (
            f"{one.kind} ({KINDS[one.kind].title})",
            f"{how(one)}, beside {one.against}",
            _number(one.value),
            _number(one.baseline),
            interval_text(one),
            f"{one.units} and {one.baseline_units}",
            one.verdict,
        )
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    days = f"{min(filter(None, (one.first_at for one in found))):%Y-%m-%d}"
    last = f"{max(filter(None, (one.last_at for one in found))):%Y-%m-%d}"
    said = sorted({f"- {markdown(f'{how(one)}: {one.said}')}." for one in found if one.difference is not None})
    mark = (
        f"**{SIMULATED.upper()}: nobody measured these KPIs.**" if any(one.simulated for one in found) else ""
    )
    title = f"## KPIs of {adapter}, {days} to {last}"
    return "\n\n".join(filter(None, (title, mark, "\n".join(lines), "\n".join(said)))) + "\n"


def uplift_table(found: tuple[Uplift, ...]) -> pd.DataFrame:
    """Return one row for each uplift, as W&B and notebooks show it."""
    names = ["kind", "method", "against", "value", "baseline", "difference", "low", "high", "units"]
    rows = [{**one.model_dump(include={*names, "baseline_units"}), "verdict": one.verdict} for one in found]
    return pd.DataFrame(rows, columns=[*names, "baseline_units", "verdict"])


def interval_text(uplift: Uplift) -> str:
    """Return an uplift for people: the difference, its interval, and which part of the other mean it is."""
    if uplift.difference is None:
        return uplift.said
    part = f" ({uplift.relative:+.1%})" if uplift.relative is not None else ""
    return f"{uplift.difference:+.3g} [{uplift.low:+.3g}, {uplift.high:+.3g}]{part}"


def how(uplift: Uplift) -> str:
    """Return what a version was compared with, in a word."""
    return "canary" if uplift.method == "canary" else "before/after"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

"""Sentences, plots and tables of notebooks/09_cost.ipynb: what adapters cost, and which nobody needs."""

from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lora_ops.costs.bill import MONTH_HOURS, Bill, bill
from lora_ops.costs.needed import needed_reason
from lora_ops.costs.usage import HOUR, usage_in
from lora_ops.escaping import plot_text
from lora_ops.plots import Plot
from lora_ops.registry.backends import open_registry
from lora_ops.registry.database import MissingRegistry
from lora_ops.registry.store import Registry
from lora_ops.rollout.sequence_plots import nothing
from lora_ops.settings.params import load_settings
from lora_ops.windows import last

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSED_BY_ALL = ("superseded", "rejected")
"""States in which a version may be archived."""
NOTHING = "nothing was used yet"


@dataclass(frozen=True)
class CostPage:
    """What the page of costs shows, read once.

    Attributes:
        bill: of the window.
        unasked: versions of the registry that answered nothing in the window: rows of the bill, with `month`
            (what they cost in a month, if all go on as in this window) and `keeps` (why one must stay, or an
            empty text where it may be archived).
    """

    bill: Bill
    unasked: pd.DataFrame


def open_bill(root: Path, window: str, tenant: str | None = None, *, allocate: bool = False) -> CostPage:
    """Read what was used in a window that ends now, and what it costs.

    Args:
        root: of the repository.
        window: such as `7d`.
        tenant: whose rows; None: all.
        allocate: as `bill` has it.

    Raises:
        LoraOpsError: the window is none, or a file can't be read.
        NotFound: there is no such tenant.
    """
    settings = load_settings(root)
    if tenant is not None:
        settings.tenant(tenant)
    now = datetime.now(UTC)
    usage = usage_in(root / settings.serving.path, last(window, now), now)
    try:
        registry = open_registry(root)
    except MissingRegistry:
        return CostPage(_of(bill(usage, [], settings.costs, allocate=allocate), tenant), pd.DataFrame())
    with closing(registry):
        made = _of(bill(usage, registry.summaries(), settings.costs, allocate=allocate), tenant)
        return CostPage(made, _unasked(made, registry))


def _of(made: Bill, tenant: str | None) -> Bill:
    """Return a bill with one tenant's rows; the devices stay those of all."""
    if tenant is None:
        return made
    mine = made.versions[made.versions["tenant"] == tenant].reset_index(drop=True)
    return replace(made, versions=mine)


def _unasked(made: Bill, registry: Registry) -> pd.DataFrame:
    """Return the versions of the registry that answered nothing in the window, the dearest first."""
    frame = made.versions
    # A copy in shadow is what its version is there for.
    shadow = frame["shadow_cpu_seconds"] + frame["shadow_gpu_seconds"]
    found = frame[(frame["requests"] == 0) & (shadow == 0) & frame["state"].notna()].copy()
    hours = made.usage.window.hours
    found["month"] = (found["memory"] + found["storage"]) * MONTH_HOURS / hours
    found["keeps"] = [_keeps(registry, version) for version in found["version"]]
    return found.sort_values(["month", "version"], ascending=[False, True], ignore_index=True)


def _keeps(registry: Registry, reference: str) -> str:
    """Return why a version must stay where it is, or an empty text where it may be archived."""
    version = registry.get_exact(reference, whole=False)
    if version.state in ("archived", "revoked"):
        return f"is '{version.state}' already"
    needed = needed_reason(registry, version)
    if needed:
        return needed
    return "" if version.state in CLOSED_BY_ALL else f"is '{version.state}': its team decides"


def heading(page: CostPage) -> str:
    """Return what the window cost, and for whom most of it was."""
    made = page.bill
    whose = made.tenants.sort_values("total", ascending=False)
    text = (
        f"{made.usage.window.text}: devices were up for {money(made, made.money('up'))}, of which requests "
        f"caused {money(made, made.money('busy'))}, shared work {money(made, made.money('shared'))}, and "
        f"{money(made, made.money('idle'))} was idle."
    )
    if len(whose) and whose["total"].iloc[0] > 0:
        first = whose.iloc[0]
        text += f" {first['tenant']} cost most: {money(made, first['total'])}."
    return text


def notes(page: CostPage) -> list[str]:
    """Return what a reader of the numbers must know."""
    return page.bill.usage.notes or ["Everything is known: each gateway wrote its lines, and none was killed."]


def money(made: Bill, amount: float) -> str:
    """Return an amount with its currency: cents, or four digits where it is less than one."""
    if 0 < amount < 0.0001:
        return f"under 0.0001 {made.currency}"
    return f"{amount:,.2f} {made.currency}" if amount >= 1 or not amount else f"{amount:.4f} {made.currency}"


def plot_devices(page: CostPage) -> Plot:
    """What became of the time that devices were up, by kind."""
    devices = {kind: one for kind, one in page.bill.usage.devices.items() if one.up or one.unknown}
    if not devices:
        return nothing("Time of devices", NOTHING)
    figure = Plot(figsize=(8, 1.4 + 0.5 * len(devices)), layout="constrained")
    axes = figure.subplots()
    parts = (("busy", "tab:blue"), ("shared", "tab:orange"), ("idle", "0.85"), ("unknown", "tab:red"))
    for row, one in enumerate(devices.values()):
        left = 0.0
        for name, colour in parts:
            hours = getattr(one, name) / HOUR
            axes.barh(row, hours, left=left, color=colour, label=name if row == 0 else None)
            left += hours
    _finish(axes, list(devices), "Time of devices", "hours times devices")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def plot_tenants(page: CostPage) -> Plot:
    """What each tenant cost: its requests' device time, memory of its adapters, and stored files."""
    frame = page.bill.tenants
    if frame.empty:
        return nothing("Cost of tenants", NOTHING)
    figure = Plot(figsize=(8, 1.4 + 0.4 * len(frame)), layout="constrained")
    axes = figure.subplots()
    used = frame["memory"] - frame["unused_memory"]
    parts = [
        ("device", frame["device"], "tab:blue"),
        ("memory, used", used, "tab:green"),
        ("memory, not used", frame["unused_memory"], "0.75"),
        ("storage", frame["storage"], "tab:brown"),
        ("allocated", frame["allocated"], "tab:orange"),
    ]
    left = pd.Series(0.0, index=frame.index)
    for name, values, colour in parts:
        if values.any():
            axes.barh(range(len(frame)), values, left=left, color=colour, label=name)
            left = left + values
    _finish(axes, list(frame["tenant"]), "Cost of tenants", page.bill.currency)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def plot_memory(page: CostPage) -> Plot:
    """Memory that each version held, and the part of it in which nothing was answered with it."""
    frame = page.bill.versions[page.bill.versions["held_gib_hours"] > 0]
    if frame.empty:
        return nothing("Memory that adapters held", NOTHING)
    figure = Plot(figsize=(8, 1.4 + 0.4 * len(frame)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(frame))
    axes.barh(rows, frame["held_gib_hours"], color="0.85", label="not used")
    axes.barh(rows, frame["held_gib_hours"] - frame["unused_gib_hours"], color="tab:green", label="used")
    _finish(axes, list(frame["version"]), "Memory that adapters held", "GiB hours")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def version_table(page: CostPage) -> pd.DataFrame:
    """Return one row for each version: what it used and what it cost."""
    frame = page.bill.versions
    return pd.DataFrame(
        {
            "version": frame["version"],
            "state": frame["state"].map(lambda state: state or "not in the registry"),
            "requests": frame["requests"].astype(int),
            "hit rate": frame["hit_rate"].map(lambda rate: "" if rate != rate else f"{rate:.0%}"),
            "tokens": (frame["prompt_tokens"] + frame["generated_tokens"]).astype(int),
            "device s": frame["cpu_seconds"] + frame["gpu_seconds"],
            "loads": frame["loads"].astype(int),
            "GiB·h held": frame["held_gib_hours"],
            "GiB·h not used": frame["unused_gib_hours"],
            page.bill.currency: frame["total"],
        }
    )


def unasked_table(page: CostPage) -> pd.DataFrame:
    """Return the versions that answered nothing, what each costs in a month, and what keeps it."""
    frame = page.unasked
    if frame.empty:
        return pd.DataFrame(columns=["version", "state", "a month", "kept, since it"])
    return pd.DataFrame(
        {
            "version": frame["version"],
            "state": frame["state"],
            "a month": [money(page.bill, amount) for amount in frame["month"]],
            "kept, since it": frame["keeps"],
        }
    )


def decision(page: CostPage) -> list[str]:
    """Return what to do, the command included."""
    made, frame = page.bill, page.unasked
    free = frame[(frame["keeps"] == "") & (frame["month"] > 0)] if len(frame) else frame
    said = []
    if len(free):
        names, saved = list(free["version"]), money(made, free["month"].sum())
        said.append(
            f"Archive {_listed(names)}: nobody asked for {'it' if len(names) == 1 else 'them'} in "
            f"{made.usage.window.hours / 24:g} days, and {saved} a month is saved."
        )
        said += [f"lora-ops registry archive {name} --reason 'nobody asks for it'" for name in names]
    else:
        said.append("Archive nothing: each version that costs anything was asked, or is kept for a reason.")
    up = made.money("up")
    if up and made.money("idle") > up / 2:
        said.append(
            f"Devices were idle for {made.money('idle') / up:.0%} of their cost: run fewer, or scale by tokens."
        )
    return said


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"these {len(names)} ({', '.join(names)})"


def _finish(axes: "Axes", names: list[str], title: str, unit: str) -> None:
    axes.set_yticks(range(len(names)), [plot_text(name) for name in names])
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)

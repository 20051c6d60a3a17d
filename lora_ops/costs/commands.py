"""`lora-ops cost`: what each tenant and version used in a window, and what that costs."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lora_ops.escaping import markup, show
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json

WINDOW = "7d"
COLUMNS = ("version", "requests", "hits", "tokens", "device s", "GiB·h", "unused", "cost", "of it unused")


def cost(
    window: Annotated[str, typer.Option(help="Up to now, such as 24h or 7d.")] = WINDOW,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's rows.")] = None,
    allocate: Annotated[
        bool, typer.Option("--allocate", help="Share idle and shared time out, by parts of the busy time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what each version used of devices, memory and storage, and what that costs."""
    from lora_ops.costs import bill
    from lora_ops.costs.page import open_bill
    from lora_ops.registry.command_options import note_lines, print_lines
    from lora_ops.settings.files import find_root

    found = open_bill(find_root(), window, tenant, allocate=allocate).bill
    if as_json:
        print_json(bill.as_json(found))
        return
    table = Grid(*COLUMNS, solid=frozenset(COLUMNS))
    for row in found.versions.to_dict("records"):
        table.add_row(*_cells(row))
    print_lines(f"{found.usage.window.text}, {found.currency}", table)
    for kind, seconds in found.usage.devices.items():
        money = found.devices[kind]
        if seconds.up or seconds.unknown:
            parts = ", ".join(
                f"{name} {getattr(seconds, name) / 3600:,.3f} h ({getattr(money, name):,.4f})"
                for name in ("busy", "shared", "idle")
            )
            unknown = f"; unknown {seconds.unknown / 3600:,.3f} h" if seconds.unknown else ""
            show(markup(f"{kind}: up {seconds.up / 3600:,.3f} h = {parts}{unknown}"))
    print_lines(*note_lines(found.usage.notes))


def _cells(row: Mapping[Any, Any]) -> list[str]:
    rate = row["hit_rate"]
    return [
        row["version"],
        f"{row['requests']:,.0f}",
        "" if rate != rate else f"{rate:.0%}",
        f"{row['prompt_tokens'] + row['generated_tokens']:,.0f}",
        f"{row['cpu_seconds'] + row['gpu_seconds']:,.2f}",
        f"{row['held_gib_hours']:,.4f}",
        f"{row['unused_gib_hours']:,.4f}",
        f"{row['total']:,.4f}",
        f"{row['unused_memory']:,.4f}",
    ]

"""`lora-ops monitor latency`."""

from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json

if TYPE_CHECKING:
    from lora_ops.monitoring.latency import LatencyReport, Times


def latency(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant; default: all of them.")] = None,
    window: Annotated[str, typer.Option(help="Up to now, such as 30m, 12h or 7d.")] = "7d",
    prometheus: Annotated[
        str | None, typer.Option(help="Its address; default: objectives.prometheus of params.yaml.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="auto, prometheus or log; default: auto, and prometheus where --prometheus is given."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show percentiles of each adapter's answers; ends with 1 where an objective of params.yaml was missed."""
    from datetime import UTC, datetime
    from typing import get_args

    from lora_ops.errors import LoraOpsError
    from lora_ops.escaping import markup, show
    from lora_ops.monitoring import latency as reading
    from lora_ops.monitoring.prometheus import Prometheus
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.windows import last

    now = datetime.now(UTC)
    length = round(last(window, now).hours * 3600)
    chosen = source or ("prometheus" if prometheus else "auto")
    asked: reading.Asked | None = next((one for one in get_args(reading.Asked) if one == chosen), None)
    if asked is None:
        raise LoraOpsError(f"--source is auto, prometheus or log, got '{chosen}'.")
    root = find_root()
    settings = load_settings(root)
    if tenant is not None:
        settings.tenant(tenant)
    url = prometheus.rstrip("/") if prometheus else settings.objectives.prometheus
    found = reading.read_latency(root / settings.serving.path / "events", Prometheus(url), length, now, asked)
    report = found.of(tenant)
    missed = reading.missed(report, settings.objectives)
    if as_json:
        print_json(reading.as_json(report, settings.objectives))
    else:
        _show(report, window)
        for text in (*report.notes, *(one.said for one in missed)):
            show(markup(text))
        if not missed and report.adapters:
            show("Every adapter kept its objectives.")
    if missed:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _show(report: "LatencyReport", window: str) -> None:
    from lora_ops.escaping import show
    from lora_ops.grid import Grid

    if not report.adapters:
        show(f"Nobody asked an adapter in the last {window}.")
        return
    columns = ("adapter", "seconds of", "count", "P50", "P95", "P99", "exact P95")
    where = "Prometheus" if report.source == "prometheus" else "the event log"
    table = Grid("tenant", *columns, solid={*columns}, title=f"The last {window}, from {where}")
    for one in report.adapters:
        kinds = (("answer", one.answer), ("first token", one.first_token), ("per token", one.per_token))
        for place, (name, times) in enumerate(kinds):
            who = (one.tenant, one.adapter) if place == 0 else ("", "")
            table.add_row(*who, name, f"{times.count:,}", *_percentiles(times))
    show(table)


def _percentiles(times: "Times") -> list[str]:
    values = [times.percentile(share) for share in (0.5, 0.95, 0.99)]
    exact = times.exact[1] if times.exact else None
    return ["" if one is None else f"{one:.3f}" for one in (*values, exact)]

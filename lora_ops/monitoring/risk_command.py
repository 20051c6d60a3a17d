"""`lora-ops monitor risk`."""

from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import Actor, head_remembered, opened_registry, who
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.monitoring.content_risk import RiskReport


def risk(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant; default: all of them.")] = None,
    file: Annotated[
        bool,
        typer.Option("--file", help="File each broken budget as an incident of its version, once a window."),
    ] = False,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Show how many answers were risky and what is left of each budget; ends with 1 where one is broken."""
    from datetime import UTC, datetime

    from lora_ops.escaping import markup, show
    from lora_ops.monitoring import content_risk
    from lora_ops.monitoring.corrected_risk import read_corrected_risk
    from lora_ops.monitoring.risk_incidents import file_incidents
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    if tenant is not None:
        settings.tenant(tenant)
    facts = {}
    with prose_on_stderr(as_json), opened_registry() as registry:
        report = read_corrected_risk(root, settings, registry, datetime.now(UTC)).of(tenant)
        filed = file_incidents(registry, report, actor=who(actor)) if file else None
        if filed and filed.incidents:
            facts = head_remembered(registry)
    work_is_done()
    if as_json:
        told = {
            "filed": [one.model_dump(mode="json") for one in filed.incidents] if filed else [],
            "not_filed": list(filed.not_filed) if filed else [],
        }
        print_json({**content_risk.as_json(report), **told, **facts})
    else:
        _show(report)
        for text in (*report.notes, *(f"{one.said}." for one in report.risks if one.verdict != "kept")):
            show(markup(text))
        for incident in filed.incidents if filed else ():
            show(markup(f"Filed as an incident of {incident.adapter}: {incident.kind}."))
        for text in filed.not_filed if filed else ():
            show(markup(f"Not filed: {text}"))
    raise typer.Exit(ExitCode.CHECK_FAILED if report.broken else ExitCode.OK)


def _show(report: "RiskReport") -> None:
    from lora_ops.escaping import show
    from lora_ops.grid import Grid

    days = (report.end - report.start).days
    if not report.risks:
        show(f"No adapter answered in the last {days} days.")
        return
    windows = list(report.risks[0].burn_rates)
    numbers = ("scored", "risky", "share (95 %)", "budget", "burnt", *(f"burn {one}" for one in windows))
    table = Grid(
        "tenant", "adapter", "kind", *numbers, "verdict", solid={*numbers}, title=f"The last {days} days"
    )
    for one in report.risks:
        share = one.share
        table.add_row(
            one.tenant,
            one.adapter or "all",
            one.kind,
            f"{one.scored:,}",
            f"{one.flagged:,}",
            f"{share.value:.2%} ({share.low:.2%} to {share.high:.2%})" if share else "",
            f"{one.budget:.2%}",
            "" if one.burnt is None else f"{one.burnt:.0%}",
            *("" if rate is None else f"{rate:.2g}" for rate in one.burn_rates.values()),
            one.verdict,
        )
    show(table)

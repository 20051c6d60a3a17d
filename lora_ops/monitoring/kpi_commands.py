"""`lora-ops monitor kpi`: what readers and customers do with a version's answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import (
    Actor,
    ExactReference,
    check_tenant,
    head_remembered,
    note_lines,
    opened_registry,
    print_lines,
    who,
)
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.monitoring.kpi_report import KpiReport
    from lora_ops.records.kpi import KpiImport, Uplift

app = typer.Typer(
    help="KPIs of each version: import them, and see what a version changed.",
    invoke_without_command=True,
    add_completion=False,
)


@app.callback()
def kpi(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show each version's KPIs, its uplift with its 95 % interval, and which version nobody measures."""
    if context.invoked_subcommand is not None:
        return
    from lora_ops.monitoring.kpi_report import kpi_report
    from lora_ops.monitoring.kpi_store import KpiStore
    from lora_ops.records.kpi import FOLDER
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    with opened_registry() as registry:
        check_tenant(registry, tenant)
        report = kpi_report(KpiStore(root / settings.serving.path / FOLDER), registry, settings.kpis, tenant)
    if as_json:
        print_json(report.as_json())
        return
    _show_report(report)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet; docs/monitoring.md says with which columns.")],
    zone: Annotated[
        str | None,
        typer.Option(help="Of times that name none, such as Europe/Berlin; default: refuse them."),
    ] = None,
    rejected: Annotated[
        Path | None, typer.Option(help="A new CSV file for every row that does not count, with its reason.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import a file of KPIs; the same file counts once, and so does a row that an earlier file had.

    Ends with 1 where no row counts.
    """
    from datetime import UTC, datetime

    from lora_ops.errors import LoraOpsError
    from lora_ops.exit_codes import ExitCode
    from lora_ops.monitoring.kpi_import import import_kpis, write_rejected
    from lora_ops.monitoring.kpi_store import KpiStore
    from lora_ops.records.kpi import FOLDER
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    folder = root / settings.serving.path
    if rejected is not None and rejected.exists():  # before anything is kept
        raise LoraOpsError(f"{rejected} exists already: name a new file.")
    with opened_registry() as registry:
        versions = {one.id: one.content_digest for one in registry.summaries()}
    made = import_kpis(file, folder, versions, settings.kpis, datetime.now(UTC), zone)
    if rejected is not None:
        write_rejected(KpiStore(folder / FOLDER), made, rejected)
    work_is_done()
    if as_json:
        print_json({**made.model_dump(mode="json"), "rejected_rows": made.rejected_rows})
    else:
        print_lines(*_import_lines(made))
    if not made.joined:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@app.command()
def file(reference: ExactReference, actor: Actor = None, as_json: AsJson = False) -> None:
    """File a version's uplift as an addendum of its release notes (`lora-ops release show`), and tell W&B."""
    from lora_ops.monitoring.kpi_addendum import addendum
    from lora_ops.monitoring.kpi_report import kpi_report
    from lora_ops.monitoring.kpi_store import KpiStore
    from lora_ops.records.kpi import FOLDER
    from lora_ops.registry import lifecycle
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.tracking.gates import log_kpis

    root = find_root()
    settings = load_settings(root)
    store = KpiStore(root / settings.serving.path / FOLDER)
    with opened_registry() as registry:
        version = registry.get_exact(reference)
        found = kpi_report(store, registry, settings.kpis, version.tenant)
        report, table = addendum(registry, version, found, store)
        lifecycle.file_evidence(registry, version.id, report, actor=who(actor))
        remembered = head_remembered(registry)
    work_is_done()
    text = report.source.decode()
    with prose_on_stderr(as_json):
        problem = log_kpis(version.id, version.manifest, {"uplift": table}, text, settings.tracking, root)
    if as_json:
        document = {**report.document.model_dump(mode="json"), "sha256": report.reference.sha256}
        print_json({**document, "tracking_problem": problem, **remembered})
        return
    print_lines(f"[bold]{version.id}[/]: {markup(report.summary)} ({report.reference.sha256[:12]}…).")
    print_lines(*note_lines([problem] if problem else []))


def _import_lines(made: "KpiImport") -> list[str]:
    by_time = made.joined - made.by_request
    how = f"{made.by_request:,} by request" + (f", {by_time:,} by time and share" if by_time else "")
    lines = [f"{markup(made.name)}: {made.joined:,} of {made.rows:,} rows count ({how})."]
    if made.repeated:
        lines.append(f"{made.repeated:,} of them are in an earlier import, and count once.")
    for one in made.rejected:
        first = ", ".join(map(str, one.first))
        lines.append(
            f"  {one.rows:,} left out: {markup(one.reason)} (rows {first}{', …' if one.rows > 5 else ''})"
        )
    if made.left_out:
        lines.append(f"Columns that nobody reads: {markup(', '.join(made.left_out))}.")
    return lines


def _show_report(report: "KpiReport") -> None:
    from lora_ops.monitoring.kpi_addendum import how, interval_text

    if not report.versions:
        print_lines("No KPIs yet: `lora-ops monitor kpi import FILE` takes some.")
        return
    columns = ("version", "kpi", "mean", "users", "rows", "last")
    grid = Grid(*columns, solid={*columns})
    for one in report.versions:
        last = f"{one.last_at:%Y-%m-%d}"
        grid.add_row(one.adapter, one.kind, f"{one.mean:.4g}", f"{one.users:,}", f"{one.rows:,}", last)
    show(grid)
    if report.uplifts:
        shown = ("version", "against", "kpi", "how", "uplift (95 %)", "units", "verdict")
        grid = Grid(*shown, solid={*shown} - {"uplift (95 %)"})
        for each in report.uplifts:
            units = f"{each.units:,} + {each.baseline_units:,}"
            cells = (each.adapter, each.against, each.kind, how(each), interval_text(each), units, each.verdict)
            grid.add_row(*cells)
        show(grid)
        print_lines(*sorted({f"{markup(_said(one))}." for one in report.uplifts if one.difference is not None}))
    for late in report.unmeasured:
        print_lines(f"{late.adapter} ({late.state}) has had no KPI for {late.weeks} weeks: retire it?")
    print_lines(*note_lines(report.notes))


def _said(uplift: "Uplift") -> str:
    from lora_ops.monitoring.kpi_addendum import how

    return f"{how(uplift)}: {uplift.said}"

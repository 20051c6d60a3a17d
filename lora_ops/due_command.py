"""`lora-ops registry due`: what the registry's dates and a version's KPIs ask of somebody."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json, print_problem
from lora_ops.registry import tables
from lora_ops.registry.command_options import check_tenant, opened_registry, print_lines

if TYPE_CHECKING:
    from lora_ops.registry.status import Due
    from lora_ops.registry.store import Registry


def due(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None,
    check: Annotated[bool, typer.Option("--check", help="End with 1 where anything is due.")] = False,
    as_json: AsJson = False,
) -> None:
    """Overdue reviews, data that expires within 14 days, and versions to retire: nobody measures their KPIs."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry.status import due as due_
    from lora_ops.settings.files import find_root

    problem = None
    with opened_registry() as registry:
        check_tenant(registry, tenant)
        items = due_(registry, tenant)
        try:
            items += _retirements(find_root(), registry, tenant)
        except LoraOpsError as error:  # of a KPI file, which hides no review
            problem = error
    items.sort(key=lambda item: item.at)
    if as_json:
        print_json([item._asdict() for item in items])
    elif items:
        print_lines(tables.due(items))
    elif not problem:
        print_lines("Nothing is due: no overdue review, no data that expires within 14 days, no retirement.")
    if problem:
        print_problem(f"No retirement is listed. {problem}")
        raise typer.Exit(problem.exit_code)
    if check and items:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _retirements(root: Path, registry: "Registry", tenant: str | None) -> "list[Due]":
    """Return each version that answers and has had no KPI for `kpis.retire_weeks`.

    Raises:
        LoraOpsError: an import of KPIs can't be read, or was changed.
    """
    from lora_ops.clock import utc
    from lora_ops.records.kpi import FOLDER
    from lora_ops.registry.status import Due
    from lora_ops.settings.params import load_settings

    settings = load_settings(root)
    folder = root / settings.serving.path / FOLDER
    if not folder.is_dir():  # what reads KPIs takes longer to load than all the rest
        return []
    from lora_ops.monitoring.kpi_report import unmeasured_versions
    from lora_ops.monitoring.kpi_store import KpiStore

    weeks = timedelta(weeks=settings.kpis.retire_weeks)
    return [
        Due(
            one.adapter,
            "retirement",
            utc(one.since + weeks),
            True,
            one.state,
            registry.owners.team(one.adapter.partition("@")[0]).team if registry.owners else None,
        )
        for one in unmeasured_versions(KpiStore(folder), registry, settings.kpis, tenant)
    ]

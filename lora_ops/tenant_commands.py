"""`lora-ops tenant`: the tenants of params.yaml, and what their data must hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import markup, show
from lora_ops.exit_codes import ExitCode
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, help="The tenants of params.yaml.")


@app.command("add")
def tenant_add(
    name: Annotated[str, typer.Argument(help="Lower case, such as support.")],
    source: Annotated[str, typer.Argument(help="A .csv, .jsonl, .parquet or .py file inside the repository.")],
    template: Annotated[str, typer.Option(help="The prompt, columns as {name}.")] = "{text}",
    target: Annotated[str, typer.Option(help="The column with the right answer.")] = "label",
    task: Annotated[str, typer.Option(help="labels, or text for free answers.")] = "labels",
    group: Annotated[
        str | None, typer.Option(help="The column whose values must not be in two splits.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    encoding: Annotated[str, typer.Option(help="Of a CSV or JSONL file, such as latin-1.")] = "utf-8",
    delimiter: Annotated[str, typer.Option(help="Of a CSV file, such as ; or tab.")] = ",",
    on_pii: Annotated[
        str, typer.Option(help="Rows with direct identifiers: stop, drop them, or redact them.")
    ] = "stop",
    license: Annotated[str, typer.Option(help="Licence of the adapter.")] = "proprietary",
    as_json: AsJson = False,
) -> None:
    """Check a file of your own and make it a tenant: its entry is written into params.yaml."""
    from lora_ops.datasets.contract import failed_rows, require
    from lora_ops.named_paths import follow
    from lora_ops.settings.files import find_root
    from lora_ops.settings.tenant import TenantSettings
    from lora_ops.tenants import REMEDIES, add_tenant, check_new_name, check_tenant, draft_tenant

    root = find_root()
    check_new_name(name, root)
    inside = follow(Path(source), "SOURCE")
    if not inside.is_relative_to(root):
        raise LoraOpsError(f"{source} is outside the repository: copy it to data/sources/ first.")
    with prose_on_stderr(as_json):
        entry = draft_tenant(
            inside.relative_to(root).as_posix(),
            root,
            template=template,
            target=target,
            task=task,
            group=group,
            system=system,
            encoding=encoding,
            delimiter="\t" if delimiter == "tab" else delimiter,
            on_pii=on_pii,
            license=license,
        )
    with prose_on_stderr(as_json):  # a script may print
        contract, warnings = check_tenant(name, TenantSettings.model_validate(entry), root)
    if not contract.success and not as_json:
        show(_grid(failed_rows(contract), title=f"Rows of {source} that fail"))
    require(contract, REMEDIES)
    add_tenant(name, entry, root)
    work_is_done()
    if as_json:
        record = contract.model_dump(mode="json")
        print_json({"tenant": name, "entry": entry, "contract": record, "warnings": warnings})
        return
    _show_warnings(warnings)
    show(
        f"{name}: {contract.rows} rows pass {len(contract.checks)} checks; its entry is in params.yaml. "
        f"Next: dvc repro package@{name}"
    )


@app.command("list")
def tenant_list(as_json: AsJson = False) -> None:
    """Show every tenant of params.yaml with its data and its rows."""
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    tenants = load_settings(find_root()).tenants
    if as_json:
        print_json({name: tenant.model_dump(mode="json") for name, tenant in tenants.items()})
        return
    columns = ("tenant", "answers", "train", "validation", "test", "licence")
    table = Grid(*columns, "source", solid={*columns})
    for name, tenant in tenants.items():
        data, rows = tenant.data, tenant.data.rows
        answers = f"{len(data.labels)} labels" if data.task == "labels" else "text"
        counts = (str(rows.train), str(rows.validation), str(rows.test))
        table.add_row(name, answers, *counts, tenant.package.license, data.source)
    show(table)


@app.command("remove")
def tenant_remove(
    name: Annotated[str, typer.Argument(help="A tenant of params.yaml.")], as_json: AsJson = False
) -> None:
    """Take a tenant out of params.yaml; its versions stay in the registry."""
    from lora_ops.settings.files import find_root
    from lora_ops.tenants import remove_tenant

    remove_tenant(name, find_root())
    work_is_done()
    if as_json:
        print_json({"removed": name})
        return
    show(f"{name} is no tenant of params.yaml any more; its versions stay in the registry.")


@app.command("check")
def tenant_check(
    name: Annotated[str, typer.Argument(help="A tenant of params.yaml.")],
    docs: Annotated[
        bool, typer.Option("--docs", help="Also write great-expectations' pages to reports/NAME/data_docs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold a tenant's source against its contract without training anything."""
    from lora_ops.datasets.contract import checks_table, failed_rows, require
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.tenants import check_tenant, document_tenant

    root = find_root()
    settings = load_settings(root).tenant(name)
    with prose_on_stderr(as_json):  # a source in Python may print
        contract, warnings = check_tenant(name, settings, root)
        page = document_tenant(name, settings, root) if docs else None
    if as_json:
        more = {"warnings": warnings, "docs": str(page) if page else None}
        print_json({"ok": contract.success, **contract.model_dump(mode="json"), **more})
        raise typer.Exit(ExitCode.OK if contract.success else ExitCode.INVALID)
    show(_grid(checks_table(contract), title=f"{name}: {contract.rows} rows"))
    if not contract.success:
        show(_grid(failed_rows(contract), title="Rows that fail"))
    _show_warnings(warnings)
    if page:
        show(markup(f"The contract as pages, for a browser: {page.relative_to(root)}"))
    require(contract)


def _show_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        show(markup(f"Warning: {warning}."))


def _grid(frame: "pd.DataFrame", title: str) -> Grid:
    solid = {"row", "result", "rows found"}.intersection(frame.columns)
    table = Grid(*frame.columns, solid=solid, title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    return table

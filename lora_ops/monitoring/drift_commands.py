"""`lora-ops monitor drift` and `drift-set`: has an adapter moved, and the rows that are asked for it."""

from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.exit_codes import ExitCode
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import Actor, head_remembered, opened_registry, print_lines, who
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.monitoring.drift import Found

NUMBERS = ("adapter", "base", "difference", "counts from", "corrected p", "beside base")


def drift(
    asked: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VERSION]...", help="finance@3 or finance; default: what answers each tenant."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A version whose reference is compared with; default: its own.")
    ] = None,
    new_reference: Annotated[
        bool, typer.Option("--new-reference", help="Compare with nothing: later runs compare with this one.")
    ] = False,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Measure versions on their tenants' drift sets, compare with their references, and file the verdict.

    Exit code 1: a version drifted, nobody can tell, live prompts moved, or a tenant could not be measured.
    """
    from lora_ops.errors import LoraOpsError
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    if against and new_reference:
        raise LoraOpsError("--new-reference compares with nothing: leave --against out.")
    if against and not asked:
        raise LoraOpsError("--against compares one tenant's versions: name them.")
    root = find_root()
    settings = load_settings(root)
    with prose_on_stderr(as_json), opened_registry() as registry:
        from lora_ops.monitoring.drift import check  # ten seconds of an engine, which no registry needs

        done = check(
            registry, root, settings, asked or (), against=against, renew=new_reference, actor=who(actor)
        )
        remembered = head_remembered(registry)
    work_is_done()
    if as_json:
        documents = [
            {**one.document.model_dump(mode="json"), "sha256": one.evidence_sha256} for one in done.found
        ]
        print_json({"versions": documents, "not_measured": done.not_measured, **remembered})
    else:
        for one in done.found:
            _show(one)
        print_lines(*(f"[red]{markup(name)}[/]: {markup(why)}" for name, why in done.not_measured.items()))
    moved = any(
        one.document.verdict in ("drifted", "cannot tell") or one.document.prompts_moved for one in done.found
    )
    raise typer.Exit(ExitCode.CHECK_FAILED if moved or done.not_measured else ExitCode.OK)


def drift_set(
    tenant: Annotated[str, typer.Argument(help="A tenant of params.yaml.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Draw another one: each version then needs a new reference.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Draw a tenant's drift set from its held-out rows, to suites/TENANT.drift.jsonl; commit it."""
    from lora_ops.monitoring.drift_set import draw_drift_set, write_drift_set
    from lora_ops.records.example import read_split
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    seed = settings.tenant(tenant).data.seed
    held_out = read_split(root / "data/prepared" / tenant, "test")
    rows = draw_drift_set(held_out, settings.drift.rows, seed)
    path = write_drift_set(root, tenant, rows, replace=replace)
    work_is_done()
    if as_json:
        print_json({"tenant": tenant, "file": str(path), "rows": len(rows)})
    else:
        file = markup(str(path.relative_to(root)))
        print_lines(f"Written: {len(rows)} rows to {file}. Look at them, and commit the file.")


def _show(found: "Found") -> None:
    document = found.document
    colour = {"none": "green", "reference": "green", "drifted": "red", "cannot tell": "yellow"}
    beside = f", against {document.against}" if document.against else ""
    print_lines(
        f"[bold]{found.version.id}[/]{markup(beside)}: "
        f"[{colour[document.verdict]}]{markup(document.said)}[/], {document.rows} rows."
    )
    print_lines(*(f"  differs: {markup(one)}" for one in document.differs))
    prompts, told = document.prompts, document.prompts_said or "-"
    if prompts:
        moved = "[red]moved[/]" if document.prompts_moved else "as before"
        told = (
            f"{moved}, {prompts.difference:.2g} bits beyond the spread of training rows ({prompts.least:g} "
            f"counts, p {prompts.p_value:.2g}, {prompts.prompts} prompts)"
        )
    print_lines(f"  live prompts: {told if prompts else markup('not compared: ' + told)}.")
    if not document.metrics:
        return
    table = Grid("moved by", *NUMBERS, "answers changed", solid={*NUMBERS})
    for one in document.metrics:
        table.add_row(
            one.name if one.is_judged else f"{one.name}, not judged",
            f"{one.adapter:.3g}",
            f"{one.base:.3g}",
            f"{one.difference:.3g} ({one.low:.3g} to {one.high:.3g})",
            f"{one.least:g}",
            f"{one.p_corrected:.2g}",
            f"{one.beside_base:.3g}",
            "-" if one.changed is None else f"{one.changed:.0%}",
        )
    show(table)

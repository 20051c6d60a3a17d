"""`lora-ops registry`, for whoever reads it: tables for people, JSON for CI."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from lora_ops.escaping import markup
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json
from lora_ops.registry import tables
from lora_ops.registry.change_commands import changes
from lora_ops.registry.command_options import (
    Reference,
    check_tenant,
    note_lines,
    opened_registry,
    print_lines,
    print_version,
)
from lora_ops.registry.operations_commands import operations
from lora_ops.streams import work_is_done

app = typer.Typer(
    help="Which adapter versions exist, who let them serve, and whether they may.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only versions in it, such as canary.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every version with its state, aliases and main number."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.records.registry import State

    if state is not None and state not in get_args(State):
        raise LoraOpsError(f"There is no state '{state}': write one of {', '.join(get_args(State))}.")
    with opened_registry() as registry:
        check_tenant(registry, tenant)
        rows = [row for row in registry.summaries(tenant) if state in (None, row.state)]
        held = {hold.version: hold for hold in registry.held(tenant)}
    if as_json:
        print_json(
            [
                {"adapter": row.id, **row._asdict(), "held": held[row.id].facts if row.id in held else None}
                for row in rows
            ]
        )
        return
    if rows:
        print_lines(tables.versions(rows), *note_lines([held[row.id].text for row in rows if row.id in held]))
    elif state:
        print_lines(f"No version{f' of {tenant}' if tenant else ''} is '{state}'.")
    else:
        whose = f"'{tenant}' has no version yet" if tenant else "The registry is empty"
        print_lines(f"{whose}: `make repro` registers the first one.")


@app.command()
def status(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Show for each tenant what is in which stage, until when, and what the next step still needs."""
    from lora_ops.registry.demo import demo_notes
    from lora_ops.registry.head_acceptance import accepted_heads
    from lora_ops.registry.status import status as status_
    from lora_ops.settings.params import load_settings

    with opened_registry() as registry:
        check_tenant(registry, tenant)
        known = {*load_settings().tenants, *(one.tenant for one in registry.summaries())}
        rows = status_(registry, [tenant] if tenant else sorted(known))
        behind = registry.unremembered()
        notes = [*demo_notes(registry), *accepted_heads(registry), *([behind] if behind else [])]
        notes += [hold.text for hold in registry.held(tenant)]
    if as_json:
        facts = {"head_remembered": behind is None, "notes": notes}
        print_json([{**row._asdict(), **facts} for row in rows])
        return
    shared = [f"Route of {markup(row.tenant)}: {markup('; '.join(row.route))}." for row in rows if row.route]
    print_lines(tables.status(rows), *shared, *note_lines(notes))


@app.command()
def show(reference: Reference, as_json: AsJson = False) -> None:
    """What it is, who let it where, on what evidence, and whether it may serve today."""
    from lora_ops.registry.cards import record

    with opened_registry() as registry:
        card = record(registry, reference)
    if as_json:
        print_json(card.model_dump(mode="json"))
        return
    print_lines(*tables.card(card))


@app.command()
def history(reference: Reference, as_json: AsJson = False) -> None:
    """What the audit log says of one version."""
    with opened_registry() as registry:
        tenant, number = registry.resolve(reference)
        entries = registry.log.about(tenant, number)
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in entries])
        return
    print_lines(tables.history(entries, number))


@app.command()
def diff(left: Reference, right: Reference, as_json: AsJson = False) -> None:
    """Data, parameters and metrics of two versions, side by side, where they differ."""
    from lora_ops.registry.cards import differences
    from lora_ops.registry.membership import incomparable

    with opened_registry() as registry:
        a, b = registry.get(left), registry.get(right)
        rows, reasons = differences(a, b), incomparable(registry, a, b)
    if as_json:
        told = [row._asdict() for row in rows]
        print_json({"left": a.id, "right": b.id, "differences": told, "incomparable": reasons})
        return
    same = f"{a.id} and {b.id} record the same data, parameters, metrics and code."
    print_lines(tables.differences(a.id, b.id, rows) if rows else same)
    if reasons and a.id != b.id:
        said = "; ".join(reasons)
        rest = f"`lora-ops compare {a.id} {b.id}` takes the rows that neither was trained on."
        print_lines(markup(f"Their metrics can't be compared: {said}. {rest}"))


@app.command()
def verify(
    files: Annotated[bool, typer.Option(help="Also read every kept file and check every signature.")] = True,
    mirror: Annotated[bool, typer.Option("--mirror", help="Also compare the log with the one at W&B.")] = False,
    expect_head: Annotated[
        str | None,
        typer.Option(
            "--expect-head", help="Fail unless the log holds this entry (17:a0d71c22e54f); it may have grown."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the audit log's chain, every digest and signature, and the state; exit 1 if one is off."""
    from lora_ops.registry.backends import open_mirror
    from lora_ops.registry.heads import compare, read_head
    from lora_ops.registry.verification import verify as verify_

    with opened_registry() as registry:
        result = verify_(registry, files=files)
        differs = [open_mirror(registry).problem() if mirror else None]
        if expect_head is not None:
            differs.append(compare(registry.log, read_head(expect_head), "--expect-head"))
    result = result._replace(problems=(*result.problems, *filter(None, differs)))
    if as_json:
        print_json({"ok": result.ok, **result._asdict()})
    elif result.ok:
        read = f"{result.files} files" if files else "no files read"
        print_lines(
            f"[green]The registry verifies[/]: {result.entries} entries, {result.versions} versions, {read}; "
            f"the log ends at {result.head}."
        )
    else:
        print_lines("[red]The registry does not verify[/]:", *(f"  {markup(one)}" for one in result.problems))
    if not as_json:
        print_lines(*note_lines(result.warnings))
    if not result.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@app.command()
def sync(as_json: AsJson = False) -> None:
    """Send to W&B what it lacks, in order, and put back the aliases that somebody moved there."""
    from lora_ops.registry.backends import open_mirror
    from lora_ops.registry.closing import settle

    with opened_registry() as registry:
        mirror = open_mirror(registry)
        done = mirror.sync(whole=True)
        held = registry.held()
        waiting = settle(registry)
        target = mirror.project.target
        revoked = sorted({hold.version for hold in held} - {hold.version for hold in registry.held()})
    work_is_done()
    if as_json:
        told = {"revoked": revoked, "waiting": waiting} if registry.shares_log or waiting else {}
        print_json({"target": target, **done._asdict(), **told})
        return
    sent = f"{done.sent} change{'s' if done.sent > 1 else ''} sent" if done.sent else "nothing was missing"
    print_lines(f"W&B ({markup(target)}): {sent}.", *(f"  put back: {markup(one)}" for one in done.restored))
    print_lines(*(f"[bold]{one}[/], which was stopped here, is now 'revoked' at W&B, too." for one in revoked))
    print_lines(*note_lines(waiting))


@app.command()
def export(
    reference: Reference,
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    for_review: Annotated[bool, typer.Option("--for-review", help="Also what may not serve.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a version's files, manifest and signature into a new folder, all verified."""
    from lora_ops.registry import packages

    with opened_registry() as registry:
        version = packages.export(registry, reference, target, for_review=for_review)
        said = f"written to {target}, digests and signature verified"
        print_version(registry, version, said, as_json, path=str(target))


@app.command()
def schema(as_json: AsJson = True) -> None:
    """Print the JSON schema of the full adapter record, as `show --json` prints it."""
    from lora_ops.records.registry import AdapterRecord

    print_json(AdapterRecord.model_json_schema())


app.registered_commands += [*changes.registered_commands, *operations.registered_commands]

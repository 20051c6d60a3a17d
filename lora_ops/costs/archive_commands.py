"""`lora-ops archive`: weights that nobody uses go to the archive, and come back."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import markup, show
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json
from lora_ops.registry.command_options import (
    Actor,
    ExactReference,
    head_remembered,
    note_lines,
    opened_registry,
    print_lines,
    using,
    who,
)
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.costs.archive import Run

app = typer.Typer(invoke_without_command=True, help="Weights that nobody uses: to the archive, and back.")


@app.callback()
def archive(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, only show what would go.")] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why; it is kept in the audit log. Default: nobody uses it.")
    ] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Move weights that nobody used for `archive.days` to `archive.store`; a dry run without --yes."""
    if context.invoked_subcommand is not None:
        return
    from datetime import UTC, datetime

    from lora_ops.costs.archive import archive_unused
    from lora_ops.free_text import require_text
    from lora_ops.registry.backends import open_registry
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    if reason is not None:
        require_text(reason, "Say why (--reason)")
    with using(open_registry(root)) as registry:
        run = archive_unused(
            registry,
            settings.archive,
            root,
            root / settings.serving.path,
            settings.serving.events.keep_days,
            datetime.now(UTC),
            actor=who(actor),
            reason=reason or f"nobody used it for {settings.archive.days} days",
            dry_run=not yes,
        )
        remembered = head_remembered(registry) if yes else {}
    if yes:
        work_is_done()
    if as_json:
        print_json({"dry_run": not yes, **_facts(run), **remembered})
        return
    _show(run, dry_run=not yes)


@app.command()
def restore(
    reference: ExactReference,
    store: Annotated[
        str | None,
        typer.Option("--from", help="Where the archive is now; default: where it was when they were archived."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit log.")] = "it is needed",
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Bring a version's weights back from the archive, verified."""
    from lora_ops.free_text import require_text
    from lora_ops.registry.archived_weights import bring_back
    from lora_ops.settings.archive import url_problem

    require_text(reason, "Say why (--reason)")
    problem = url_problem(store) if store and "://" in store else None
    if problem:
        raise LoraOpsError(f"--from: {problem}.")
    with opened_registry() as registry:
        was_missing = bring_back(registry, reference, actor=who(actor), reason=reason, url=store)
        remembered = head_remembered(registry)
    work_is_done()
    if as_json:
        print_json({"adapter": reference, "was_missing": was_missing, **remembered})
        return
    show(markup(f"The weights of {reference} are back, and as they were signed."))


@app.command("verify")
def verify_archive(as_json: AsJson = False) -> None:
    """Read every archived file where it is, and compare it with its digest; ends with 1 where one differs."""
    from lora_ops.costs.archive import check_all
    from lora_ops.exit_codes import ExitCode

    with opened_registry() as registry:
        found = list(check_all(registry))
    problems = [problem for _, problem in found if problem]
    if as_json:
        print_json({"files": len(found), "problems": problems})
    else:
        lines = [f"{problem}." for problem in problems]
        show(*map(markup, [*lines, f"{len(found)} archived files, {len(problems)} of them damaged."]), sep="\n")
    if problems:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _facts(run: "Run") -> dict[str, Any]:
    return {
        "store": run.store,
        "candidates": [{**one._asdict(), "used": one.used.isoformat()} for one in run.candidates],
        "archived_before": run.away,
        "archived": run.moved,
        "removed_bytes": run.removed,
        "stored_bytes": run.stored,
        "notes": run.notes,
    }


def _show(run: "Run", *, dry_run: bool) -> None:
    table = Grid("version", "state", "bytes", "last used", "stays, since it", solid={"version", "bytes"})
    for one in run.candidates:
        mark = "goes" if dry_run else "is archived"
        stays = one.stays or (mark if dry_run or one.version in run.moved else "")
        table.add_row(one.version, one.state, f"{one.bytes:,}", f"{one.used:%Y-%m-%d}", stays)
    if run.candidates:
        print_lines(table)
    if dry_run:
        size = sum(one.bytes for one in run.may_go)
        said = f"{len(run.may_go)} versions with {size:,} bytes would go to {run.store}: `--yes` moves them."
    else:
        said = (
            f"{len(run.moved)} versions went to {run.store}: {run.removed:,} bytes less here, "
            f"{run.stored:,} there."
        )
    print_lines(markup(said), *note_lines(run.notes))

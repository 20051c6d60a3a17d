"""`lora-ops rollback`: the earlier version answers first; then the runbook verifies and records."""

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.escaping import markup, show
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import Actor
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.incidents import Taken


def rollback(
    version: Annotated[str, typer.Argument(help="The exact version that must go, such as finance@2.")],
    reason: Annotated[str, typer.Option(help="What happened, in a sentence; it is kept.")],
    to: Annotated[
        str | None,
        typer.Option(help="The exact version that must return; default: the last one in production that may."),
    ] = None,
    actor: Actor = None,
    gateway: Annotated[
        str, typer.Option(help="Who is asked whether it holds, and whose dashboards are captured.")
    ] = "http://localhost:8000",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without this, only show what would happen.")
    ] = False,
    without_notebook: Annotated[
        bool,
        typer.Option("--without-notebook", help="Where Jupyter is broken: the same steps, and no page."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put the version before VERSION back into production; runbooks/rollback.ipynb verifies and records it."""
    from lora_ops import incidents
    from lora_ops.clock import now
    from lora_ops.free_text import require_text
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.changes import whoami
    from lora_ops.registry.versions import parse_reference
    from lora_ops.settings.files import find_root

    root = find_root()
    tenant, _ = parse_reference(version)
    require_text(reason, "Say why (--reason)")
    actor = actor or whoami()
    folder = incidents.new_folder(root, tenant, now())
    taken = _take_back(root, version, folder, to=to, actor=actor, reason=reason) if yes else None
    if taken:
        folder = taken.folder
        work_is_done()
        if not as_json and taken.not_sent is None:
            show(f"{taken.returned.id} is in production again, and {version} is revoked.")
    page = None if without_notebook else folder / "rollback.html"
    problem = None
    if page:
        parameters = {
            "tenant": tenant,
            "version": version,
            "to": to,
            "reason": reason,
            "actor": actor,
            "gateway": gateway,
            "folder": str(folder),
            "confirm": yes,
            "has_returned": taken is not None,
            "not_sent": taken.not_sent if taken else None,
        }
        with prose_on_stderr(as_json):
            _execute(root, folder, parameters, taken)
    elif taken:
        key = os.environ.get("LORA_OPS_KEY")
        why = {"actor": actor, "reason": reason}
        with closing(open_registry(root, to_stop=version)) as registry:
            incidents.complete(registry, version, folder, gateway=gateway, key=key, **why, has_page=False)
    work_is_done()
    if page and not as_json:
        show(f"The page: {markup(_shown(page, root))}")
        if not yes:
            return
    # The rollback has asked W&B a moment ago.
    with closing(open_registry(root, to_stop=version)) as registry:
        told = incidents.summary(registry, version, folder, to=to, done=yes)
        problem = incidents.problem_of(registry, told, taken.not_sent if taken else None, gateway=gateway)
    if as_json:
        not_sent = taken.not_sent if taken else None
        print_json({**told, "not_sent": not_sent, "page": str(page) if page else None, "problem": problem})
        if problem:
            raise typer.Exit(ExitCode.UNAVAILABLE)
        return
    if problem:
        raise Unavailable(f"{problem}.")
    if page:
        return
    done = None if yes else f"{told['returns']} would replace {version}; nothing was changed."
    record = f"The record: {_shown(Path(told['record']), root)}" if told["record"] else ""
    lines = (done, told["not_captured"], record, *told["notes"])
    show(*(markup(line) for line in lines if line), sep="\n")


def _shown(path: Path, root: Path) -> str:
    """Return where a file is; the folder of an incident is elsewhere where it could not be made."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _take_back(root: Path, version: str, folder: Path, *, to: str | None, actor: str, reason: str) -> "Taken":
    """Change who answers, before anything else is imported, asked or written.

    Where the registry can't be opened, nothing can return: the version that must go stops answering meanwhile.

    Raises:
        LoraOpsError: as `incidents.take_back`; or the registry can't be opened, and the text says whether the
            version was stopped.
    """
    from lora_ops import incidents
    from lora_ops.registry.backends import open_registry

    try:
        opened = open_registry(root, to_stop=version)
    except LoraOpsError as error:
        from lora_ops.registry.roles import MOVE
        from lora_ops.registry.unread import stop_unread

        why = stop_unread(root, version, error, actor=actor, reason=reason, roles=MOVE)
        raise Unavailable(
            f"{version} does not answer any more, and nothing has returned in its place: {why}. Mend that, and "
            "run the same command again."
        ) from error
    with closing(opened) as registry:
        return incidents.take_back(registry, version, folder, to=to, actor=actor, reason=reason)


def _execute(root: Path, folder: Path, parameters: dict[str, Any], taken: "Taken | None") -> None:
    """Execute the runbook; where that fails, say that the route has changed all the same.

    Raises:
        LoraOpsError: a step was refused, or nothing can be executed or written here.
    """
    state = ""
    if taken and taken.not_sent is None:
        state = f"{taken.returned.id} is in production again and {taken.leaves.id} is revoked. "
    try:
        from lora_ops.notebooks import run_notebook
        from lora_ops.registry.backends import remembered_head

        output = folder / "rollback.ipynb"
        run_notebook(root / "runbooks/rollback.ipynb", output, parameters, root, lambda: remembered_head(root))
    except LoraOpsError as error:
        if not state:
            raise
        from lora_ops.errors import with_text

        raise with_text(error, f"{state}The runbook did not end: {error}") from error
    except OSError as error:
        raise Unavailable(
            f"{state}The page of the rollback can't be written ({disk_reason(error)}): mend the disk, and run "
            "the same command again."
        ) from error
    except Exception as error:  # whatever is wrong with Jupyter, the version must not go on answering
        raise Unavailable(
            f"{state}The runbook can't be executed ({type(error).__name__}: {str(error).rstrip('.')}): run the "
            "same command with --without-notebook, which takes the same steps and needs no Jupyter."
        ) from error

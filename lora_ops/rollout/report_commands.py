"""`lora-ops rollout report`: the pages of a rollout, which notebooks/06_shadow and 07_canary make."""

from pathlib import Path
from typing import Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import ExactReference, opened_registry
from lora_ops.streams import work_is_done

NOTEBOOKS = ("06_shadow.ipynb", "07_canary.ipynb")


def report(
    reference: ExactReference,
    attempt: Annotated[
        int | None, typer.Option(help="Which attempt of its rollout, from 1; default: the last one.")
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Where the gateway's `pairs` and `events` are; default: serving.path of params.yaml."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the evidence of a rollout as pages to reports/TENANT/rollout/: its shadow and its canary."""
    from lora_ops.errors import NotFound
    from lora_ops.notebooks import run_notebook
    from lora_ops.registry.backends import remembered_head
    from lora_ops.rollout.attempts import attempt_of, serving_folder
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.tracking.gates import log_rollout_pages

    root = find_root()
    settings = load_settings(root)
    serving_folder(root / settings.serving.path, folder, root)
    with opened_registry() as registry:
        version = registry.get_exact(reference, whole=False)
        found = attempt_of(registry, version.tenant, version.id, attempt)
    if found is None:
        raise NotFound(
            f"{version.id} has no rollout: `lora-ops rollout start {version.id} --reason TEXT` begins one."
        )
    number = found.rollout.attempt
    parameters = {"tenant": version.tenant, "version": version.id, "attempt": number, "folder": folder}
    made = root / "reports" / version.tenant / "rollout" / f"{version.id}-attempt-{number}"
    pages: list[Path] = []
    with prose_on_stderr(as_json):
        for name in NOTEBOOKS:
            run_notebook(
                root / "notebooks" / name, made / name, parameters, root, lambda: remembered_head(root)
            )
            pages.append((made / name).with_suffix(".html"))
        problem = log_rollout_pages(version.id, version.manifest, pages, settings.tracking, root)
    work_is_done()
    if as_json:
        facts = {"adapter": version.id, "attempt": number, "phase": found.rollout.phase}
        print_json({**facts, "pages": [str(page) for page in pages], "notes": [problem] if problem else []})
        return
    for page in pages:
        show(f"The page: {markup(str(page.relative_to(root)))}")
    if problem:
        show(f"Note: {markup(problem.rstrip('.'))}.")

"""`lora-ops repro`: `dvc repro` for several tenants at once."""

from typing import Annotated

import typer

from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.streams import work_is_done


def repro(
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="How many tenants at once; by default two on a CPU and one on a GPU."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run stages that are up to date, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run `dvc repro` for all tenants, several at once; what is up to date is skipped."""
    from lora_ops.pipeline import default_jobs, reproduce
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    tenants = list(load_settings(root).tenants)
    jobs = jobs or default_jobs()
    with prose_on_stderr(as_json):
        reproduce(tenants, root, jobs=jobs, force=force)
    work_is_done()
    if as_json:
        print_json({"tenants": tenants, "jobs": jobs})

"""`lora-ops monitor report`: the weekly page, which notebooks/08_monitor.ipynb makes."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.streams import work_is_done

NOTEBOOK = "08_monitor.ipynb"


def report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant; default: all of them.")] = None,
    window: Annotated[str, typer.Option(help="Of latency and costs, up to now, such as 24h or 7d.")] = "7d",
    as_json: AsJson = False,
) -> None:
    """Write the weekly page of each adapter's health to reports/, and log its numbers to W&B.

    Ends with 1 where a verdict is broken.
    """
    from lora_ops.notebooks import run_notebook
    from lora_ops.registry.backends import remembered_head
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.small_files import read_json
    from lora_ops.tracking.monitoring import log_monitoring
    from lora_ops.windows import last

    root = find_root()
    settings = load_settings(root)
    last(window, datetime.now(UTC))  # before a kernel starts
    if tenant is not None:
        settings.tenant(tenant)
    output = root / "reports" / (tenant or "") / NOTEBOOK
    page, kept = output.with_suffix(".html"), output.with_suffix(".json")
    parameters = {"tenant": tenant, "window": window, "numbers": str(kept)}
    with prose_on_stderr(as_json):
        run_notebook(root / "notebooks" / NOTEBOOK, output, parameters, root, lambda: remembered_head(root))
        numbers = read_json(kept)
        problem = log_monitoring(tenant, numbers, page, settings.tracking, root)
    work_is_done()
    if as_json:
        print_json({**numbers, "page": str(page), "tracking_problem": problem})
    else:
        show(f"The page: {markup(str(page.relative_to(root)))}")
        for note in numbers["notes"]:
            show(markup(note))
        if problem:
            show(f"Note: {markup(problem.rstrip('.'))}.")
    if any(one["state"] == "broken" for one in numbers["verdicts"]):
        raise typer.Exit(ExitCode.CHECK_FAILED)

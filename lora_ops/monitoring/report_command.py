"""`lora-ops monitor report`: the weekly page, which notebooks/08_monitor.ipynb makes."""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import Actor, head_remembered, opened_registry, who
from lora_ops.streams import work_is_done

NOTEBOOK = "08_monitor.ipynb"


def report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant; default: all of them.")] = None,
    window: Annotated[str, typer.Option(help="Of latency and costs, up to now, such as 24h or 7d.")] = "7d",
    file: Annotated[
        bool,
        typer.Option("--file", help="File each version's numbers in its record, once a day for each window."),
    ] = False,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Write the weekly page of each adapter's health to reports/, and log its numbers to W&B.

    Ends with 1 where a verdict is broken.
    """
    from lora_ops.monitoring.live_numbers import file_live_numbers
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
    filed, facts = None, {}
    # It is opened before a kernel starts, too: where it can't be, no minute is lost.
    with prose_on_stderr(as_json), opened_registry() if file else nullcontext() as registry:
        run_notebook(root / "notebooks" / NOTEBOOK, output, parameters, root, lambda: remembered_head(root))
        numbers = read_json(kept)
        problem = log_monitoring(tenant, numbers, page, settings.tracking, root)
        if registry:
            filed = file_live_numbers(registry, kept, root / settings.serving.path / "events", actor=who(actor))
            facts = head_remembered(registry) if filed.reports else {}
    work_is_done()
    reports, not_filed = filed or ((), ())
    if as_json:
        told = [{**one.document.model_dump(mode="json"), "sha256": one.reference.sha256} for one in reports]
        done = {"filed": told, "not_filed": list(not_filed)}
        print_json({**numbers, "page": str(page), "tracking_problem": problem, **done, **facts})
    else:
        show(f"The page: {markup(str(page.relative_to(root)))}")
        for note in numbers["notes"]:
            show(markup(note))
        if problem:
            show(f"Note: {markup(problem.rstrip('.'))}.")
        for one in reports:
            show(markup(f"Filed in the record of {one.document.adapter}: {one.summary}."))
        for text in not_filed:
            show(markup(f"Not filed: {text}"))
    if any(one["state"] == "broken" for one in numbers["verdicts"]):
        raise typer.Exit(ExitCode.CHECK_FAILED)

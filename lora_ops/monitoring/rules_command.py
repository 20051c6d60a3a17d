"""`lora-ops monitor rules`."""

from typing import Annotated

import typer

from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json
from lora_ops.streams import work_is_done


def rules(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; end with 1 where a file is not what it should be.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write deploy/ as params.yaml says: rules for Prometheus, settings, dashboards for Grafana."""
    from lora_ops.escaping import markup, show
    from lora_ops.monitoring.deployed import deployed_files, differing, write_deployed
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    folder = root / "deploy"
    if check:
        changed = differing(folder, settings)
    else:
        changed = write_deployed(folder, settings)
        work_is_done()
    names = [path.relative_to(root).as_posix() for path in changed]
    if as_json:
        print_json({"files": [f"deploy/{name}" for name in deployed_files(settings)], "changed": names})
    elif not names:
        show("Every file of deploy/ is what params.yaml says.")
    for name in names if not as_json else ():
        show(markup(f"{name} is not what params.yaml says: `make rules`." if check else f"{name} is written."))
    if check and names:
        raise typer.Exit(ExitCode.CHECK_FAILED)

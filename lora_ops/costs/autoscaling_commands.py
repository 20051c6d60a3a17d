"""`lora-ops autoscaling`: KEDA's ScaledObject from params.yaml, and what it has to be told."""

from typing import Annotated

import typer

from lora_ops.escaping import show
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json
from lora_ops.streams import work_is_done

app = typer.Typer(no_args_is_help=True, help="As many gateways as the backlog of tokens needs.")


@app.command()
def write(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; end with 1 where the file is not what it should be.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write deploy/kubernetes/scaledobject.yaml as params.yaml says."""
    from lora_ops.costs.autoscaling import FILE, as_yaml, query
    from lora_ops.registry.files import write_atomically
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root).autoscaling
    path = root / FILE
    content = as_yaml(settings).encode()
    differs = not path.is_file() or path.read_bytes() != content
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        work_is_done()
    if as_json:
        print_json({"path": str(path), "query": query(settings), "changed": differs})
    elif not check:
        show(f"{FILE} is written.")
    elif differs:
        show(f"{FILE} is not what params.yaml says: `lora-ops autoscaling write`.")
    else:
        show(f"{FILE} is what params.yaml says.")
    if check and differs:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@app.command()
def calibrate(
    window: Annotated[str, typer.Option(help="Up to now, such as 24h or 7d.")] = "7d", as_json: AsJson = False
) -> None:
    """Measure tokens a second from the event log, for `autoscaling` in params.yaml."""
    from datetime import UTC, datetime

    from lora_ops.costs.autoscaling import throughput
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.windows import last

    root = find_root()
    folder = root / load_settings(root).serving.path / "events"
    found = throughput(folder, last(window, datetime.now(UTC)))
    if as_json:
        print_json(found._asdict())
        return
    show(f"prefill_tokens_per_second: {found.prefill:.0f}")
    show(f"decode_tokens_per_second: {found.decode:.0f}")
    show(
        f"Of {found.requests:,} requests; tokens explain {found.explained:.0%} of their device time's variance."
    )

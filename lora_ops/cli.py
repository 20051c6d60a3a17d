"""The command line `lora-ops`: thin commands over the package."""

import errno
import os
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lora_ops.costs.archive_commands import app as archive_app
from lora_ops.costs.autoscaling_commands import app as autoscaling_app
from lora_ops.costs.commands import cost
from lora_ops.detector_commands import detectors
from lora_ops.due_command import due
from lora_ops.errors import LoraOpsError, disk_reason
from lora_ops.escaping import markup, shortened, show
from lora_ops.exit_codes import ExitCode
from lora_ops.gates.commands import cases, gate
from lora_ops.gates.release_commands import app as release_app
from lora_ops.gates.review.commands import app as review_app
from lora_ops.grid import Grid
from lora_ops.monitoring.commands import app as monitor_app
from lora_ops.monitoring.drift_commands import drift, drift_set
from lora_ops.monitoring.kpi_commands import app as kpi_app
from lora_ops.monitoring.latency_command import latency
from lora_ops.monitoring.observe_command import observe
from lora_ops.monitoring.report_command import report as monitor_report
from lora_ops.monitoring.risk_command import risk
from lora_ops.monitoring.rules_command import rules
from lora_ops.output import AsJson, print_error, print_json, print_problem, prose_on_stderr, wants_json
from lora_ops.pipeline_commands import repro
from lora_ops.processes import leave_out_url_grammars
from lora_ops.registry.commands import app as registry_app
from lora_ops.registry.owners_commands import app as owners_app
from lora_ops.registry.route_commands import app as route_app
from lora_ops.rollback_command import rollback
from lora_ops.rollout.pair_commands import pairs
from lora_ops.rollout.report_commands import report as rollout_report
from lora_ops.rollout_commands import app as rollout_app
from lora_ops.serving.commands import keys_app, serve
from lora_ops.serving.replay_commands import replay
from lora_ops.streams import settle_streams, work_is_done
from lora_ops.tenant_commands import app as tenant_app
from lora_ops.validation_commands import validate
from lora_ops.version_commands import compare, register, report

if TYPE_CHECKING:
    from lora_ops.settings.params import Settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(tenant_app, name="tenant")
registry_app.command()(due)
app.add_typer(registry_app, name="registry")
app.add_typer(route_app, name="route")
app.add_typer(review_app, name="review")
app.add_typer(owners_app, name="owners")
app.add_typer(keys_app, name="keys")
app.add_typer(release_app, name="release")
app.add_typer(archive_app, name="archive")
app.add_typer(autoscaling_app, name="autoscaling")
rollout_app.command()(pairs)
rollout_app.command()(replay)
rollout_app.command("report")(rollout_report)
app.add_typer(rollout_app, name="rollout")
monitor_app.command()(drift)
monitor_app.command("drift-set")(drift_set)
monitor_app.add_typer(kpi_app, name="kpi")
monitor_app.command()(latency)
monitor_app.command()(risk)
monitor_app.command("report")(monitor_report)
monitor_app.command()(rules)
monitor_app.command()(observe)
app.add_typer(monitor_app, name="monitor")
app.command()(repro)
app.command()(serve)
app.command()(register)
app.command()(rollback)
app.command()(report)
app.command()(compare)
app.command()(cost)
app.command()(detectors)
app.command()(cases)
app.command()(gate)
app.command()(validate)


# These two load pydantic, which would take as long as all the rest of `lora-ops --help`.
def find_root() -> Path:
    """Return the repository's folder; see lora_ops.settings.files."""
    from lora_ops.settings import files

    return files.find_root()


def load_settings(root: Path) -> "Settings":
    """Return params.yaml, checked; see lora_ops.settings.params."""
    from lora_ops.settings import params

    return params.load_settings(root)


def _print_version(asked: bool) -> None:
    from importlib.metadata import version

    if asked:
        typer.echo(f"lora-ops {version('lora-ops')}")
        raise typer.Exit


@app.callback()
def lora_ops(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, register, serve and take back LoRA adapters: thin commands over the package."""


@app.command("base-model")
def base_model(as_json: AsJson = False) -> None:
    """Make models/base, the base model as safetensors, as params.yaml says."""
    from lora_ops.base_model import make_base_model
    from lora_ops.processes import end_with_dvc

    end_with_dvc()
    root = find_root()
    settings = load_settings(root)
    _stay_offline(settings)
    with prose_on_stderr(as_json):
        record = make_base_model(settings.base_model, root / "models/base", root / "data/raw", root)
    work_is_done()
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    show(markup(f"{record.id} {record.revision}: {record.parameters:,} parameters, SHA-256 {record.sha256}"))


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="A notebook, such as notebooks/02_train.ipynb.")],
    tenant: Annotated[
        str | None, typer.Option(help="A tenant of params.yaml; for a page about all of them, leave it out.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value, may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Execute a notebook; its result and its page go to reports/TENANT/, without a tenant to reports/."""
    from lora_ops.notebooks import declared_parameters, parse_parameters, run_notebook
    from lora_ops.processes import end_with_dvc
    from lora_ops.registry.backends import remembered_head

    end_with_dvc()
    root = find_root()
    settings = load_settings(root)
    path = notebook if notebook.is_absolute() else root / notebook
    parameters = parse_parameters(path, parameter or [])
    if "tenant" in parameters:
        raise LoraOpsError("Name the tenant with --tenant: it also decides where the page goes.")
    takes = declared_parameters(path).get("tenant")
    if tenant is not None:
        settings.tenant(tenant)
        parameters["tenant"] = tenant
    elif takes is not None and not takes.optional:
        raise LoraOpsError(f"{path.name} is about one tenant: say which one with --tenant.")
    _stay_offline(settings)
    output = root / "reports" / (tenant or "") / path.name
    with prose_on_stderr(as_json):
        run_notebook(path, output, parameters, root, lambda: remembered_head(root))
    work_is_done()
    if as_json:
        page = output.with_suffix(".html")
        print_json({"tenant": tenant, "notebook": str(output), "page": str(page), "parameters": parameters})


@app.command()
def chat(
    adapter: Annotated[str, typer.Argument(help="A tenant, or a version such as finance@1.")],
    text: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="NAME=VALUE of the adapter's template, instead of TEXT; repeat it."),
    ] = None,
    content_is: Annotated[
        str | None,
        typer.Option(help="What TEXT is: prompt, the whole one, or column, the value of the only one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer TEXT with an adapter and with its base model, side by side."""
    from lora_ops.chat import ask, parse_columns, parse_content_is
    from lora_ops.registry.backends import open_registry

    root = find_root()
    settings = load_settings(root)
    _stay_offline(settings)
    if (text is None) != bool(column):
        raise LoraOpsError("Ask with TEXT, or with --column NAME=VALUE for each column of the template.")
    kind = parse_content_is(content_is) or settings.serving.tenant(adapter.partition("@")[0]).content_is
    columns = parse_columns(column) if column else None
    with prose_on_stderr(as_json), closing(open_registry(root)) as registry:
        said = ask(adapter, registry, root, content=text, columns=columns, content_is=kind)
    if as_json:
        print_json(
            {
                "adapter": said.adapter,
                "digest": said.digest,
                "text": said.text,
                "base": said.base_answer,
                "answer": said.answer,
            }
        )
        return
    table = Grid("who", "answer", solid={"who"}, title=said.text)
    table.add_row("base model", said.base_answer)
    table.add_row(said.adapter, said.answer)
    show(table)


@app.command("wandb-sync")
def wandb_sync(as_json: AsJson = False) -> None:
    """Send to W&B the runs and artifacts that were logged without a key."""
    from lora_ops.tracking.offline import send_offline_runs

    with prose_on_stderr(as_json):
        send_offline_runs(find_root())
    work_is_done()
    if as_json:
        print_json({"sent": True})


@app.command()
def profile(
    name: Annotated[str, typer.Argument(help="A file of profiles/, such as small.")], as_json: AsJson = False
) -> None:
    """Lay a profile over params.yaml (`git checkout params.yaml` takes it back)."""
    from lora_ops.tenants import apply_profile

    root = find_root()
    apply_profile(root / "profiles" / f"{name}.yaml", root)
    work_is_done()
    if as_json:
        print_json({"profile": name})
        return
    show(f"params.yaml now has the values of profiles/{name}.yaml.")


def main() -> None:
    """Run the command line and exit with a code of `lora_ops.exit_codes`.

    What a person can mend is one sentence on stderr. With `--json` it is one JSON object on stdout instead.
    """
    settle_streams()
    leave_out_url_grammars()
    as_json = wants_json(sys.argv[1:])
    for word in sys.argv[1:]:
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            text = "an argument is not UTF-8: set the terminal to UTF-8, or rename the file"
            _fail(ExitCode.INVALID, f"{ascii(word)}: {text}.", as_json)
    try:
        # Typer prints wrong usage and exits by itself; for JSON it hands both over.
        try:
            returned = app(standalone_mode=not as_json)
        finally:
            sys.stdout.flush()  # here, where a full disk is still a sentence
    except LoraOpsError as error:
        _fail(error.exit_code, str(error), as_json)
    except KeyboardInterrupt:  # before typer takes it, which ends with the same code
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:
        _fail(*_of_system(error), as_json)
    except Exception as error:  # noqa: BLE001 - whatever it is, the exit code must say that it is ours
        if as_json and hasattr(error, "format_message"):  # wrong usage; typer has no public class for it
            _fail(ExitCode.INVALID, error.format_message(), as_json)
        traceback.print_exc()
        if as_json:
            print_error(ExitCode.INTERNAL, f"{type(error).__name__}: {error}")
        sys.exit(ExitCode.INTERNAL)
    sys.exit(returned if isinstance(returned, int) else ExitCode.OK)


def _fail(code: ExitCode, message: str, as_json: bool) -> NoReturn:
    try:
        if as_json:
            print_error(code, shortened(message))
        sys.stdout.flush()
    except OSError:  # stdout takes nothing any more: what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        as_json = False
    if not as_json:
        print_problem(message)
    sys.exit(code)


def _of_system(error: OSError) -> tuple[ExitCode, str]:
    """Return the exit code and the sentence for what the operating system refused."""
    said = disk_reason(error)
    # What was named is wrong, and waiting doesn't mend it.
    named = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
    if error.errno in named:
        return ExitCode.INVALID, f"{said}: correct the path."
    return ExitCode.UNAVAILABLE, f"{said}."


def _stay_offline(settings: "Settings") -> None:
    if not settings.names_hub:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

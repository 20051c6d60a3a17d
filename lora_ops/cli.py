"""The command line `lora-ops`: thin commands over the package."""

import os
import sys
import traceback
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import markup, show, visible
from lora_ops.exit_codes import ExitCode
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_error, print_json, prose_on_stderr, wants_json
from lora_ops.registry.commands import Actor
from lora_ops.registry.commands import app as registry_app
from lora_ops.registry.owners_commands import app as owners_app
from lora_ops.serving.commands import keys_app, serve

if TYPE_CHECKING:
    import pandas as pd

if TYPE_CHECKING:
    from lora_ops.settings.params import Settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
tenant_app = typer.Typer(no_args_is_help=True, help="The tenants of params.yaml.")
app.add_typer(tenant_app, name="tenant")
app.add_typer(registry_app, name="registry")
app.add_typer(owners_app, name="owners")
app.add_typer(keys_app, name="keys")
app.command()(serve)


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
    settings = load_settings(root).base_model
    _stay_offline(settings.source)
    with prose_on_stderr(as_json):
        record = make_base_model(settings, root / "models/base", root / "data/raw", root)
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
    _stay_offline(settings.base_model.source)
    output = root / "reports" / (tenant or "") / path.name
    with prose_on_stderr(as_json):
        run_notebook(path, output, parameters, root)
    if as_json:
        page = output.with_suffix(".html")
        print_json({"tenant": tenant, "notebook": str(output), "page": str(page), "parameters": parameters})


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="The exact version that must go, such as finance@2.")],
    reason: Annotated[str, typer.Option(help="What happened, in a sentence; it is kept.")],
    actor: Actor = None,
    gateway: Annotated[str, typer.Option(help="Whose dashboards are captured.")] = "http://localhost:8000",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without this, only show what would happen.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put the version before VERSION back into production, by runbooks/rollback.ipynb."""
    from lora_ops import incidents
    from lora_ops.clock import now
    from lora_ops.notebooks import run_notebook
    from lora_ops.registry.versions import parse_reference

    root = find_root()
    tenant, _ = parse_reference(version)
    folder = incidents.new_folder(root, tenant, now())
    parameters = {
        "tenant": tenant,
        "version": version,
        "reason": reason,
        "actor": actor,
        "gateway": gateway,
        "folder": str(folder),
        "confirm": yes,
    }
    page = folder / "rollback.html"
    with prose_on_stderr(as_json):
        run_notebook(root / "runbooks/rollback.ipynb", folder / "rollback.ipynb", parameters, root)
    if as_json:
        print_json({"version": version, "done": yes, "page": str(page)})
        return
    show(f"The page: {markup(str(page.relative_to(root)))}")


@app.command()
def register(
    tenants: Annotated[
        list[str] | None, typer.Argument(help="Tenants of params.yaml; default: each one that has a package.")
    ] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Register what packages/ holds as each tenant's next version, named by the alias candidate.

    The same content again is the same version. A package that is refused doesn't stop the others.
    """
    from lora_ops.registration import register_packages, require_one_fit, tenants_with_package
    from lora_ops.registry.backends import open_registry
    from lora_ops.tracking.registration import log_registration

    root = find_root()
    settings = load_settings(root)
    for name in tenants or ():
        settings.tenant(name)
    chosen = tenants or tenants_with_package(settings.tenants, root)
    outcomes, refused = [], []
    if not (root / settings.registry.path).exists():
        require_one_fit(chosen, root)
    with closing(open_registry(root, create=True)) as registry:
        for outcome in register_packages(chosen, root, registry, actor=actor):
            adapter = outcome.version.id if outcome.version else None
            outcomes.append(
                {
                    "tenant": outcome.tenant,
                    "adapter": adapter,
                    "is_new": outcome.is_new,
                    "problem": outcome.problem,
                }
            )
            if outcome.version is None:
                refused.append(outcome.tenant)
                print(f"lora-ops: {outcome.tenant}: {visible(str(outcome.problem))}", file=sys.stderr)
                continue
            if outcome.is_new:
                number, tracking = outcome.version.number, settings.tracking
                problem = log_registration(outcome.tenant, number, tracking, root)
                if problem:
                    print(f"lora-ops: {visible(problem)}", file=sys.stderr)
            how = "a new version" if outcome.is_new else "this content was registered before"
            if not as_json:
                show(f"{adapter} is the candidate of {outcome.tenant} ({how}).")
    if as_json:
        print_json(outcomes)
        raise typer.Exit(ExitCode.INVALID if refused else ExitCode.OK)
    if refused:
        raise LoraOpsError(f"Not registered: {', '.join(refused)}; the reasons are above.")


@app.command()
def report(as_json: AsJson = False) -> None:
    """Show the adapters that the pipeline made beside their base; nothing is changed."""
    from lora_ops.packaging import packaged
    from lora_ops.records.evaluation import ADAPTER, BASE
    from lora_ops.registration import registered_id
    from lora_ops.registry.backends import open_registry

    root = find_root()
    settings = load_settings(root)
    manifests = [packaged(tenant, root) for tenant in settings.tenants]
    # Only `register` makes a registry: looking must not.
    registry = open_registry(root) if (root / settings.registry.path).is_dir() else None
    columns = ("tenant", "version", "metric", "base", "adapter", "size", "training")
    table = Grid(*columns, solid={*columns})
    verdicts, pages, missing, rows = [], [], [], []
    for manifest in manifests:
        version = registered_id(manifest, registry)
        rows.append(
            {
                "tenant": manifest.tenant,
                "adapter": version,
                "metrics": manifest.evaluation.model_dump(mode="json")["metrics"],
                "primary": manifest.evaluation.primary,
                "verdict": manifest.evaluation.verdict,
                "size_bytes": manifest.size_bytes,
                "training_seconds": manifest.training.seconds,
                "report": manifest.report,
            }
        )
        if version is None:
            missing.append(manifest.tenant)
        evaluation = manifest.evaluation
        others = sorted(evaluation.metrics.keys() - {evaluation.primary})
        for name in (evaluation.primary, *others):
            metric, first = evaluation.metrics[name], name == evaluation.primary
            table.add_row(
                manifest.tenant if first else "",
                (version or "-") if first else "",
                name,
                f"{metric[BASE].value:.3f}",
                f"{metric[ADAPTER].value:.3f}",
                f"{manifest.size_bytes / 1e6:.1f} MB" if first else "",
                f"{manifest.training.seconds:.0f} s" if first else "",
            )
        verdicts.append(markup(f"{version or manifest.tenant} {evaluation.verdict}."))
        pages.append(markup(f"{version or manifest.tenant}: {manifest.report}"))
    if as_json:
        print_json(rows)
        return
    show(table, *verdicts, "\nReports, for a browser:", *pages, sep="\n")
    if registry:
        # Printed and kept elsewhere, it shows later that the registry was not replaced by an older copy.
        show(f"The audit log ends at {registry.log.head().text} (`lora-ops registry verify --expect-head`).")
    if missing:
        show(f"Not registered: {', '.join(missing)}. Next: lora-ops register")


@app.command()
def compare(
    left: Annotated[str, typer.Argument(help="A version, such as finance@2.")],
    right: Annotated[str, typer.Argument(help="Another version of the same tenant, such as finance@3.")],
    as_json: AsJson = False,
) -> None:
    """Compare two versions on the rows that both answered and neither was trained on."""
    from lora_ops.evaluation.versions import compare_versions
    from lora_ops.registry.backends import open_registry

    with closing(open_registry(find_root())) as registry:
        found = compare_versions(registry, registry.get(left), registry.get(right))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    table = Grid("metric", found.left, found.right, "difference", "p (Holm)", solid={"metric"})
    for metric, values in found.metrics.items():
        change = found.differences[metric]
        row = (*map(str, values.values()), str(change), f"{change.p_corrected:.4f}")
        table.add_row(metric, *row)
    show(table)
    rows = f"{found.rows} rows of {found.groups} groups that neither was trained on"
    show(markup(f"{found.verdict}: {rows}; {found.left_out} rows of either don't count."))
    for note in found.notes:
        show(markup(f"The metrics that they recorded can't be compared: {note}."))


@app.command()
def chat(
    adapter: Annotated[str, typer.Argument(help="A tenant, or a version such as finance@1.")],
    text: Annotated[str, typer.Argument(help="What to ask.")],
    as_json: AsJson = False,
) -> None:
    """Answer TEXT with an adapter and with its base model, side by side."""
    from lora_ops.chat import ask
    from lora_ops.registry.backends import open_registry

    root = find_root()
    _stay_offline(load_settings(root).base_model.source)
    with prose_on_stderr(as_json), closing(open_registry(root)) as registry:
        adapter_id, base_answer, adapter_answer = ask(adapter, text, registry, root)
    if as_json:
        print_json({"adapter": adapter_id, "text": text, "base": base_answer, "answer": adapter_answer})
        return
    table = Grid("who", "answer", solid={"who"}, title=text)
    table.add_row("base model", base_answer)
    table.add_row(adapter_id, adapter_answer)
    show(table)


@app.command("wandb-sync")
def wandb_sync(as_json: AsJson = False) -> None:
    """Send to W&B the runs and artifacts that were logged without a key."""
    from lora_ops.tracking.offline import send_offline_runs

    with prose_on_stderr(as_json):
        send_offline_runs(find_root())
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
    if as_json:
        print_json({"profile": name})
        return
    show(f"params.yaml now has the values of profiles/{name}.yaml.")


@tenant_app.command("add")
def tenant_add(
    name: Annotated[str, typer.Argument(help="Lower case, such as support.")],
    source: Annotated[str, typer.Argument(help="A .csv, .jsonl, .parquet or .py file inside the repository.")],
    template: Annotated[str, typer.Option(help="The prompt, columns as {name}.")] = "{text}",
    target: Annotated[str, typer.Option(help="The column with the right answer.")] = "label",
    task: Annotated[str, typer.Option(help="labels, or text for free answers.")] = "labels",
    group: Annotated[
        str | None, typer.Option(help="The column whose values must not be in two splits.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    encoding: Annotated[str, typer.Option(help="Of a CSV or JSONL file, such as latin-1.")] = "utf-8",
    delimiter: Annotated[str, typer.Option(help="Of a CSV file, such as ; or tab.")] = ",",
    on_pii: Annotated[
        str, typer.Option(help="Rows with direct identifiers: stop, drop them, or redact them.")
    ] = "stop",
    license: Annotated[str, typer.Option(help="Licence of the adapter.")] = "proprietary",
    as_json: AsJson = False,
) -> None:
    """Check a file of your own and make it a tenant: its entry is written into params.yaml."""
    from lora_ops.datasets.contract import failed_rows, require
    from lora_ops.settings.tenant import TenantSettings
    from lora_ops.tenants import REMEDIES, add_tenant, check_new_name, check_tenant, draft_tenant

    root = find_root()
    check_new_name(name, root)
    inside = Path(source).resolve()
    if not inside.is_relative_to(root):
        raise LoraOpsError(f"{source} is outside the repository: copy it to data/sources/ first.")
    with prose_on_stderr(as_json):
        entry = draft_tenant(
            inside.relative_to(root).as_posix(),
            root,
            template=template,
            target=target,
            task=task,
            group=group,
            system=system,
            encoding=encoding,
            delimiter="\t" if delimiter == "tab" else delimiter,
            on_pii=on_pii,
            license=license,
        )
    with prose_on_stderr(as_json):  # a script may print
        contract = check_tenant(name, TenantSettings.model_validate(entry), root)
    if not contract.success and not as_json:
        show(_grid(failed_rows(contract), title=f"Rows of {source} that fail"))
    require(contract, REMEDIES)
    add_tenant(name, entry, root)
    if as_json:
        print_json({"tenant": name, "entry": entry, "contract": contract.model_dump(mode="json")})
        return
    show(
        f"{name}: {contract.rows} rows pass {len(contract.checks)} checks; its entry is in params.yaml. "
        f"Next: dvc repro package@{name}"
    )


@tenant_app.command("list")
def tenant_list(as_json: AsJson = False) -> None:
    """Show every tenant of params.yaml with its data and its rows."""
    tenants = load_settings(find_root()).tenants
    if as_json:
        print_json({name: tenant.model_dump(mode="json") for name, tenant in tenants.items()})
        return
    columns = ("tenant", "answers", "train", "validation", "test", "licence")
    table = Grid(*columns, "source", solid={*columns})
    for name, tenant in tenants.items():
        data, rows = tenant.data, tenant.data.rows
        answers = f"{len(data.labels)} labels" if data.task == "labels" else "text"
        counts = (str(rows.train), str(rows.validation), str(rows.test))
        table.add_row(name, answers, *counts, tenant.package.license, data.source)
    show(table)


@tenant_app.command("remove")
def tenant_remove(
    name: Annotated[str, typer.Argument(help="A tenant of params.yaml.")], as_json: AsJson = False
) -> None:
    """Take a tenant out of params.yaml; its versions stay in the registry."""
    from lora_ops.tenants import remove_tenant

    remove_tenant(name, find_root())
    if as_json:
        print_json({"removed": name})
        return
    show(f"{name} is no tenant of params.yaml any more; its versions stay in the registry.")


@tenant_app.command("check")
def tenant_check(
    name: Annotated[str, typer.Argument(help="A tenant of params.yaml.")],
    docs: Annotated[
        bool, typer.Option("--docs", help="Also write great-expectations' pages to reports/NAME/data_docs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold a tenant's source against its contract without training anything."""
    from lora_ops.datasets.contract import checks_table, failed_rows, require
    from lora_ops.tenants import check_tenant, document_tenant

    root = find_root()
    settings = load_settings(root).tenant(name)
    contract = check_tenant(name, settings, root)
    page = document_tenant(name, settings, root) if docs else None
    if as_json:
        print_json({"ok": contract.success, **contract.model_dump(mode="json")})
        raise typer.Exit(ExitCode.OK if contract.success else ExitCode.INVALID)
    show(_grid(checks_table(contract), title=f"{name}: {contract.rows} rows"))
    if not contract.success:
        show(_grid(failed_rows(contract), title="Rows that fail"))
    if page:
        show(markup(f"The contract as pages, for a browser: {page.relative_to(root)}"))
    require(contract)


def _grid(frame: "pd.DataFrame", title: str) -> Grid:
    solid = {"row", "result", "failed"}.intersection(frame.columns)
    table = Grid(*frame.columns, solid=solid, title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    return table


def main() -> None:
    """Run the command line and exit with a code of `lora_ops.exit_codes`.

    What a person can mend is one sentence on stderr. With `--json` it is one JSON object on stdout instead.
    """
    as_json = wants_json(sys.argv[1:])
    for word in sys.argv[1:]:
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            text = "an argument is not UTF-8: set the terminal to UTF-8, or rename the file"
            _fail(ExitCode.INVALID, f"{ascii(word)}: {text}.", as_json)
    try:
        # Typer prints wrong usage and exits by itself; for JSON it hands both over.
        returned = app(standalone_mode=not as_json)
    except LoraOpsError as error:
        _fail(error.exit_code, str(error), as_json)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(ExitCode.UNAVAILABLE, f"{error.strerror or error}{where}.", as_json)
    except Exception as error:  # noqa: BLE001 - whatever it is, the exit code must say that it is ours
        if as_json and hasattr(error, "format_message"):  # wrong usage; typer has no public class for it
            _fail(ExitCode.INVALID, error.format_message(), as_json)
        traceback.print_exc()
        if as_json:
            print_error(ExitCode.INTERNAL, f"{type(error).__name__}: {error}")
        sys.exit(ExitCode.INTERNAL)
    sys.exit(returned if isinstance(returned, int) else ExitCode.OK)


def _fail(code: ExitCode, message: str, as_json: bool) -> NoReturn:
    if as_json:
        print_error(code, message)
    else:
        print(f"lora-ops: {visible(message)}", file=sys.stderr)
    sys.exit(code)


def _stay_offline(source: str) -> None:
    if source != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

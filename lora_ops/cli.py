"""The command line `lora-ops`: thin commands over the package."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import markup, show, visible
from lora_ops.grid import Grid
from lora_ops.registry.commands import Actor
from lora_ops.registry.commands import app as registry_app
from lora_ops.serving.commands import keys_app, serve
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
tenant_app = typer.Typer(no_args_is_help=True, help="The tenants of params.yaml.")
app.add_typer(tenant_app, name="tenant")
app.add_typer(registry_app, name="registry")
app.add_typer(keys_app, name="keys")
app.command()(serve)


@app.command("base-model")
def base_model() -> None:
    """Make models/base, the base model as safetensors, as params.yaml says."""
    from lora_ops.base_model import make_base_model

    root = find_root()
    settings = load_settings(root).base_model
    _stay_offline(settings.source)
    record = make_base_model(settings, root / "models/base", root / "data/raw", root)
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
) -> None:
    """Execute a notebook; its result and its page go to reports/TENANT/, without a tenant to reports/."""
    from lora_ops.notebooks import declared_parameters, parse_parameters, run_notebook

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
    run_notebook(path, root / "reports" / (tenant or "") / path.name, parameters, root)


@app.command()
def rollback(
    version: Annotated[str, typer.Argument(help="The exact version that must go, such as finance@2.")],
    reason: Annotated[str, typer.Option(help="What happened, in a sentence; it is kept.")],
    actor: Actor = None,
    gateway: Annotated[str, typer.Option(help="Whose dashboards are captured.")] = "http://localhost:8000",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without this, only show what would happen.")
    ] = False,
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
    run_notebook(root / "runbooks/rollback.ipynb", folder / "rollback.ipynb", parameters, root)
    show(f"The page: {(folder / 'rollback.html').relative_to(root)}")


@app.command()
def register(
    tenants: Annotated[
        list[str] | None, typer.Argument(help="Tenants of params.yaml; default: each one that has a package.")
    ] = None,
    actor: Actor = None,
) -> None:
    """Register what packages/ holds as each tenant's next version, named by the alias candidate.

    The same content again is the same version. A package that is refused doesn't stop the others.
    """
    from lora_ops.registration import register_packages, tenants_with_package
    from lora_ops.registry.backends import open_registry

    root = find_root()
    settings = load_settings(root)
    for name in tenants or ():
        settings.tenant(name)
    chosen = tenants or tenants_with_package(settings.tenants, root)
    refused = []
    with closing(open_registry(root, create=True)) as registry:
        for outcome in register_packages(chosen, root, registry, actor=actor):
            if outcome.version is None:
                refused.append(outcome.tenant)
                print(f"lora-ops: {outcome.tenant}: {visible(str(outcome.problem))}", file=sys.stderr)
                continue
            how = "a new version" if outcome.is_new else "this content was registered before"
            show(f"{outcome.version.id} is the candidate of {outcome.tenant} ({how}).")
    if refused:
        raise LoraOpsError(f"Not registered: {', '.join(refused)}; the reasons are above.")


@app.command()
def report() -> None:
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
    verdicts, pages, missing = [], [], []
    for manifest in manifests:
        version = registered_id(manifest, registry)
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
    show(table, *verdicts, "\nReports, for a browser:", *pages, sep="\n")
    if missing:
        show(f"Not registered: {', '.join(missing)}. Next: lora-ops register")


@app.command()
def chat(
    adapter: Annotated[str, typer.Argument(help="A tenant (its candidate) or a version such as finance@1.")],
    text: Annotated[str, typer.Argument(help="What to ask.")],
) -> None:
    """Answer TEXT with an adapter and with its base model, side by side."""
    from lora_ops.chat import ask
    from lora_ops.registry.backends import open_registry

    root = find_root()
    _stay_offline(load_settings(root).base_model.source)
    adapter_id, base_answer, adapter_answer = ask(adapter, text, open_registry(root), root)
    table = Grid("who", "answer", solid={"who"}, title=text)
    table.add_row("base model", base_answer)
    table.add_row(adapter_id, adapter_answer)
    show(table)


@app.command("wandb-sync")
def wandb_sync() -> None:
    """Send to W&B the runs and artifacts that were logged without a key."""
    from lora_ops.tracking.offline import send_offline_runs

    send_offline_runs(find_root())


@app.command()
def profile(name: Annotated[str, typer.Argument(help="A file of profiles/, such as small.")]) -> None:
    """Lay a profile over params.yaml (`git checkout params.yaml` takes it back)."""
    from lora_ops.tenants import apply_profile

    root = find_root()
    apply_profile(root / "profiles" / f"{name}.yaml", root)
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
    license: Annotated[str, typer.Option(help="Licence of the adapter.")] = "proprietary",
) -> None:
    """Check a file of your own and make it a tenant: its entry is written into params.yaml."""
    from lora_ops.datasets.contract import require
    from lora_ops.settings.tenant import TenantSettings
    from lora_ops.tenants import add_tenant, check_tenant, draft_tenant

    root = find_root()
    inside = Path(source).resolve()
    if not inside.is_relative_to(root):
        raise LoraOpsError(f"{source} is outside the repository: copy it to data/sources/ first.")
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
        license=license,
    )
    contract = check_tenant(name, TenantSettings.model_validate(entry), root)
    require(contract)
    add_tenant(name, entry, root)
    show(
        f"{name}: {contract.rows} rows pass {len(contract.checks)} checks; its entry is in params.yaml. "
        f"Next: dvc repro package@{name}"
    )


@tenant_app.command("remove")
def tenant_remove(name: Annotated[str, typer.Argument(help="A tenant of params.yaml.")]) -> None:
    """Take a tenant out of params.yaml; its versions stay in the registry."""
    from lora_ops.tenants import remove_tenant

    remove_tenant(name, find_root())
    show(f"{name} is no tenant of params.yaml any more; its versions stay in the registry.")


@tenant_app.command("check")
def tenant_check(name: Annotated[str, typer.Argument(help="A tenant of params.yaml.")]) -> None:
    """Hold a tenant's source against its contract without training anything."""
    from lora_ops.datasets.contract import require
    from lora_ops.tenants import check_tenant

    root = find_root()
    contract = check_tenant(name, load_settings(root).tenant(name), root)
    table = Grid("check", "result", "rows that fail", solid={"result"}, title=f"{name}: {contract.rows} rows")
    for check in contract.checks:
        table.add_row(check.name, "ok" if check.success else "FAILED", "; ".join(check.failed_rows[:3]))
    show(table)
    require(contract)


def main() -> None:
    """Run the command line; what a person can mend is one sentence on stderr and exit code 2."""
    try:
        app()
    except LoraOpsError as error:
        print(f"lora-ops: {visible(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"lora-ops: {visible(f'{error.strerror or error}{where}')}.", file=sys.stderr)
        sys.exit(2)


def _stay_offline(source: str) -> None:
    if source != "hub":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")

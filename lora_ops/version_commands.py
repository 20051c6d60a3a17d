"""`lora-ops register`, `report` and `compare`: what the pipeline made, as versions of the registry."""

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lora_ops.errors import LoraOpsError
from lora_ops.escaping import markup, show
from lora_ops.exit_codes import ExitCode
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, print_problem, prose_on_stderr
from lora_ops.registry.command_options import Actor, head_remembered, note_lines
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.registry.store import Registry
    from lora_ops.registry.versions import Summary


def register(
    tenants: Annotated[
        list[str] | None, typer.Argument(help="Tenants of params.yaml; default: each one that has a package.")
    ] = None,
    actor: Actor = None,
    changed_by: Annotated[
        list[str] | None,
        typer.Option(
            "--changed-by",
            help="Who made it where CI registers it: a name or address of a commit; may be repeated. Nobody "
            "so named can approve or judge it.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register what packages/ holds as each tenant's next version, named by the alias candidate.

    The same content again is the same version. A package that is refused doesn't stop the others.
    """
    from lora_ops.paths import EVALUATION_PAGE
    from lora_ops.registration import about_page, register_packages, require_one_fit, tenants_with_package
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.requirements import about_twins
    from lora_ops.registry.twins import Twins
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
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
        for outcome in register_packages(chosen, root, registry, actor=actor, changed_by=changed_by or ()):
            adapter = outcome.version.id if outcome.version else None
            told: dict[str, Any] = {
                "tenant": outcome.tenant,
                "adapter": adapter,
                "is_new": outcome.is_new,
                "problem": outcome.problem,
                "tracking_problem": None,
                "notes": [],
            }
            outcomes.append(told)
            if outcome.version is None:
                refused.append(outcome.tenant)
                print_problem(f"{outcome.tenant}: {outcome.problem}")
                continue
            work_is_done()
            if outcome.is_new:
                number, tracking = outcome.version.number, settings.tracking
                keeps_page = EVALUATION_PAGE in outcome.version.manifest.files
                with prose_on_stderr(as_json):
                    problem = log_registration(outcome.tenant, number, tracking, root, keeps_page=keeps_page)
                if problem:
                    told["tracking_problem"] = problem
                    print_problem(problem)
            how = "a new version" if outcome.is_new else "this content was registered before"
            told["notes"] = about_twins(registry, outcome.version, Twins(registry))
            if outcome.is_new:
                told["notes"] += about_page(outcome.tenant, root)
            if not as_json:
                lines = note_lines(told["notes"])
                show(f"{adapter} is the candidate of {outcome.tenant} ({how}).", *lines, sep="\n")
        remembered = head_remembered(registry)
    if as_json:
        print_json([{**outcome, **remembered} for outcome in outcomes])
        raise typer.Exit(ExitCode.INVALID if refused else ExitCode.OK)
    if refused:
        raise LoraOpsError(f"Not registered: {', '.join(refused)}; the reasons are above.")


def report(as_json: AsJson = False) -> None:
    """Show the adapters that the pipeline made beside their base; nothing is changed."""
    from lora_ops.packaging import packaged
    from lora_ops.records.evaluation import ADAPTER, BASE
    from lora_ops.registration import registered_id
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.looks import looks
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    manifests, lacking = [], list[LoraOpsError]()
    for tenant in settings.tenants:
        try:
            manifests.append(packaged(tenant, root))
        except LoraOpsError as error:
            lacking.append(error)
    if not manifests:
        raise lacking[0]
    # Only `register` makes a registry: looking must not.
    registry = open_registry(root) if (root / settings.registry.path).is_dir() else None
    columns = ("tenant", "version", "metric", "base", "adapter", "size", "training")
    table = Grid(*columns, solid={*columns})
    verdicts, pages, missing, rows = [], [], [], []
    for manifest in manifests:
        version = registered_id(manifest, registry)
        held = registry.get(version) if registry and version else None
        counted = looks(registry, held) if registry and held else None
        notes = _out_of_service(registry, held.summary) if registry and held else []
        rows.append(
            {
                "tenant": manifest.tenant,
                "adapter": version,
                "state": held.state if held else None,
                "notes": notes,
                "metrics": manifest.evaluation.model_dump(mode="json")["metrics"],
                "primary": manifest.evaluation.primary,
                "verdict": manifest.evaluation.verdict,
                "looks": counted.model_dump() if counted else None,
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
        judged = f" It is {counted}." if counted else ""
        verdicts.append(markup(f"{version or manifest.tenant} {evaluation.verdict}.{judged}"))
        verdicts += note_lines(notes)
        pages.append(markup(f"{version or manifest.tenant}: {manifest.report}"))
    if as_json:
        head = registry.log.head().text if registry else None
        print_json([{**row, "head": head} for row in rows])
        _end_with(lacking)
    seeds = "The intervals cover the held-out rows, not the training seed."
    show(table, *verdicts, seeds, "\nReports, for a browser:", *pages, sep="\n")
    if registry:
        # Printed and kept elsewhere, it shows later that the registry was not replaced by an older copy.
        show(f"The audit log ends at {registry.log.head().text} (`lora-ops registry verify --expect-head`).")
    if missing:
        show(f"Not registered: {', '.join(missing)}. Next: lora-ops register")
    _end_with(lacking)


def _end_with(lacking: Sequence[LoraOpsError]) -> NoReturn:
    """Say on stderr which tenants are left out and why, and end by it."""
    for error in lacking:
        print_problem(str(error))
    raise typer.Exit(lacking[0].exit_code if lacking else ExitCode.OK)


def _out_of_service(registry: "Registry", summary: "Summary") -> list[str]:
    """Return why a version does not serve, unless that is only because nobody has promoted it yet."""
    from lora_ops.registry.eligibility import UNREVIEWED, expiry_reason, state_reason

    state = None if summary.state in UNREVIEWED else state_reason(registry, summary)
    return [reason for reason in (state, expiry_reason(summary, registry.clock())) if reason]


def compare(
    left: Annotated[str, typer.Argument(help="A version, such as finance@2.")],
    right: Annotated[str, typer.Argument(help="Another version of the same tenant, such as finance@3.")],
    as_json: AsJson = False,
) -> None:
    """Compare two versions on the rows that both answered and neither was trained on."""
    from lora_ops.evaluation.versions import compare_versions
    from lora_ops.registry.backends import open_registry
    from lora_ops.settings.files import find_root

    with closing(open_registry(find_root())) as registry:
        found = compare_versions(registry, registry.get(left), registry.get(right))
    if as_json:
        said = {"verdict": found.verdict, "about_seeds": found.about_seeds}
        print_json({**found.model_dump(mode="json"), **said})
        return
    minus = f"{found.right} minus {found.left}"
    table = Grid("metric", found.left, found.right, minus, "p (Holm)", solid={"metric"})
    for metric, values in found.metrics.items():
        change = found.differences[metric]
        row = (*map(str, values.values()), str(change), f"{change.p_corrected:.4f}")
        table.add_row(metric, *row)
    show(table)
    rows = f"{found.rows} rows of {found.groups} groups that neither was trained on"
    show(markup(f"{found.verdict}: {rows}; {found.left_out} rows of either don't count."))
    show(markup(f"{found.about_seeds}."))
    for version, notes in found.gates.items():
        for note in notes:
            show(markup(f"Of {version}: {note}."))
    for note in found.notes:
        show(markup(f"The metrics that they recorded can't be compared: {note}."))

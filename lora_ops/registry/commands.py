"""`lora-ops registry`: tables for people, JSON for CI."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lora_ops import escaping
from lora_ops.escaping import markup
from lora_ops.exit_codes import ExitCode
from lora_ops.output import AsJson, print_json
from lora_ops.registry import tables
from lora_ops.registry.operations_commands import operations

if TYPE_CHECKING:
    from lora_ops.registry.reports import Report
    from lora_ops.registry.store import Registry
    from lora_ops.registry.versions import Version

app = typer.Typer(
    help="Which adapter versions exist, who let them serve, and whether they may.",
    no_args_is_help=True,
    add_completion=False,
)
app.registered_commands += operations.registered_commands

Reference = Annotated[str, typer.Argument(help="finance@3, finance@production or finance")]
Actor = Annotated[
    str | None,
    typer.Option("--actor", envvar="LORA_OPS_ACTOR", help="Who does this; default: the login name."),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit log.")]
Reports = Annotated[
    list[str] | None,
    typer.Option("--evidence", help="KIND=FILE or KIND=FILE=SUMMARY; may be given more than once."),
]


@contextmanager
def _registry() -> "Iterator[Registry]":
    from lora_ops.registry.backends import open_registry

    registry = open_registry()
    try:
        yield registry
    finally:
        registry.close()


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only versions in it, such as canary.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every version with its state, aliases and main number."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.records.registry import State

    if state is not None and state not in get_args(State):
        raise LoraOpsError(f"There is no state '{state}': write one of {', '.join(get_args(State))}.")
    with _registry() as registry:
        _check_tenant(registry, tenant)
        rows = [row for row in registry.summaries(tenant) if state in (None, row.state)]
    if as_json:
        print_json([{"adapter": row.id, **row._asdict()} for row in rows])
        return
    if rows:
        _print(tables.versions(rows))
    elif state:
        _print(f"No version{f' of {tenant}' if tenant else ''} is '{state}'.")
    else:
        whose = f"'{tenant}' has no version yet" if tenant else "The registry is empty"
        _print(f"{whose}: `make repro` registers the first one.")


@app.command()
def status(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Show for each tenant what is in which stage, until when, and what the next step still needs."""
    from lora_ops.registry.heads import accepted_heads
    from lora_ops.registry.status import status as status_
    from lora_ops.settings.params import load_settings

    with _registry() as registry:
        _check_tenant(registry, tenant)
        known = {*load_settings().tenants, *(one.tenant for one in registry.summaries())}
        rows = status_(registry, [tenant] if tenant else sorted(known))
        notes = accepted_heads(registry)
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    _print(tables.status(rows), *(f"[yellow]Note[/]: {markup(one)}." for one in notes))


@app.command()
def show(reference: Reference, as_json: AsJson = False) -> None:
    """What it is, who let it where, on what evidence, and whether it may serve today."""
    from lora_ops.registry.cards import record

    with _registry() as registry:
        card = record(registry, reference)
    if as_json:
        print_json(card.model_dump(mode="json"))
        return
    _print(*tables.card(card))


@app.command()
def history(reference: Reference, as_json: AsJson = False) -> None:
    """What the audit log says of one version."""
    with _registry() as registry:
        tenant, number = registry.resolve(reference)
        entries = registry.log.entries(tenant, number)
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in entries])
        return
    _print(tables.history(entries, number))


@app.command()
def diff(left: Reference, right: Reference, as_json: AsJson = False) -> None:
    """Data, parameters and metrics of two versions, side by side, where they differ."""
    from lora_ops.registry.cards import differences
    from lora_ops.registry.membership import incomparable

    with _registry() as registry:
        a, b = registry.get(left), registry.get(right)
        rows, reasons = differences(a, b), incomparable(registry, a, b)
    if as_json:
        told = [row._asdict() for row in rows]
        print_json({"left": a.id, "right": b.id, "differences": told, "incomparable": reasons})
        return
    same = f"{a.id} and {b.id} record the same data, parameters, metrics and code."
    _print(tables.differences(a.id, b.id, rows) if rows else same)
    if reasons and a.id != b.id:
        said = "; ".join(reasons)
        rest = f"`lora-ops compare {a.id} {b.id}` takes the rows that neither was trained on."
        _print(markup(f"Their metrics can't be compared: {said}. {rest}"))


@app.command()
def approve(
    reference: Reference,
    reason: Reason,
    key: Annotated[
        Path | None,
        typer.Option(help="Your SSH key, which signs: a private key, or the .pub file of one in ssh-agent."),
    ] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Agree that a canary may go to production, having seen its evidence (two approvers, never its author)."""
    from lora_ops.registry import lifecycle
    from lora_ops.registry.requirements import missing_for

    with _registry() as registry:
        said = lifecycle.approve(registry, reference, actor=_who(actor), reason=reason, key=key)
        _, missing = missing_for(registry, reference)
    if as_json:
        print_json({**said.model_dump(mode="json"), "missing": missing})
        return
    seen = ", ".join(f"{kind} {digest[:12]}…" for kind, digest in said.evidence.items())
    needs = f"for production it still needs: {'; '.join(missing)}" if missing else "nothing is missing now"
    _print(
        f"[bold]{said.adapter}[/] approved by {markup(said.person)}, {'signed' if key else 'unsigned'}, "
        f"until {said.expires_at[:10]}; {markup(needs)}.",
        f"  seen: content {said.content_digest[:12]}…, {seen}, owners.yaml {said.owners_sha256[:12]}…",
    )


@app.command()
def withdraw(reference: Reference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Take back your own approval while the version is in canary."""
    from lora_ops.registry import lifecycle

    with _registry() as registry:
        version = lifecycle.withdraw(registry, reference, actor=_who(actor), reason=reason)
        _done(version, f"is no longer approved by {_who(actor)}", as_json)


@app.command("file")
def file_(
    reference: Reference,
    kind: Annotated[str, typer.Argument(help="policy, human_evaluation, shadow, canary, incident or review")],
    source: Annotated[
        Path,
        typer.Argument(help="Raw results as JSON lines, a gateway's event folder, or a text; see the README."),
    ],
    summary: Annotated[str | None, typer.Option(help="One sentence for people.")] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Count raw results into evidence of a version and file it; approvals given before become void."""
    from lora_ops.registry import lifecycle
    from lora_ops.registry.reports import lacks, make

    with _registry() as registry:
        report = make(registry, reference, kind, source, summary)
        version = lifecycle.file_evidence(registry, reference, report, actor=_who(actor))
        lacking = list(lacks(report.document, registry.least))
    if as_json:
        print_json({**report.document.model_dump(mode="json"), "lacks": lacking})
        return
    _print(
        f"[bold]{version.id}[/] has new evidence of kind '{kind}' ({report.reference.sha256[:12]}…).",
        *(f"[yellow]It does not suffice[/]: a step needs {markup(one)}." for one in lacking),
    )


@app.command()
def promote(
    reference: Reference,
    to: Annotated[str, typer.Argument(help="validated, shadow, canary or production")],
    reason: Reason,
    actor: Actor = None,
    evidence: Reports = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", help="Go on only if the alias names this version now (finance@2, or none)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move a version one stage on, or a superseded one back to production."""
    from lora_ops.registry import lifecycle
    from lora_ops.registry.requirements import concerned

    with _registry() as registry:
        about = concerned(registry, reference, to)
        reports = _made(registry, about, evidence)
        version = lifecycle.promote(
            registry,
            reference,
            to,  # type: ignore[arg-type]
            actor=_who(actor),
            reason=reason,
            evidence=reports,
            expect=expect,
        )
        _done(version, f"is now '{version.state}'", as_json)


@app.command()
def reject(
    reference: Reference,
    reason: Reason,
    actor: Actor = None,
    evidence: Reports = None,
    as_json: AsJson = False,
) -> None:
    """Decide that a version never serves."""
    from lora_ops.registry import lifecycle

    with _registry() as registry:
        reports = _made(registry, reference, evidence)
        version = lifecycle.reject(registry, reference, actor=_who(actor), reason=reason, evidence=reports)
        _done(version, "is now 'rejected'", as_json)


@app.command()
def revoke(
    reference: Reference,
    reason: Reason,
    actor: Actor = None,
    evidence: Reports = None,
    as_json: AsJson = False,
) -> None:
    """Take a version out of service for good, at once."""
    from lora_ops.registry import lifecycle

    with _registry() as registry:
        reports = _made(registry, reference, evidence)
        version = lifecycle.revoke(registry, reference, actor=_who(actor), reason=reason, evidence=reports)
        _done(version, "is now 'revoked'", as_json)


@app.command()
def archive(reference: Reference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Put a superseded or rejected version away."""
    from lora_ops.registry import lifecycle

    with _registry() as registry:
        version = lifecycle.archive(registry, reference, actor=_who(actor), reason=reason)
        _done(version, "is now 'archived'", as_json)


@app.command()
def review(
    reference: Reference,
    reason: Reason,
    evidence: Reports = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Say that a version was looked at again; the next review is due one cadence from now."""
    from lora_ops.registry import lifecycle

    with _registry() as registry:
        reports = _made(registry, reference, evidence)
        version = lifecycle.review(registry, reference, actor=_who(actor), reason=reason, evidence=reports)
        _done(version, f"reviewed; the next review is due on {version.summary.next_review_due}", as_json)


@app.command()
def incident(
    reference: Reference,
    reason: Reason,
    evidence: Reports = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Link an incident's report (--evidence incident=FILE) to the version that was involved."""
    from lora_ops.registry import lifecycle

    with _registry() as registry:
        reports = _made(registry, reference, evidence)
        version = lifecycle.link_incident(
            registry, reference, actor=_who(actor), reason=reason, evidence=reports
        )
        _done(version, f"has one more incident on its record, and is still '{version.state}'", as_json)


@app.command()
def due(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Overdue reviews, and data that expires within 14 days."""
    from lora_ops.registry.status import due as due_

    with _registry() as registry:
        _check_tenant(registry, tenant)
        items = due_(registry, tenant)
    if as_json:
        print_json([item._asdict() for item in items])
        return
    nothing = "Nothing is due: no overdue review, no data that expires within 14 days."
    _print(tables.due(items) if items else nothing)


@app.command()
def verify(
    files: Annotated[bool, typer.Option(help="Also read every kept file and check every signature.")] = True,
    mirror: Annotated[bool, typer.Option("--mirror", help="Also compare the log with the one at W&B.")] = False,
    expect_head: Annotated[
        str | None,
        typer.Option(
            "--expect-head", help="Fail unless the log holds this entry (17:a0d71c22e54f); it may have grown."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the audit log's chain, every digest and signature, and the state; exit 1 if one is off."""
    from lora_ops.registry.backends import open_mirror
    from lora_ops.registry.heads import compare, read_head
    from lora_ops.registry.verification import verify as verify_

    with _registry() as registry:
        result = verify_(registry, files=files)
        differs = [open_mirror(registry).problem() if mirror else None]
        if expect_head:
            differs.append(compare(registry.log, read_head(expect_head), "--expect-head"))
    result = result._replace(problems=(*result.problems, *filter(None, differs)))
    if as_json:
        print_json({"ok": result.ok, **result._asdict()})
    elif result.ok:
        read = f"{result.files} files" if files else "no files read"
        _print(
            f"[green]The registry verifies[/]: {result.entries} entries, {result.versions} versions, {read}; "
            f"the log ends at {result.head}."
        )
    else:
        _print("[red]The registry does not verify[/]:", *(f"  {markup(one)}" for one in result.problems))
    if not as_json:
        _print(*(f"[yellow]Note[/]: {markup(one)}." for one in result.warnings))
    if not result.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@app.command()
def sync(as_json: AsJson = False) -> None:
    """Send to W&B what it lacks, in order, and put back the aliases that somebody moved there."""
    from lora_ops.registry.backends import open_mirror

    with _registry() as registry:
        mirror = open_mirror(registry)
        done = mirror.sync()
        target = mirror.project.target
    if as_json:
        print_json({"target": target, **done._asdict()})
        return
    sent = f"{done.sent} change{'s' if done.sent > 1 else ''} sent" if done.sent else "nothing was missing"
    _print(f"W&B ({markup(target)}): {sent}.", *(f"  put back: {markup(one)}" for one in done.restored))


@app.command()
def export(
    reference: Reference,
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    for_review: Annotated[bool, typer.Option("--for-review", help="Also what may not serve.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a version's files, manifest and signature into a new folder, all verified."""
    from lora_ops.registry import packages

    with _registry() as registry:
        version = packages.export(registry, reference, target, for_review=for_review)
        _done(version, f"written to {target}, digests and signature verified", as_json)


@app.command()
def schema(as_json: AsJson = True) -> None:
    """Print the JSON schema of the full adapter record, as `show --json` prints it."""
    from lora_ops.records.registry import AdapterRecord

    print_json(AdapterRecord.model_json_schema())


def _check_tenant(registry: "Registry", tenant: str | None) -> None:
    from lora_ops.errors import NotFound
    from lora_ops.settings.params import load_settings

    if tenant is None or registry.summaries(tenant):
        return
    known = load_settings().tenants
    if tenant not in known:
        raise NotFound(f"There is no tenant '{tenant}' (params.yaml has: {', '.join(known)}).")


def _made(registry: "Registry", reference: str, options: list[str] | None) -> "list[Report]":
    from lora_ops.errors import LoraOpsError
    from lora_ops.records.evidence import EvidenceKind
    from lora_ops.registry.reports import make

    kinds: tuple[EvidenceKind, ...] = get_args(EvidenceKind)
    made = []
    for option in options or []:
        kind, _, rest = option.partition("=")
        path, _, summary = rest.partition("=")
        if kind not in kinds or not path:
            raise LoraOpsError(
                f"'{option}' is no evidence: write KIND=FILE, with KIND one of {', '.join(kinds)}."
            )
        made.append(make(registry, reference, kind, Path(path), summary or None))
    return made


def _who(actor: str | None) -> str:
    from lora_ops.registry.changes import whoami

    return actor or whoami()


def _done(version: "Version", what: str, as_json: bool) -> None:
    if as_json:
        print_json({"adapter": version.id, **version.summary._asdict()})
    else:
        _print(f"[bold]{version.id}[/] {markup(what)}.")


def _print(*parts: Any) -> None:
    if parts:
        escaping.show(*parts, sep="\n")

"""`lora-ops registry`, for whoever moves a version on, judges it or takes it out of service."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lora_ops.escaping import markup
from lora_ops.output import AsJson, print_json
from lora_ops.registry.command_options import (
    Actor,
    ExactReference,
    Reason,
    head_remembered,
    note_lines,
    opened_registry,
    print_lines,
    print_version,
    queued_sentence,
    using,
    who,
)
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.registry.reports import Report
    from lora_ops.registry.store import Registry
    from lora_ops.registry.versions import Version

changes = typer.Typer()

Reports = Annotated[
    list[str] | None,
    typer.Option("--evidence", help="KIND=FILE or KIND=FILE=SUMMARY; may be given more than once."),
]


@changes.command()
def approve(
    reference: ExactReference,
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
    from lora_ops.registry.loosened import gate_notes
    from lora_ops.registry.requirements import about_twins, missing_for
    from lora_ops.registry.twins import Twins

    with opened_registry() as registry:
        said = lifecycle.approve(registry, reference, actor=who(actor), reason=reason, key=key)
        _, missing = missing_for(registry, reference)
        version = registry.get(reference)
        notes = [*gate_notes(registry, version), *about_twins(registry, version, Twins(registry))]
        remembered = head_remembered(registry)
    work_is_done()
    if as_json:
        print_json(
            {
                **said.model_dump(mode="json"),
                "signed": bool(key),
                "missing": missing,
                "notes": notes,
                **remembered,
            }
        )
        return
    seen = ", ".join(f"{kind} {digest[:12]}…" for kind, digest in said.evidence.items())
    needs = f"for production it still needs: {'; '.join(missing)}" if missing else "nothing is missing now"
    print_lines(
        f"[bold]{said.adapter}[/] approved by {markup(said.person)}, {'signed' if key else 'unsigned'}, "
        f"until {said.expires_at[:10]}; {markup(needs)}.",
        f"  seen: content {said.content_digest[:12]}…, {seen}, owners.yaml {said.owners_sha256[:12]}…",
        *note_lines(notes),
    )


@changes.command()
def withdraw(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Take back your own approval while the version is in canary."""
    from lora_ops.registry import lifecycle

    with opened_registry() as registry:
        version = lifecycle.withdraw(registry, reference, actor=who(actor), reason=reason)
        print_version(registry, version, f"is no longer approved by {who(actor)}", as_json)


@changes.command("file")
def file_(
    reference: ExactReference,
    kind: Annotated[
        str, typer.Argument(help="shadow, canary, incident or review; policy: `lora-ops gate`; votes: `review`")
    ],
    source: Annotated[
        Path,
        typer.Argument(
            help="Results as JSON lines, a gateway's event folder, or a text; see docs/reviewer.md."
        ),
    ],
    summary: Annotated[str | None, typer.Option(help="One sentence for people.")] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Count raw results into evidence of a version and file it; approvals given before become void."""
    from lora_ops.registry import lifecycle
    from lora_ops.registry.report_lacks import lacks
    from lora_ops.registry.reports import make

    with opened_registry() as registry:
        report = make(registry, reference, kind, source, summary)
        version = lifecycle.file_evidence(registry, reference, report, actor=who(actor))
        lacking = list(lacks(report.document, registry.least))
        remembered = head_remembered(registry)
    work_is_done()
    if as_json:
        document = {**report.document.model_dump(mode="json"), "sha256": report.reference.sha256}
        print_json({**document, "lacks": lacking, **remembered})
        return
    unbound, digest = report.document.unbound, report.document.content_digest
    note = (
        f"[yellow]Rows that name {version.id} without its digest: {unbound}[/]. Another registry may give "
        f'that name to other content. Write "digest": "{digest}" into each row where it is made.'
    )
    print_lines(
        f"[bold]{version.id}[/] has new evidence of kind '{kind}' ({report.reference.sha256[:12]}…).",
        *([note] if unbound else []),
        *(f"[yellow]It does not suffice[/]: a step needs {markup(one)}." for one in lacking),
    )


@changes.command()
def promote(
    reference: ExactReference,
    to: Annotated[str, typer.Argument(help="validated, shadow, canary or production")],
    reason: Reason,
    actor: Actor = None,
    evidence: Reports = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", help="Go on only if the alias names this version now (finance@2, or none)."),
    ] = None,
    unprobed: Annotated[
        bool, typer.Option("--unprobed", help="Don't ask the gateways for the version before all users get it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Move a version one stage on, or a superseded one back to production."""
    from lora_ops.registry import lifecycle
    from lora_ops.registry.loosened import gate_notes
    from lora_ops.registry.requirements import concerned

    with opened_registry() as registry:
        about = concerned(registry, reference, to)
        reports = _made(registry, about, evidence)
        if to == "production" and not unprobed:
            _require_answer(registry, reference)
        version = lifecycle.promote(
            registry,
            reference,
            to,  # type: ignore[arg-type]
            actor=who(actor),
            reason=reason,
            evidence=reports,
            expect=expect,
        )
        notes = gate_notes(registry, version)
        print_version(registry, version, f"is now '{version.state}'", as_json, notes)


def _require_answer(registry: "Registry", reference: str) -> None:
    """Refuse a canary that a gateway can't answer with: all users would get that.

    Nothing holds up a rollback, whose version was in production.

    Raises:
        Refused: a gateway runs, and does not answer with the version.
    """
    from lora_ops.errors import Refused
    from lora_ops.rollout.gateways import GatewayProbe
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    version = registry.get_exact(reference)
    if version.state != "canary":
        return
    root = find_root()
    settings = load_settings(root)
    probe = settings.rollout.probe.model_copy(update={"required": False})
    digest = version.summary.content_digest
    unanswered = GatewayProbe(root / settings.serving.path, probe).unanswered(version.id, digest)
    if unanswered:
        raise Refused(
            f"{version.id} did not become 'production': {unanswered}. Production answers as before; "
            "`--unprobed` goes on all the same."
        )


@changes.command()
def reject(
    reference: ExactReference,
    reason: Reason,
    actor: Actor = None,
    evidence: Reports = None,
    as_json: AsJson = False,
) -> None:
    """Decide that a version never serves."""
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.lifecycle import reject as decide

    _close(open_registry(), decide, reference, reason, actor, evidence, as_json)


@changes.command()
def revoke(
    reference: ExactReference,
    reason: Reason,
    actor: Actor = None,
    evidence: Reports = None,
    as_json: AsJson = False,
) -> None:
    """Take a version out of service for good, at once."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.lifecycle import revoke as decide
    from lora_ops.registry.unread import stop_unread
    from lora_ops.settings.files import find_root

    try:
        registry = open_registry(to_stop=reference)
    except LoraOpsError as error:
        why = stop_unread(find_root(), reference, error, actor=who(actor), reason=reason)
        work_is_done()
        said = queued_sentence(reference, why, shares_log=False)
        if as_json:
            print_json({"adapter": reference, "held": {"reason": reason, "not_sent": why}})
        else:
            print_lines(f"[bold]{markup(reference)}[/] {markup(said)}.")
        return
    _close(registry, decide, reference, reason, actor, evidence, as_json, is_stop=True)


@changes.command()
def archive(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Put a superseded or rejected version away."""
    from lora_ops.registry import lifecycle

    with opened_registry() as registry:
        version = lifecycle.archive(registry, reference, actor=who(actor), reason=reason)
        print_version(registry, version, "is now 'archived'", as_json)


@changes.command()
def review(
    reference: ExactReference,
    reason: Reason,
    evidence: Reports = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Say that a version was looked at again; the next review is due one cadence from now."""
    from lora_ops.registry import lifecycle

    with opened_registry() as registry:
        reports = _made(registry, reference, evidence)
        version = lifecycle.review(registry, reference, actor=who(actor), reason=reason, evidence=reports)
        print_version(
            registry, version, f"reviewed; the next review is due on {version.summary.next_review_due}", as_json
        )


@changes.command()
def incident(
    reference: ExactReference,
    reason: Reason,
    evidence: Reports = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Link an incident's report (--evidence incident=FILE) to the version that was involved."""
    from lora_ops.registry import lifecycle
    from lora_ops.registry.twins import answering_notes

    with opened_registry() as registry:
        reports = _made(registry, reference, evidence)
        version = lifecycle.link_incident(
            registry, reference, actor=who(actor), reason=reason, evidence=reports
        )
        said = f"has one more incident on its record, and is still '{version.state}'"
        print_version(registry, version, said, as_json, answering_notes(registry, version.summary))


def _close(
    opened: "Registry",
    decide: "Callable[..., Version]",
    reference: str,
    reason: str,
    actor: str | None,
    evidence: list[str] | None,
    as_json: bool,
    is_stop: bool = False,
) -> None:
    """Close a version, and name what may still answer with its weights."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry.twins import answering_notes

    with using(opened) as registry:
        reports = _made(registry, reference, evidence)
        version = decide(registry, reference, actor=who(actor), reason=reason, evidence=reports)
        try:
            notes = answering_notes(registry, version.summary)
        except LoraOpsError:
            if not registry.not_sent:
                raise
            notes = []  # the version is stopped, whatever else is damaged
        hold = registry.stop_of(version.summary) if registry.not_sent else registry.hold_of(version.summary)
        said = f"is now '{version.state}'"
        facts: dict[str, Any] = {"held": None} if is_stop else {}
        if is_stop and hold:
            kind = {"shares_log": registry.shares_log, "is_signed": hold.is_signed}
            said = queued_sentence(version.id, registry.not_sent, **kind)
            facts["held"] = {**hold.facts, "not_sent": registry.not_sent}
        print_version(registry, version, said, as_json, notes, **facts)


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

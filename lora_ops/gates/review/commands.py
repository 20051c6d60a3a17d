"""`lora-ops review`: blinded pairs of answers, judged by people, as evidence of a version."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ops.escaping import markup
from lora_ops.output import AsJson, print_json
from lora_ops.registry.command_options import (
    Actor,
    ExactReference,
    head_remembered,
    note_lines,
    opened_registry,
    print_lines,
    who,
)
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.gates.review.sessions import Session
    from lora_ops.registry.store import Registry

app = typer.Typer(no_args_is_help=True, help="Blinded pairs of answers, judged by people.")

As = Annotated[str | None, typer.Option("--as", help="Whose list; default: yours.", metavar="PERSON")]
Table = Annotated[Path, typer.Argument(help="A CSV file for a spreadsheet.")]


@contextmanager
def _opened(reference: str) -> "Iterator[tuple[Registry, Session]]":
    from lora_ops.gates.review.sessions import open_session

    with opened_registry() as registry:
        yield registry, open_session(registry, reference)


@app.command()
def start(
    reference: ExactReference,
    against: Annotated[str, typer.Option(help="base, production or a version such as finance@1.")] = "base",
    reviewer: Annotated[
        list[str] | None,
        typer.Option(help="Whose votes are asked for; repeat it. Default: everybody who may judge."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="With two different answers; a few checks are added.")] = 40,
    annotators: Annotated[
        int | None, typer.Option(help="Reviewers of each pair; default: registry.evidence.annotators.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides all that is drawn; the evidence names a chosen one.")
    ] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Draw which pairs of answers each reviewer sees; they judge them in notebooks/05_review.ipynb."""
    from lora_ops.gates.review import sessions
    from lora_ops.records.evaluation import BASE
    from lora_ops.registry.objections import was_in_production
    from lora_ops.registry.versions import parse_reference
    from lora_ops.settings.files import find_root

    guidelines = sessions.guidelines_of(find_root(), parse_reference(reference)[0])
    with opened_registry() as registry:
        made = sessions.start(
            registry,
            reference,
            actor=who(actor),
            against=against,
            reviewers=reviewer or (),
            pairs=pairs,
            annotators=annotators,
            seed=seed,
            guidelines=guidelines,
        )
        needed, plan = registry.least.pairs, made.plan
        counts = plan.against == BASE or was_in_production(registry, plan.against)
    work_is_done()
    differing = sum(pair.differs for pair in plan.pairs)
    lists = {person: len(tasks) for person, tasks in plan.tasks.items()}
    notes = []
    if differing < needed:
        notes.append(
            f"it has {differing} pairs, and a step needs {needed} (registry.evidence.pairs): of {plan.rows} "
            f"rows {plan.differing} have two different answers"
        )
    if not counts:
        notes.append(
            f"{plan.against} was never in production, and a step needs a comparison with the base model or a "
            "version that was"
        )
    if plan.against_answers_sha256 and not plan.against_regression_sha256:
        notes.append(f"no gate let {plan.against} give its answers again, so reviewers see its packaged ones")
    if guidelines is None:
        notes.append(f"there is no {sessions.GUIDELINES}/{plan.tenant}.md, which would say how to judge")
    if as_json:
        facts: dict[str, Any] = {"adapter": plan.adapter, "against": plan.against, "pairs": differing}
        facts |= {"reviewers": lists, "plan_sha256": made.plan_sha256, "folder": str(made.folder)}
        print_json({**facts, "notes": notes})
        return
    print_lines(
        f"[bold]{plan.adapter}[/] is compared with {plan.against}: {differing} pairs, "
        + markup(", ".join(f"{person} {many}" for person, many in lists.items())),
        "  Each reviewer opens notebooks/05_review.ipynb (`make lab`), or exports a table:",
        f"  lora-ops review export {plan.adapter} votes.csv --as {next(iter(lists))}",
        *note_lines(notes),
    )


@app.command()
def status(reference: ExactReference, as_json: AsJson = False) -> None:
    """Show how far each reviewer is; nobody's votes."""
    from lora_ops.gates.review.progress import progress
    from lora_ops.grid import Grid

    with _opened(reference) as (_, session):
        found = progress(session)
    if as_json:
        print_json({"adapter": session.plan.adapter, "reviewers": [one._asdict() for one in found]})
        return
    table = Grid("reviewer", "judged", "of", "submitted", solid={"reviewer"}, title=session.plan.adapter)
    for one in found:
        table.add_row(one.reviewer, str(one.judged), str(one.total), "yes" if one.is_submitted else "no")
    print_lines(table, *note_lines([one.problem for one in found if one.problem]))


@app.command("export")
def export_(
    reference: ExactReference, table: Table, person: As = None, actor: Actor = None, as_json: AsJson = False
) -> None:
    """Write a reviewer's pairs into a CSV file, for people without JupyterLab."""
    from lora_ops.gates.review.desk import Desk
    from lora_ops.gates.review.spreadsheet import write_table

    with _opened(reference) as (registry, session):
        desk = Desk(registry, session, person or who(actor))
        write_table(desk, table)
    work_is_done()
    if as_json:
        print_json({"reviewer": desk.reviewer, "pairs": desk.total, "judged": desk.judged, "file": str(table)})
        return
    print_lines(markup(f"{table} has the {desk.total} pairs of {desk.reviewer}, {desk.judged} judged."))


@app.command("import")
def import_(
    reference: ExactReference, table: Table, person: As = None, actor: Actor = None, as_json: AsJson = False
) -> None:
    """Take a reviewer's votes from a CSV file that `review export` wrote."""
    from lora_ops.gates.review.desk import Desk
    from lora_ops.gates.review.spreadsheet import read_table

    with _opened(reference) as (registry, session):
        desk = Desk(registry, session, person or who(actor))
        taken = read_table(desk, table)
    work_is_done()
    if as_json:
        print_json({"reviewer": desk.reviewer, "taken": taken, "judged": desk.judged, "pairs": desk.total})
        return
    said = (
        f"{taken} votes of {desk.reviewer} are new or changed; {desk.judged} of {desk.total} pairs are judged."
    )
    print_lines(markup(said))


@app.command()
def submit(
    reference: ExactReference,
    key: Annotated[
        Path | None,
        typer.Option(help="Your SSH key, which signs: a private key, or the .pub file of one in ssh-agent."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Also with pairs that you did not judge.")] = False,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Hand your votes in; nothing of them changes from then on."""
    from lora_ops.gates.review.submissions import submit as hand_in

    with _opened(reference) as (registry, session):
        said = hand_in(registry, session, actor=who(actor), key=key, partial=partial)
    work_is_done()
    if as_json:
        print_json({**said.model_dump(mode="json"), "signed": bool(key)})
        return
    signed = "signed" if key else "unsigned"
    print_lines(
        f"[bold]{said.adapter}[/]: {said.judged} of {said.tasks} votes of {markup(said.person)} are submitted, "
        f"{signed} ({said.annotations_sha256[:12]}…)."
    )


@app.command("file")
def file_(
    reference: ExactReference,
    summary: Annotated[str | None, typer.Option(help="One sentence for people.")] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Count what the reviewers submitted into evidence of a version and file it."""
    from lora_ops.free_text import require_text
    from lora_ops.gates.review.evidence import make_report
    from lora_ops.gates.review.progress import findings
    from lora_ops.records.evidence import HumanEvidence
    from lora_ops.registry import lifecycle
    from lora_ops.registry.report_lacks import lacks

    if summary is not None:
        summary = require_text(summary, "Say it in a sentence (--summary)")
    with opened_registry() as registry:
        report, left_out = make_report(registry, reference, summary)
        version = lifecycle.file_evidence(registry, reference, report, actor=who(actor))
        lacking = list(lacks(report.document, registry.least))
        remembered = head_remembered(registry)
    work_is_done()
    document = report.document
    assert isinstance(document, HumanEvidence)
    if as_json:
        facts = {**document.model_dump(mode="json"), "sha256": report.reference.sha256}
        print_json({**facts, "lacks": lacking, "left_out": left_out, **remembered})
        return
    print_lines(
        f"[bold]{version.id}[/] has new evidence of kind 'human_evaluation' ({report.reference.sha256[:12]}…).",
        *(f"  {markup(one)}" for one in findings(document)),
        *note_lines(left_out),
        *(f"[yellow]It does not suffice[/]: a step needs {markup(one)}." for one in lacking),
    )


@app.command()
def corrections(
    reference: ExactReference,
    target: Annotated[Path, typer.Argument(help="A new file of JSON lines.", metavar="FILE")],
    as_json: AsJson = False,
) -> None:
    """Write corrected answers as training rows; rows that are still tested with are refused."""
    from lora_ops.gates.review import corrections as made
    from lora_ops.settings.data import DataSettings
    from lora_ops.settings.files import find_root, read_section

    with _opened(reference) as (registry, session):
        tenant = session.plan.tenant
        settings = read_section(find_root(), f"tenants.{tenant}.data", DataSettings)
        found = made.corrections(registry, session, settings.moved_groups)
    made.write(found, target, tenant)
    work_is_done()
    if as_json:
        facts = {"held_out_groups": found.held_out, "disputed": found.disputed}
        print_json({"adapter": session.plan.adapter, "rows": len(found.rows), "file": str(target), **facts})
        return
    notes = [f"reviewers correct '{text}' in different ways: it is left out" for text in found.disputed]
    notes += [made.how_to_move(found.held_out, tenant)] if found.held_out else []
    print_lines(markup(f"{target} has {len(found.rows)} training rows."), *note_lines(notes))


@app.command()
def recount(reference: ExactReference, as_json: AsJson = False) -> None:
    """Count the filed review again from what the registry keeps, and say where it differs."""
    from lora_ops.errors import NotFound
    from lora_ops.exit_codes import ExitCode
    from lora_ops.gates.review.evidence import recount as count_again
    from lora_ops.registry.reports import filed

    with opened_registry() as registry:
        version = registry.get_exact(reference, whole=False)
        history = registry.log.entries(version.tenant, version.number)
        evidence = filed(version, history).get("human_evaluation")
        if evidence is None:
            raise NotFound(f"{version.id} has no filed review: `lora-ops review file {version.id}` files one.")
        differs = count_again(registry, evidence)
    if as_json:
        print_json({"adapter": version.id, "sha256": evidence.sha256, "differs": differs})
    else:
        said = f"differs in {', '.join(differs)}" if differs else "gives the same"
        print_lines(f"[bold]{version.id}[/]: counting {evidence.sha256[:12]}… again {said}.")
    raise typer.Exit(ExitCode.CHECK_FAILED if differs else ExitCode.OK)

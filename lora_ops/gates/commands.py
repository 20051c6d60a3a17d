"""`lora-ops gate` and `lora-ops cases`: what a version must show before its next stage."""

from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.escaping import markup
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, prose_on_stderr
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
    from lora_ops.gates.rows import GateRow

STYLES = {"pass": "green", "fail": "red", "undecided": "yellow", "missing": "yellow"}
STYLES["not applicable"] = "dim"


def gate(
    reference: ExactReference,
    again: Annotated[
        bool,
        typer.Option("--replay", help="Compute the kept reports again, offline, and say what differs."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the gates, and file nothing.")] = False,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Compare a version with its base, production and earlier ones, judge its policy answers, show every gate.

    Ends with 0 where all gates pass, 1 where one fails, 3 where none fails and one is undecided or missing.
    """
    from lora_ops.gates.gate import exit_code, gate_rows, make_regression_report, replay, replayed
    from lora_ops.gates.policy_gate import make_policy_report
    from lora_ops.gates.report import read_shown, report_page, write_report_page
    from lora_ops.gates.tables import version_tables
    from lora_ops.registry import lifecycle
    from lora_ops.registry.loosened import gate_notes
    from lora_ops.registry.reports import filed
    from lora_ops.registry.roles import ANYBODY, require_role
    from lora_ops.registry.steps import keep_reports
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.tracking.gates import log_gates

    root = find_root()
    settings = load_settings(root)
    notes: list[str] = []
    of_this_run: list[GateRow] = []
    with opened_registry() as registry:
        version = registry.get_exact(reference)
        if again:
            differences, kinds = list(replay(registry, version)), list(replayed(registry, version))
        elif not dry_run:
            # Answers take a minute: whoever may not file them is told before.
            require_role(
                registry, version, who(actor), ANYBODY, f"file evidence of {version.id} (or --dry-run)"
            )
            with prose_on_stderr(as_json):
                made = [
                    make_regression_report(registry, version, root),
                    make_policy_report(registry, version, root, settings.detectors),
                ]
            notes = [note for one in made for note in one.notes]
            of_this_run = [row for one in made for row in one.rows]
            before = filed(version, registry.log.entries(version.tenant, version.number))
            for report in (one.report for one in made if one.report):
                last = before.get(report.document.kind)
                # The same answers give the same report: filing it again would void approvals.
                if last is None or last.source_sha256 != report.document.source.sha256:
                    lifecycle.file_evidence(registry, version.id, report, actor=who(actor))
                elif not registry.files.holds(report.document.source.sha256):
                    keep_reports(registry, [report])  # a lost source comes back
        rows = gate_rows(registry, version)
        rows += of_this_run
        notes += gate_notes(registry, version)
        keeps = settings.serving.tenant(version.tenant).keep_text
        shown = read_shown(registry, version, rows)
        page = report_page(registry, version, shown, keep_text=keeps)
        remembered = head_remembered(registry)
    path = None if dry_run else write_report_page(page, version, root)
    work_is_done()
    if not (dry_run or again):
        with prose_on_stderr(as_json):
            tables = version_tables(shown)
            problem = log_gates(version.id, version.manifest, tables, page, settings.tracking, root)
        notes += [problem] if problem else []
    code = 1 if again and differences else exit_code(rows)
    if as_json:
        more = {"differences": differences, "replayed": kinds} if again else {}
        print_json(
            {
                "adapter": version.id,
                "exit_code": code,
                "gates": [row._asdict() for row in rows],
                "notes": notes,
                "page": str(path) if path else None,
                **more,
                **remembered,
            }
        )
        raise typer.Exit(code)
    columns = ("gate", "verdict", "found", "threshold", "evidence")
    table = Grid(*columns, solid={"verdict", "evidence"})
    for row in rows:
        digest = f"{row.evidence[:8]}…" if row.evidence else ""
        table.add_row(row.gate, row.verdict, row.found, row.threshold, digest, style=STYLES[row.verdict])
    print_lines(table, *(_advice(row) for row in rows if row.verdict != "pass"), *note_lines(notes))
    if again:
        if differences:
            print_lines(*note_lines(differences))
        else:
            said = ", ".join(kinds) or "nothing: no report is filed that could be"
            print_lines(f"Computed again, and the same: {said}.")
    if path:
        print_lines(f"The page: {markup(str(path.relative_to(root)))}")
    raise typer.Exit(code)


def _advice(row: "GateRow") -> str:
    """Return what is to be known of a gate that does not pass."""
    verdict = f"{row.verdict} ({row.more_rows} more rows needed)" if row.more_rows else row.verdict
    return f"{markup(row.gate)}: {verdict}{f', {markup(row.note)}' if row.note else ''}."


def cases(
    tenant: Annotated[str, typer.Argument(help="A tenant of params.yaml.")], as_json: AsJson = False
) -> None:
    """Check a tenant's regression and policy suites and write their prompts to reports/TENANT.

    The red-team prompts come from a pinned package, downloaded once to data/raw.
    """
    from lora_ops.folders import make_folder
    from lora_ops.gates.cases import read_and_ask
    from lora_ops.gates.policy_prompts import read_and_ask_policy
    from lora_ops.paths import CASES, POLICY_PROMPTS
    from lora_ops.processes import end_with_dvc
    from lora_ops.registry.files import write_atomically
    from lora_ops.settings.files import find_root

    end_with_dvc()
    root = find_root()
    record = read_and_ask(tenant, root)
    policy = read_and_ask_policy(tenant, root)
    folder = root / "reports" / tenant
    make_folder(folder)
    write_atomically(folder / CASES, record.to_json().encode())
    write_atomically(folder / POLICY_PROMPTS, policy.to_json().encode())
    work_is_done()
    if as_json:
        print_json({**record.model_dump(mode="json"), "policy": policy.model_dump(mode="json")})
        return
    red_team = sum(one.kind == "red_team" for one in policy.prompts)
    print_lines(
        f"{tenant}: {len(record.cases)} cases in {len(record.slices)} slices; {len(policy.prompts)} policy "
        f"prompts, {red_team} of them by a red team."
    )

"""`lora-ops release`: the notes of a version, which people complete before it goes to production."""

import typer

from lora_ops.escaping import markup
from lora_ops.output import AsJson, print_json, prose_on_stderr
from lora_ops.registry.command_options import (
    Actor,
    ExactReference,
    Reference,
    head_remembered,
    note_lines,
    opened_registry,
    print_lines,
    who,
)
from lora_ops.streams import work_is_done

app = typer.Typer(no_args_is_help=True, help="Release notes: what changed, and what only people know.")


@app.command()
def draft(reference: ExactReference, as_json: AsJson = False) -> None:
    """Write releases/TENANT@N.yaml, whose fields people fill in."""
    from lora_ops.gates.release import draft as write_draft
    from lora_ops.settings.files import find_root

    with opened_registry() as registry:
        version = registry.get_exact(reference, whole=False)
    path = write_draft(find_root(), version.id)
    work_is_done()
    if as_json:
        print_json({"adapter": version.id, "file": str(path)})
    else:
        print_lines(f"Fill in {markup(str(path))}, then: lora-ops release file {version.id}")


@app.command("file")
def file_(reference: ExactReference, actor: Actor = None, as_json: AsJson = False) -> None:
    """Render the notes from what is known and from the filled fields, and file them; approvals become void."""
    from lora_ops.gates.release import release_report
    from lora_ops.gates.report import write_report_page
    from lora_ops.gates.tables import version_tables
    from lora_ops.registry import lifecycle
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings
    from lora_ops.tracking.gates import log_release_notes

    root = find_root()
    settings = load_settings(root)
    with opened_registry() as registry:
        version = registry.get_exact(reference)
        keeps = settings.serving.tenant(version.tenant).keep_text
        report, page, shown = release_report(registry, version, root, keep_text=keeps)
        write_report_page(page, version, root)
        lifecycle.file_evidence(registry, version.id, report, actor=who(actor))
        remembered = head_remembered(registry)
    work_is_done()
    tables, text = version_tables(shown), report.source.decode()
    with prose_on_stderr(as_json):
        problem = log_release_notes(version.id, version.manifest, tables, text, settings.tracking, root)
    if as_json:
        document = {**report.document.model_dump(mode="json"), "sha256": report.reference.sha256}
        print_json({**document, "tracking_problem": problem, **remembered})
        return
    print_lines(f"[bold]{version.id}[/] has release notes ({report.reference.sha256[:12]}…).")
    print_lines(*note_lines([problem] if problem else []))


@app.command()
def show(reference: Reference, as_json: AsJson = False) -> None:
    """Print the filed notes of a version as Markdown, with its approvals and what its KPIs showed since."""
    from lora_ops.errors import NotFound
    from lora_ops.gates.release import addenda_text, approvals_text
    from lora_ops.registry.reports import filed
    from lora_ops.small_files import read_text

    with opened_registry() as registry:
        version = registry.get(reference)
        one = filed(version, registry.log.entries(version.tenant, version.number)).get("release_notes")
        if one is None or one.source_sha256 is None:
            raise NotFound(f"{version.id} has no release notes yet: `lora-ops release draft {version.id}`.")
        text = read_text(registry.files.checked(one.source_sha256, "the release notes"))
        after = approvals_text(registry, version) + addenda_text(registry, version)
    work_is_done()
    if as_json:
        print_json({"adapter": version.id, "sha256": one.sha256, "markdown": f"{text}\n{after}"})
    else:
        typer.echo(f"{text}\n{after}", nl=False)

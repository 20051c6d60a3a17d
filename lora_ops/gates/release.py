"""Release notes of a version: what is known is written by the machine, what only people know by people."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from lora_ops import __version__
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.escaping import markdown
from lora_ops.free_text import count_letters
from lora_ops.gates.gate import gate_rows
from lora_ops.gates.report import BeforeAfter, Shown, headline, read_shown, report_page
from lora_ops.gates.rows import GateRow
from lora_ops.hashing import sha256_bytes
from lora_ops.records.evidence import ReleaseNotesEvidence, Source
from lora_ops.registry.approvals import approvals_of
from lora_ops.registry.cards import Difference, differences
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.reports import Report, filed, own_evidence
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.files import first_problem, read_yaml
from lora_ops.settings.release import ReleaseFields
from lora_ops.small_files import read_text, write_new

FOLDER = "releases"
SHOWN = 10
"""Samples and differences in the notes; the page has all of them."""
LEAST_LETTERS = 10
"""What is shorter says nothing that a reader could use."""
TITLES = {
    "summary": "What changes",
    "known_limits": "Known limits",
    "experience": "Experience",
    "expertise": "Expertise",
    "authority": "Authority",
    "trust": "Trust",
}


def fields_path(root: Path, version: str) -> Path:
    """Return where the fields of a version's release notes are."""
    return root / FOLDER / f"{version}.yaml"


def draft(root: Path, version: str) -> Path:
    """Write the empty fields of a version's release notes for people to fill in.

    Raises:
        LoraOpsError: they were drafted before.
    """
    path = fields_path(root, version)
    lines = [
        f"# What only people know of {version}. `lora-ops release file {version}` takes it into the notes."
    ]
    for name, field in ReleaseFields.model_fields.items():
        lines += ["", f"# {field.description}", f'{name}: ""']
    path.parent.mkdir(exist_ok=True)
    try:
        write_new(path, "\n".join(lines) + "\n")
    except FileExistsError as error:
        raise LoraOpsError(
            f"{FOLDER}/{path.name} exists already: fill it in, then `lora-ops release file`."
        ) from error
    return path


def read_fields(root: Path, version: str) -> ReleaseFields:
    """Return the filled fields of a version's release notes.

    Raises:
        LoraOpsError: there is no such file, or a field has another name or form.
        Refused: a field is empty, or too short to say anything.
    """
    path = fields_path(root, version)
    where = f"{FOLDER}/{path.name}"
    if not path.is_file():
        raise LoraOpsError(
            f"There is no {where}: `lora-ops release draft {version}` writes it to be filled in."
        )
    try:
        fields = ReleaseFields.model_validate(read_yaml(path) or {})
    except ValidationError as error:
        raise LoraOpsError(f"{where}: {first_problem(error)}.") from error
    if fields.empty:
        raise Refused(f"{where}: nobody has written {', '.join(fields.empty)}: only a person knows it.")
    short = [name for name, value in fields.model_dump().items() if count_letters(value) < LEAST_LETTERS]
    if short:
        raise Refused(f"{where}: {', '.join(short)} has fewer than {LEAST_LETTERS} letters: write a sentence.")
    return fields


class Release(NamedTuple):
    """Release notes as evidence that is not filed yet, the page that they name, and what both show."""

    report: Report
    page: str
    shown: Shown


def release_report(registry: Registry, version: Version, root: Path, *, keep_text: bool = False) -> Release:
    """Return the release notes of a version.

    `keep_text` says whether the tenant's prompts and answers may stand on the page.

    Raises:
        LoraOpsError: as `read_fields`; or a kept file is missing or was changed.
    """
    fields = read_fields(root, version.id)
    rows = gate_rows(registry, version)
    shown = read_shown(registry, version, rows)
    page = report_page(registry, version, shown, keep_text=keep_text)
    report = filed(version, registry.log.entries(version.tenant, version.number)).get("regression")
    text = notes_text(registry, version, fields, shown).encode()
    document = ReleaseNotesEvidence(
        tenant=version.tenant,
        adapter=version.id,
        content_digest=version.summary.content_digest,
        made_by=f"lora-ops {__version__} release",
        made_at=registry.clock(),
        source=Source(name=f"{version.id}.md", sha256=sha256_bytes(text), bytes=len(text)),
        fields=fields.model_dump(),
        page_sha256=sha256_bytes(page.encode()),
        production=shown.production.summary.content_digest if shown.production else None,
        regression=report.sha256 if report else None,
    )
    return Release(Report(document, text, f"release notes: {headline(rows)}"), page, shown)


def notes_text(registry: Registry, version: Version, fields: ReleaseFields, shown: Shown) -> str:
    """Return the release notes of a version as Markdown, without its approvals, which come later.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    production = shown.production
    said = {name: markdown(value) for name, value in fields.model_dump().items()}
    changes = differences(production, version) if production else []
    parts = [
        f"# {version.id}",
        f"Verdict: {headline(shown.rows)}. Content `{version.summary.content_digest}`.",
        f"## {TITLES['summary']}",
        said["summary"],
        *([f"### Since {production.id}", _changes(changes, production.id, version.id)] if production else []),
        "## Gates",
        _gates(shown.rows),
        "## Before and after",
        _samples(shown.samples, version.id),
        "## Experience, expertise, authority, trust",
        *(f"**{TITLES[name]}.** {said[name]}" for name in ("experience", "expertise", "authority", "trust")),
        f"## {TITLES['known_limits']}",
        said["known_limits"],
        *(f"- {markdown(note)}" for note in gate_notes(registry, version)),
    ]
    return "\n\n".join(parts) + "\n"


def approvals_text(registry: Registry, version: Version) -> str:
    """Return who agreed to a version's production, as the end of its notes."""
    history = registry.log.entries(version.tenant, version.number)
    given = approvals_of(registry, version, history)
    lines = [
        f"- {markdown(one.person)}, {one.at[:10]}: {markdown(one.reason)}"
        + (f" (void: {one.void})" if one.void else "")
        for one in given
    ]
    return "\n".join(["## Approvals", "", *(lines or ["Nobody has approved it yet."])]) + "\n"


def addenda_text(registry: Registry, version: Version) -> str:
    """Return what was filed of a version's KPIs since its notes, oldest first; empty where nothing was.

    Raises:
        LoraOpsError: a kept file is missing or was changed.
    """
    history = registry.log.entries(version.tenant, version.number)
    kept = [one for one in own_evidence(history, version.number) if one.kind == "kpi" and one.source_sha256]
    texts = [
        read_text(registry.files.checked(str(one.source_sha256), "an addendum of the release notes"))
        for one in kept
    ]
    return "".join(f"\n{text}" for text in texts)


def _gates(rows: Sequence[GateRow]) -> str:
    found = [(row.gate, row.verdict, row.found, row.threshold) for row in rows]
    return _table(("gate", "verdict", "found", "threshold"), found)


def _changes(changes: Sequence[Difference], before: str, now: str) -> str:
    chosen = [one for one in changes if one.section in ("data", "params", "base model")]
    if not chosen:
        return "Data, settings and base model are the same."
    found = [(f"{one.section}: {one.name}", _cut(one.left), _cut(one.right)) for one in chosen[:SHOWN]]
    more = f"\n\n{len(chosen) - SHOWN} more are in the page." if len(chosen) > SHOWN else ""
    return _table(("what", before, now), found) + more


def _samples(samples: Sequence[BeforeAfter], version: str) -> str:
    if not samples:
        return "The package keeps none."
    found = [tuple(map(_cut, (one.text, one.target, one.base, one.adapter))) for one in samples[:SHOWN]]
    return _table(("text", "right answer", "base model", version), found)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; what the cells say is no markup."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    return "\n".join(lines)


def _cut(text: str | None) -> str:
    return " ".join((text or "").split())[:200]

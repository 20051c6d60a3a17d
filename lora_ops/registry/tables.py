"""The registry as people read it: rich tables, for the terminal and for a notebook."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_ops.clock import to_the_minute
from lora_ops.escaping import cell, markup, one_line
from lora_ops.grid import Grid

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lora_ops.records.evaluation import BiasAssessment
    from lora_ops.records.live import LiveSummary, LiveTimes
    from lora_ops.records.registry import AdapterRecord, AuditEntry, Performance
    from lora_ops.registry.cards import Difference
    from lora_ops.registry.route_overview import RouteView
    from lora_ops.registry.status import Due, TenantStatus
    from lora_ops.registry.store import Registry
    from lora_ops.registry.versions import Summary

COLOURS = {
    "production": "green",
    "revoked": "red",
    "rejected": "red",
    "superseded": "dim",
    "archived": "dim",
}


def versions(rows: "Iterable[Summary]") -> Grid:
    """One line per version."""
    table = Grid(
        "version",
        "state",
        "aliases",
        "main metric",
        "fresh until",
        solid={"version", "state", "main metric", "fresh until"},
    )
    for row in rows:
        table.add_row(
            row.id,
            _state(row.state),
            ", ".join(row.aliases),
            f"{row.primary_metric} {row.primary_value:.3f}",
            row.fresh_until[:10],
        )
    return table


def card(record: "AdapterRecord") -> "Iterator[RenderableType]":
    """The answer in a sentence, the record, and the history with its evidence."""
    verdict = record.verdict
    others = [alias for alias in record.aliases if alias != record.state]
    names = f" ({', '.join(others)})" if others else ""
    answer = "[green]may serve today[/]" if verdict.may_serve else "[red]may NOT serve today[/]"
    because = f": {markup('; '.join(verdict.reasons))}" if verdict.reasons else ""
    yield f"[bold]{record.id}[/] is {_state(record.state).markup}{names} and {answer}{because}."
    for warning in verdict.warnings:
        yield f"Note: {markup(warning)}."
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(record):
        table.add_row(cell(name), cell(text))
    yield table
    if record.risk.bias and record.risk.bias.groups:
        yield f"\n[bold]{markup(record.risk.bias.metric)} by group[/], best first"
        yield groups(record.risk.bias)
    yield "\n[bold]Who let it where, on what evidence[/]"
    yield history(record.history, record.number)


def page(registry: "Registry", reference: str, beside: str | None = None) -> "Iterator[RenderableType]":
    """The card of one version, and what differs from another one.

    Raises:
        LoraOpsError: unknown version.
    """
    from lora_ops.registry import cards

    yield from card(cards.record(registry, reference))
    if beside:
        left, right = registry.get(beside), registry.get(reference)
        yield differences(left.id, right.id, cards.differences(left, right))


def history(entries: "Iterable[AuditEntry]", number: int) -> Grid:
    """One line per entry of the audit log on version `number`, with the evidence that it rests on."""
    table = Grid("#", "when", "did", "who", "why", "on what evidence", solid={"#", "when", "did"})
    for entry in entries:
        evidence = [f"{one.kind}: {one_line(one.summary)} ({one.sha256[:8]}…)" for one in entry.evidence]
        behind = entry.body.get("clock_behind_seconds")
        held = str(entry.body.get("held_at", ""))
        when = to_the_minute(entry.at) + (f"\n(clock {behind} s behind)" if behind else "")
        when += f"\n(on one machine\n{to_the_minute(held)})" if held else ""
        reason = one_line(str(entry.body.get("reason", "")))
        row = (str(entry.seq), when, entry.effect_on(number), entry.actor, reason, "\n".join(evidence))
        table.add_row(*row)
    return table


def groups(bias: "BiasAssessment") -> Grid:
    """One line per group with its rows; those with too few of them to be compared are dim."""
    table = Grid("group", "rows", "value", "95 % interval", solid={"rows", "value", "95 % interval"})
    for name, group in sorted(bias.groups.items(), key=lambda item: -item[1].value.value):
        value = group.value
        row = (name, str(group.rows), f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}")
        table.add_row(*row, style=None if name in bias.compared else "dim")
    return table


def differences(left: str, right: str, rows: "Iterable[Difference]") -> Grid:
    """What two versions do not share, side by side."""
    table = Grid("section", "what", left, right, solid={"section"})
    section = ""
    for row in rows:
        if section and row.section != section:
            table.add_section()
        label, section = (row.section if row.section != section else ""), row.section
        rounded = _rounded(row.left), _rounded(row.right)
        shown = rounded if rounded[0] != rounded[1] else (row.left, row.right)
        table.add_row(label, row.name, *map(_short, shown))
    return table


def status(rows: "Iterable[TenantStatus]") -> Grid:
    """One line per tenant, and what its next step needs."""
    columns = ("tenant", "production", "canary", "shadow", "candidate", "fresh until", "review due")
    table = Grid(*columns, "next", solid={*columns})
    for row in rows:
        needs = f" needs {'; '.join(row.missing)}" if row.missing else " lacks nothing but a reason"
        coming = f"{row.next_version} -> {row.next_stage}{needs}" if row.next_stage else "-"
        dates = [moment[:10] if moment else "-" for moment in (row.fresh_until, row.next_review_due)]
        stages = [version or "-" for version in (row.production, row.canary, row.shadow, row.candidate)]
        table.add_row(row.tenant, *stages, *dates, coming)
    return table


def routes(views: "Iterable[RouteView]") -> Grid:
    """One line per tenant: who has which share, and who changed that last."""
    columns = ("tenant", "production", "canary", "shadow", "pinned", "stopped", "entry")
    table = Grid(*columns, "last change", solid={*columns})
    for one in views:
        pins = [
            f"{version}: {many:,} user{'s' if many > 1 else ''}" for version, many in one.pinned_users.items()
        ]
        pins += [f"{version}: {name}" for name, version in one.pinned_segments.items()]
        when = to_the_minute(one.changed_at) if one.changed_at else ""
        last = f"{one.did} by {one.changed_by}, {when}: {one_line(one.reason or '')}"
        table.add_row(
            one.tenant,
            one.production or "-",
            f"{one.canary} {one.canary_percent:g} %" if one.canary else "-",
            f"{one.shadow} {one.shadow_percent:g} %" if one.shadow else "-",
            "\n".join(pins) or "-",
            Text("\n".join(one.stopped), style="red") if one.stopped else "-",
            str(one.seq) if one.seq else "-",
            last if one.seq else "-",
        )
    return table


def due(items: "Iterable[Due]") -> Grid:
    """One line per thing to do, overdue ones in red."""
    table = Grid("version", "state", "what", "when", "team", solid={"version", "state", "what", "when"})
    for item in items:
        when = Text(f"{item.at[:10]}, overdue", style="red") if item.overdue else item.at[:10]
        table.add_row(item.id, _state(item.state), item.what, when, item.team or "-")
    return table


def _facts(record: "AdapterRecord") -> Iterator[tuple[str, str]]:
    lineage, risk, base = record.lineage, record.risk, record.lineage.base_model
    if record.route:
        yield "route", "; ".join(record.route)
    yield "base model", f"{base.id} at {base.revision}"
    yield "its SHA-256", base.sha256
    for source in lineage.sources:
        rows = ", ".join(f"{name} {split.rows}" for name, split in lineage.splits.items())
        dated = f" of {source.date}" if source.date else ""
        yield "data", f"{source.name} {source.version}{dated} ({source.sha256[:12]}…); rows: {rows}"
    if lineage.data_checks is not None:
        yield "own checks", "; ".join(lineage.data_checks) or "none: the tenant had no suite in suites/data"
    if lineage.data_warnings:
        yield "weak data", "; ".join(lineage.data_warnings)
    dirty = " with uncommitted changes" if lineage.git.dirty else ""
    lock = (lineage.dvc_lock_sha256 or "none")[:12]
    yield "code", f"commit {(lineage.git.commit or 'none')[:12]}{dirty}, dvc.lock {lock}"
    made = to_the_minute(record.registered_at)
    yield "made", f"by {record.author} on {made}, after {lineage.parent or 'no other version'}"
    yield from _measured(record.performance)
    if record.live:
        yield from _live(record.live)
    if risk.bias:
        if risk.bias.groups:
            yield "bias", _gap(risk.bias)
        for name, column in risk.bias.columns.items():
            yield f"bias by {name}", f"{risk.bias.metric}: {column}"
    yield "incidents", "; ".join(one.summary for one in risk.incidents) or "none linked"
    if risk.drift:
        yield "drift", f"{risk.drift.said} ({risk.drift.at.date().isoformat()})"
    yield "fresh until", risk.fresh_until.date().isoformat()
    if record.ownership:
        owner = record.ownership
        review = owner.next_review_due.date().isoformat() if owner.next_review_due else "not set"
        yield "owner", f"{owner.team} ({', '.join(owner.contacts)}), review due {review}"
        yield "escalation", " -> ".join(owner.escalation)
    for one in record.approvals:
        how = f"key {one.key[:17]}…" if one.key else "unsigned"
        yield "approved", f"{one.person} ({how}){f': void, {one.void}' if one.void else ''}"
    signed = f"signature {record.signature_sha256[:12]}…" if record.signature_sha256 else "unsigned"
    yield "content", f"{record.content_digest[:12]}…, {signed}"


def _gap(bias: "BiasAssessment") -> str:
    from lora_ops.records.evaluation import COMPARED_ROWS

    gap, compared = bias.largest_gap, len(bias.compared)
    enough = f"groups with at least {COMPARED_ROWS} rows ({compared} of {len(bias.groups)})"
    said = f"no gap: fewer than two {enough}" if gap is None else f"largest gap {gap:.3f} between {enough}"
    return f"{bias.metric}: {said}, {_reported(bias.report_sha256)}"


def _reported(sha256: str | None) -> str:
    return f"report {sha256[:8]}…" if sha256 else "no report"


def _measured(performance: "Performance") -> Iterator[tuple[str, str]]:
    from lora_ops.records.evaluation import ADAPTER, BASE

    for name, metric in performance.metrics.items():
        report = _reported(performance.report_sha256)
        yield name, f"{metric[ADAPTER]}, base {metric[BASE]}, {performance.rows} rows, {report}"
    if performance.verdict:
        yield "verdict", f"it {performance.verdict}"
    if performance.looks:
        yield "test rows", str(performance.looks)
    if performance.seeds:
        yield "seeds", str(performance.seeds)
    people = performance.human_evaluation
    if people:
        counts = f"{people.adapter_better} better than {people.against}, {people.same} same"
        agree = "agreement not measured" if people.alpha is None else f"alpha {people.alpha:.3f}"
        by = f"{people.annotators} annotators, {agree}"
        report = _reported(people.report_sha256)
        yield "people say", f"{counts}, {people.base_better} worse of {people.pairs} pairs ({by}), {report}"
    if performance.policy:
        failed = [check.name for check in performance.policy if not check.passed]
        count = len(performance.policy)
        passed = f"{count} check{'s' if count > 1 else ''} passed"
        said = f"fails {', '.join(failed)}" if failed else passed
        yield "policy", f"{said}, {_reported(performance.policy[0].report_sha256)}"


def _live(live: "LiveSummary") -> Iterator[tuple[str, str]]:
    """Yield how it did live, by the last weekly page that was filed."""
    found = live.numbers
    asked, answered = found.answered + found.unanswered, found.availability
    share = "" if answered is None else f", {answered:.2%} answered"
    when = f"{found.start:%Y-%m-%d %H:%M} to {found.end:%Y-%m-%d %H:%M} UTC"
    left = f", {found.gone.count:,} clients left before their answer was whole" if found.gone.count else ""
    yield "live", f"{when}: {asked:,} requests{share}{left}, {_reported(live.report_sha256)}"
    if found.answer.count:
        yield "live speed", f"{_times(found.answer)}; first token {_times(found.first_token)}"
    for each in found.objectives:
        kept = "nothing" if each.share is None else f"{each.share:.2%}"
        yield f"live {each.objective}", f"{kept}, at least {each.least:.2%} is promised: {each.verdict}"
    for one in found.risks:
        shown = "no share"
        if one.share:
            shown = f"{one.share.value:.2%} ({one.share.low:.2%} to {one.share.high:.2%})"
        scored = f"{one.flagged:,} of {one.scored:,} scored answers"
        yield f"live {one.kind}", f"{scored}, {shown}, budget {one.budget:.2%}: {one.verdict}"
    if found.cost:
        seconds = found.cost.cpu_seconds + found.cost.gpu_seconds
        yield "live cost", f"{found.cost.total:.4g} {found.currency}, {seconds:,.0f} device seconds"
    for verdict in found.verdicts:
        yield f"live, {verdict.question}?", f"{verdict.state}: {verdict.said}"


def _times(times: "LiveTimes") -> str:
    """Return percentiles in seconds."""
    found = {"P50": times.p50, "P95": times.p95, "P99": times.p99}
    return ", ".join(f"{name} {value:.3g} s" for name, value in found.items() if value is not None) or "-"


def _state(state: str) -> Text:
    return Text(state, style=COLOURS.get(state, ""))


def _rounded(value: str | None) -> str | None:
    """Return a number to four digits after the point, and any other value as it is."""
    return f"{float(value):.4f}" if value and re.fullmatch(r"-?\d+\.\d{5,}", value) else value


def _short(value: str | None) -> Text:
    """Return a value for a comparison; of a digest its first digits tell enough."""
    if value is None:
        return Text("absent", style="dim")
    return cell(f"{value[:12]}…" if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value) else value)

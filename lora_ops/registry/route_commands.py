"""`lora-ops route`: which versions share a tenant's requests, in which parts, and who stops one at once."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

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
    using,
    who,
)
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from lora_ops.registry.routes import Routed
    from lora_ops.registry.store import Registry

app = typer.Typer(
    help="Which versions share a tenant's requests: canary, shadow, pins, and the switch that stops one.",
    no_args_is_help=True,
    add_completion=False,
)

Percent = Annotated[float, typer.Option("--percent", help="Above 0, at most 100.")]
Tenant = Annotated[str, typer.Argument(help="A tenant, such as finance.")]
Users = Annotated[
    list[str] | None,
    typer.Option("--user", help="As requests name it; kept as a salted hash; may be given more than once."),
]
Segments = Annotated[
    list[str] | None,
    typer.Option("--segment", help="Letters, digits, -, _ and dots; may be given more than once."),
]
ExpectSeq = Annotated[
    int | None,
    typer.Option("--expect-seq", help="Go on only if this entry changed the route last, as `show` gives it."),
]


@app.command()
def show(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Who is in production, who shares its requests, who is stopped, and who changed that last and why."""
    from lora_ops.registry import tables
    from lora_ops.registry.route_overview import overview

    with opened_registry() as registry:
        views = overview(registry, [tenant] if tenant else registry.tenants())
    if as_json:
        print_json([one._asdict() for one in views])
        return
    if not views:
        print_lines("The registry is empty: `make repro` registers the first version.")
        return
    notes = dict.fromkeys(note for one in views for note in one.notes)
    print_lines(tables.routes(views), *note_lines([*notes]))


@app.command()
def canary(
    reference: ExactReference,
    percent: Percent,
    reason: Reason,
    actor: Actor = None,
    expect_seq: ExpectSeq = None,
    as_json: AsJson = False,
) -> None:
    """Let the version in canary answer a share of the users; raising it keeps those that it has."""
    from lora_ops.registry import routes

    _change(
        lambda registry: routes.set_canary(
            registry, reference, percent, actor=who(actor), reason=reason, expect_seq=expect_seq
        ),
        f"{reference} answers {percent:g} % of the users",
        as_json,
    )


@app.command()
def shadow(
    reference: ExactReference,
    percent: Percent,
    reason: Reason,
    actor: Actor = None,
    expect_seq: ExpectSeq = None,
    as_json: AsJson = False,
) -> None:
    """Ask a version in shadow or canary again for a share of the requests; no client gets its answers."""
    from lora_ops.registry import routes

    _change(
        lambda registry: routes.set_shadow(
            registry, reference, percent, actor=who(actor), reason=reason, expect_seq=expect_seq
        ),
        f"{reference} is asked in shadow for {percent:g} % of the requests",
        as_json,
    )


@app.command()
def clear(
    tenant: Tenant,
    reason: Reason,
    canary: Annotated[bool, typer.Option("--canary", help="End the canary's share.")] = False,
    shadow: Annotated[bool, typer.Option("--shadow", help="End the shadow's share.")] = False,
    actor: Actor = None,
    expect_seq: ExpectSeq = None,
    as_json: AsJson = False,
) -> None:
    """End the canary's or the shadow's share; its requests get production. Anybody in the team may."""
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry import routes

    if canary == shadow:
        raise LoraOpsError("Say which share ends: --canary or --shadow.")
    part = "canary" if canary else "shadow"
    _change(
        lambda registry: routes.clear(
            registry, tenant, part, actor=who(actor), reason=reason, expect_seq=expect_seq
        ),
        f"No version of '{tenant}' has a share in {part}",
        as_json,
    )


@app.command()
def pin(
    reference: ExactReference,
    reason: Reason,
    users: Users = None,
    segments: Segments = None,
    actor: Actor = None,
    expect_seq: ExpectSeq = None,
    as_json: AsJson = False,
) -> None:
    """Let a version in canary or production answer named users and segments, whatever the canary's share is."""
    from lora_ops.registry import routes

    _change(
        lambda registry: routes.pin(
            registry,
            reference,
            users=users or (),
            segments=segments or (),
            actor=who(actor),
            reason=reason,
            expect_seq=expect_seq,
        ),
        f"{reference} answers {_units(users, segments)}",
        as_json,
    )


@app.command()
def unpin(
    tenant: Tenant,
    reason: Reason,
    users: Users = None,
    segments: Segments = None,
    actor: Actor = None,
    expect_seq: ExpectSeq = None,
    as_json: AsJson = False,
) -> None:
    """Take pins away; anybody in the team may."""
    from lora_ops.registry import routes

    _change(
        lambda registry: routes.unpin(
            registry,
            tenant,
            users=users or (),
            segments=segments or (),
            actor=who(actor),
            reason=reason,
            expect_seq=expect_seq,
        ),
        f"No version of '{tenant}' is pinned for {_units(users, segments)}",
        as_json,
    )


@app.command()
def stop(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let a version answer nobody until it is resumed, at once; anybody in the team may.

    Its users get production. Requests for a stopped version in production are refused: a rollback brings back
    the version before it.
    """
    from lora_ops.registry import routes

    _change(
        lambda registry: routes.stop(registry, reference, actor=who(actor), reason=reason),
        f"{reference} answers nobody until `lora-ops route resume {reference} --reason TEXT`",
        as_json,
        to_stop=reference,
    )


@app.command()
def resume(
    reference: ExactReference,
    reason: Reason,
    actor: Actor = None,
    expect_seq: ExpectSeq = None,
    as_json: AsJson = False,
) -> None:
    """Let a stopped version answer again, as far as its state and the route let it."""
    from lora_ops.registry import routes

    _change(
        lambda registry: routes.resume(
            registry, reference, actor=who(actor), reason=reason, expect_seq=expect_seq
        ),
        f"{reference} is stopped no more",
        as_json,
    )


def _change(
    change: "Callable[[Registry], Routed]", done: str, as_json: bool, *, to_stop: str | None = None
) -> None:
    """Change a route, and print what it is then."""
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.route_overview import view

    with using(open_registry(to_stop=to_stop)) as registry:
        routed = change(registry)
        work_is_done()
        damage = {"registry_was_damaged": registry.mended} if registry.mended else {}
        remembered = head_remembered(registry)
        now = view(registry, routed.tenant)
        not_sent = registry.not_sent
    if as_json:
        queued = {"not_sent": not_sent} if not_sent else {}
        facts: dict[str, Any] = {**now._asdict(), **remembered, **damage, **queued}
        print_json(facts)
        return
    if not_sent:
        print_lines(
            f"{markup(done)}, on this machine. W&B has not taken that: {markup(not_sent.rstrip('.'))}. It is "
            "queued: a running gateway, the next change and `lora-ops registry sync` send it. Until then other "
            "machines serve it: run this command there.",
            *note_lines(now.notes),
        )
        return
    print_lines(f"{markup(done)} (entry {now.seq}).", *note_lines(now.notes))


def _units(users: list[str] | None, segments: list[str] | None) -> str:
    counts = ((len(users or ()), "user"), (len(segments or ()), "segment"))
    return " and ".join(f"{many:,} {name}{'s' if many > 1 else ''}" for many, name in counts if many)

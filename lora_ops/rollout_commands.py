"""`lora-ops rollout`: a validated version on its way to production, and who stops it there."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ops.escaping import markup
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json, print_problem
from lora_ops.registry.command_options import (
    Actor,
    ExactReference,
    Reason,
    check_tenant,
    head_remembered,
    print_lines,
    using,
    who,
)
from lora_ops.streams import work_is_done

if TYPE_CHECKING:
    from pathlib import Path

    from lora_ops.records.rollout import Rollout
    from lora_ops.registry.store import Registry
    from lora_ops.rollout.canary import Look
    from lora_ops.rollout.controller import Round
    from lora_ops.rollout.traffic import GatewayTraffic

app = typer.Typer(
    help="Shadow, canary, approval, production: a version's way, decided by what its traffic shows.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def start(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Begin the rollout of a validated version, or begin one again that went back."""
    from lora_ops.rollout.controller import start as begin
    from lora_ops.settings.params import load_settings

    settings = load_settings()

    def change(registry: "Registry") -> "Rollout":
        return begin(
            registry,
            reference,
            settings.rollout,
            actor=who(actor),
            reason=reason,
            insult_threshold=settings.detectors.insult_threshold,
        )

    _change(change, "begins: `lora-ops rollout run` takes it on", as_json)


@app.command("list")
def list_(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None, as_json: AsJson = False
) -> None:
    """Every rollout, one line each: those that run first, then those that ended, the last one first."""
    from lora_ops.registry.rollouts import rollouts

    with _opened() as (registry, _):
        check_tenant(registry, tenant)
        found = rollouts(registry, tenant)
    found.sort(key=lambda one: (one.is_running, one.seq), reverse=True)
    if as_json:
        print_json([_as_json(one) for one in found])
        return
    if not found:
        print_lines("No rollout has begun: `lora-ops rollout start TENANT@NUMBER --reason TEXT` begins one.")
        return
    columns = ("version", "beside", "phase", "users", "since (UTC)", "attempt")
    table = Grid(*columns, "last change", solid={*columns})
    for one in found:
        phase = one.phase + (", paused" if one.is_running and one.paused else "")
        table.add_row(
            one.plan.adapter,
            one.plan.against,
            "ready, waits for approvals" if phase == "ready" else phase,
            f"{one.percent:g} %" if one.percent else "-",
            f"{one.since:%Y-%m-%d %H:%M}",
            str(one.attempt),
            one.said,
            style=None if one.is_running else "dim",
        )
    print_lines(table)


@app.command()
def status(reference: ExactReference, as_json: AsJson = False) -> None:
    """Where a rollout is, what its users show so far, and what it waits for."""
    from lora_ops.rollout.pair_commands import show_pairs
    from lora_ops.rollout.traffic import asks_by_name

    with _opened(reference) as (registry, _):
        rollout = _known(registry, reference)
        traffic = _traffic(registry)
        by_name = rollout.phase == "shadow" and asks_by_name(rollout)
        shadow = traffic.shadow_look(rollout) if rollout.phase == "shadow" and not by_name else None
        canary = traffic.canary(rollout) if rollout.phase in ("canary", "ready") else None
        canary = traffic.named_look(rollout) if by_name else canary
    if as_json:
        from lora_ops.rollout.shadow_verdict import as_rows

        print_json(
            {
                **_as_json(rollout),
                "shadow": shadow and {"verdict": shadow.verdict._asdict(), "metrics": as_rows(shadow)},
                "canary": canary and _canary_json(canary),
            }
        )
        return
    print_lines(_line(rollout))
    if shadow:
        show_pairs(shadow, rollout.plan)
    if canary:
        print_lines(_guardrails(canary, 1 / rollout.plan.alpha), f"{markup(str(canary.verdict))}.")


@app.command()
def step(reference: ExactReference, as_json: AsJson = False) -> None:
    """Look once, and go on, back, or stay: for cron and CI.

    Ends with 0 where it went on or is done, 1 where it went back, 3 where it stays, and 5 where another
    controller looks at it or was first.
    """
    from lora_ops.exit_codes import ExitCode
    from lora_ops.rollout.controller import one_round

    with _opened(reference) as (registry, only_back):
        rollout = _known(registry, reference)
        if not rollout.is_running:
            _say_ended(rollout)
        if only_back:
            rollout = rollout.model_copy(update={"paused": True})
        with _alone(rollout):
            done = one_round(registry, rollout, _traffic(registry, keep=True))
    work_is_done()
    _print_round(done, as_json)
    if done.rollout.phase in ("returned", "aborted"):
        raise typer.Exit(ExitCode.CHECK_FAILED)
    if not done.changed:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def run(
    tenant: Annotated[list[str] | None, typer.Argument(help="Only these tenants; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look again and again at every rollout that runs, until it is stopped; any number may run at once."""
    from lora_ops.registry.backends import take_rules
    from lora_ops.rollout.loop import run_rollouts
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import settings_to_stop

    settings = settings_to_stop(find_root())
    with _opened() as (registry, _):  # the loop asks at each look whether anything may go on
        for one in tenant or ():
            if one not in settings.tenants:  # the registry may be damaged, and a breach must still be seen
                check_tenant(registry, one)
        if not as_json:
            whose = f"the rollouts of {', '.join(tenant)}" if tenant else "every rollout"
            print_lines(
                f"Looks at {markup(whose)} each {settings.rollout.interval_seconds:g} seconds, until Ctrl-C. "
                "A line is printed when something changes."
            )
        run_rollouts(
            registry,
            _traffic(registry, keep=True),
            take_rules=partial(take_rules, registry, find_root()),
            lock_of=_locks(),
            tenants=tenant,
            seconds=settings.rollout.interval_seconds,
            say=lambda done: _print_round(done, as_json=as_json),
        )


@app.command()
def pause(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let a rollout stay where it is; a breach still takes it back. Anybody in the team may."""
    from lora_ops.registry import rollouts
    from lora_ops.registry.closing import until_first

    def change(registry: "Registry") -> "Rollout":
        return until_first(
            lambda: rollouts.pause(registry, _known(registry, reference), actor=who(actor), reason=reason)
        )

    _change(change, "is paused", as_json, to_stop=reference)


@app.command()
def resume(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """Let a paused rollout go on."""
    from lora_ops.registry import rollouts

    def change(registry: "Registry") -> "Rollout":
        return rollouts.resume(registry, _known(registry, reference), actor=who(actor), reason=reason)

    _change(change, "goes on", as_json)


@app.command()
def abort(reference: ExactReference, reason: Reason, actor: Actor = None, as_json: AsJson = False) -> None:
    """End a rollout: production answers everybody at once. Anybody in the team may."""
    from lora_ops.registry.closing import until_first
    from lora_ops.rollout import controller

    def change(registry: "Registry") -> "Rollout":
        return until_first(
            lambda: controller.abort(registry, _known(registry, reference), actor=who(actor), reason=reason)
        )

    _change(change, "has ended, and production answers everybody", as_json, to_stop=reference)


@contextmanager
def _opened(reference: str = "") -> "Iterator[tuple[Registry, bool]]":
    """Open the registry for a look, and say whether rollouts go only back.

    A canary that breaks must not go on because somebody is editing owners.yaml.

    Raises:
        LoraOpsError: it can't be opened to stop a version either.
    """
    from lora_ops.errors import LoraOpsError
    from lora_ops.registry.backends import open_registry

    problem = None
    try:
        found = open_registry()
    except LoraOpsError as error:
        found, problem = open_registry(to_stop=reference), error
    with using(found) as registry:
        if problem:
            print_problem(f"No rollout goes on until this is mended; a breach still takes one back: {problem}")
        yield registry, problem is not None


def _known(registry: "Registry", reference: str) -> "Rollout":
    from lora_ops.errors import NotFound
    from lora_ops.registry.rollouts import rollout_of

    version = registry.get_exact(reference, whole=False)
    found = rollout_of(registry, version.id)
    if found is None:
        raise NotFound(
            f"{version.id} has no rollout: `lora-ops rollout start {version.id} --reason TEXT` begins one."
        )
    return found


def _say_ended(rollout: "Rollout") -> None:
    from lora_ops.errors import Refused

    raise Refused(f"The rollout of {rollout.plan.adapter} has ended ({rollout.phase}): {rollout.said}.")


def _traffic(registry: "Registry", *, keep: bool = False) -> "GatewayTraffic":
    from lora_ops.rollout.gateways import GatewayProbe
    from lora_ops.rollout.kept_looks import FOLDER, LookKeeper
    from lora_ops.rollout.traffic import GatewayTraffic
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import settings_to_stop

    root = find_root()
    settings = settings_to_stop(root)
    folder = root / settings.serving.path
    keeper = LookKeeper(folder / FOLDER) if keep else None
    probe = GatewayProbe(folder, settings.rollout.probe)
    return GatewayTraffic(registry, folder, settings.detectors.insult_threshold, keeper, probe)


def _locks() -> "Callable[[str], AbstractContextManager[None]]":
    """Return what gives the lock of a tenant's controller, by the params.yaml of now.

    A loop asks once: a rollout must go back while somebody edits params.yaml.
    """
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import settings_to_stop

    root = find_root()
    return partial(_locked, root / settings_to_stop(root).serving.path / "rollouts")


@contextmanager
def _locked(folder: "Path", tenant: str) -> Iterator[None]:
    """Hold the lock of a tenant's controller, which the system releases when its holder dies.

    The lock spares a second look. The log decides which of two controllers acts. So a disk that refuses the
    lock must not keep a version from going back.

    Raises:
        InUse: another controller looks at it now.
    """
    from lora_ops.errors import Unavailable
    from lora_ops.processes import InUse, only_one

    with ExitStack() as held:
        try:
            held.enter_context(only_one(folder / f"{tenant}.lock", f"looking at the rollout of '{tenant}'"))
        except InUse:
            raise
        except Unavailable as error:
            print_problem(f"Another controller may look at the same time: {error}")
        yield


def _alone(rollout: "Rollout") -> "AbstractContextManager[None]":
    return _locks()(rollout.plan.adapter.rpartition("@")[0])


def _change(
    change: "Callable[[Registry], Rollout]", what: str, as_json: bool, *, to_stop: str | None = None
) -> None:
    from lora_ops.registry.backends import open_registry

    with using(open_registry(to_stop=to_stop)) as registry:
        rollout = change(registry)
        remembered = head_remembered(registry)
    work_is_done()
    if as_json:
        print_json({**rollout.model_dump(mode="json"), **remembered})
        return
    print_lines(f"The rollout of [bold]{rollout.plan.adapter}[/] {markup(what)}.")


def _as_json(rollout: "Rollout") -> dict[str, Any]:
    return {**rollout.model_dump(mode="json"), "percent": rollout.percent}


def _line(rollout: "Rollout") -> str:
    share = f", {rollout.percent:g} % of the users" if rollout.percent else ""
    paused = ", [yellow]paused[/] now" if rollout.paused else ""
    return (
        f"[bold]{rollout.plan.adapter}[/] beside {rollout.plan.against}: {rollout.phase}{share} since "
        f"{rollout.since:%Y-%m-%d %H:%M} UTC{paused} (attempt {rollout.attempt}, begun by "
        f"{markup(rollout.started_by)}); {markup(rollout.said)}."
    )


def _print_round(done: "Round", as_json: bool) -> None:
    if as_json:
        look = done.look and _canary_json(done.look)
        rollout = done.rollout.model_dump(mode="json")
        print_json({**rollout, "decision": done.said, "changed": done.changed, "canary": look})
        return
    print_lines(f"[bold]{done.rollout.plan.adapter}[/] ({done.rollout.phase}): {markup(done.said)}.")


def _canary_json(look: "Look") -> dict[str, Any]:
    return {
        "verdict": look.verdict._asdict(),
        "guardrails": [one._asdict() for one in look.guardrails],
        "canary_users": look.canary_users,
        "control_users": look.control_users,
        "assignment": str(look.ratio),
    }


def _guardrails(look: "Look", threshold: float) -> Grid:
    """One line per guardrail: both arms, how much worse the canary is at every look, and what is allowed."""
    from lora_ops.rollout.canary import TITLES
    from lora_ops.rollout.kept_looks import canary_metrics
    from lora_ops.rollout.pair_commands import STYLES

    worse = "worse by, %" if look.control_users else "interval, %"  # a first version has no control group
    columns = ("guardrail", "canary", "control", worse, "allowed", "users", "verdict")
    table = Grid(*columns, solid={*columns})
    for one in canary_metrics(look, threshold):
        means = ["-" if value is None else f"{value:.3g}" for value in (one.candidate, one.production)]
        low, high = ("inf" if end is None else f"{end * 100:+.1f}" for end in (one.low, one.high))
        title = TITLES.get(one.name, one.name)
        table.add_row(
            title,
            *means,
            f"{low} to {high}",
            f"{one.limit:.0%}",
            str(one.units),
            "not worse" if one.verdict == "non-inferior" else one.verdict,  # it fits 80 columns
            style=STYLES[one.verdict],
        )
    return table

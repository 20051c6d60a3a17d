"""`lora-ops rollout pairs`: what the pairs of a version in shadow say."""

from typing import TYPE_CHECKING, Annotated

import typer

from lora_ops.escaping import markup, show
from lora_ops.grid import Grid
from lora_ops.output import AsJson, print_json
from lora_ops.registry.command_options import ExactReference, opened_registry

if TYPE_CHECKING:
    from lora_ops.records.rollout import RolloutPlan
    from lora_ops.rollout.shadow_verdict import PairMetric, ShadowLook

STYLES = {"non-inferior": "green", "breach": "red", "undecided": "yellow", "not judged": "dim"}


def pairs(
    reference: ExactReference,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Those of `lora-ops rollout replay`, not of live requests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show each metric of a version in shadow beside production's, of the same requests, and the verdict.

    Margins and minimums are those that its rollout began with, or else those of params.yaml.
    """
    from lora_ops.clock import now
    from lora_ops.registry.rollouts import rollout_of
    from lora_ops.rollout.pairs import read_pairs
    from lora_ops.rollout.shadow_verdict import as_rows, look_at_pairs, settings_plan
    from lora_ops.settings.files import find_root
    from lora_ops.settings.params import load_settings

    root = find_root()
    settings = load_settings(root)
    with opened_registry() as registry:
        rollout = rollout_of(registry, registry.get_exact(reference).id)
        plan = rollout.plan if rollout else settings_plan(registry, reference, settings.rollout)
    table = read_pairs(root / settings.serving.path / "pairs", plan.adapter, plan.content_digest)
    look = look_at_pairs(plan, table, now=now(), since=rollout.began if rollout else None, replayed=replayed)
    if as_json:
        facts = {**look._asdict(), "metrics": as_rows(look), "verdict": look.verdict._asdict()}
        times = {
            name: one and one.isoformat()
            for name, one in (("first_at", look.first_at), ("last_at", look.last_at))
        }
        print_json({**facts, **times})
        return
    show_pairs(look, plan)


def show_pairs(look: "ShadowLook", plan: "RolloutPlan") -> None:
    """Print a look: one line a metric, how many pairs it has, and the verdict."""
    from lora_ops.records.evidence import REPLAYED

    columns = ("metric", plan.against, plan.adapter, "difference", "margin", "units", "verdict")
    grid = Grid(*columns, solid={*columns})
    for one in look.metrics:
        grid.add_row(*_cells(one), one.verdict, style=STYLES[one.verdict])
    show(grid)
    hours = "1 hour" if look.hours == 1 else f"{look.hours} different hours"
    kind = f"{REPLAYED}: " if look.replayed else ""
    lost = f", {look.failed} failed, {look.preempted} gave way to clients each time, {look.unscored} not judged"
    show(f"{kind}{look.answered} pairs of {look.units} users or requests in {hours}{lost}.")
    show(markup(f"{look.verdict}."))


def _cells(metric: "PairMetric") -> list[str]:
    from lora_ops.rollout.sequential import excess_part

    scale = excess_part if metric.name == "tokens" else float  # a margin as params.yaml has it
    low_high = metric.difference
    return [
        "task done" if metric.name == "task" else metric.name,
        _number(metric.production),
        _number(metric.shadow),
        f"{scale(low_high.low):+.3f} to {scale(low_high.high):+.3f}" if low_high else "",
        _number(None if metric.margin is None else scale(metric.margin)),
        str(metric.units),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

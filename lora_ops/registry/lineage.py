"""The lineage of one version as a picture: what it was made of, whom it follows, where it went."""

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.registry import AdapterRecord
from lora_ops.registry.store import Registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARENTS_SHOWN = 3
# Inches, and characters of 9 points that fit into a box.
PAGE, BOX, MARGIN, GAP, PAD, LINE, TITLE = 12.0, 3.3, 0.2, 0.3, 0.1, 0.18, 0.5
TITLE_CHARACTERS, DETAIL_CHARACTERS = 36, 42


class Node(NamedTuple):
    """One box of the picture; columns run from what was there first (0) to what came last."""

    column: int
    title: str
    detail: str
    target: bool = False


def current(registry: Registry, tenant: str) -> str:
    """The version that serves a tenant now, else its candidate, as an exact reference.

    Raises:
        LoraOpsError: the tenant has no version that is named by either alias.
    """
    number = registry.named(tenant, "production")
    return f"{tenant}@{number}" if number else registry.get(tenant).id


def ancestors(registry: Registry, record: AdapterRecord) -> list[str]:
    """The versions that this one follows, nearest first, as far as the registry knows them."""
    found: list[str] = []
    parent = record.lineage.parent
    while parent and parent not in found and len(found) < PARENTS_SHOWN:
        found.append(parent)
        try:
            parent = registry.get(parent).manifest.parent
        except LoraOpsError:  # a parent from another registry is named, and its own parents are not known
            break
    return found


def nodes(registry: Registry, record: AdapterRecord) -> list[Node]:
    """Every box of the picture, column by column, top to bottom."""
    lineage = record.lineage
    base = lineage.base_model
    boxes = [Node(0, f"base model {base.id}", f"{base.revision}\n{base.sha256[:12]}…")]
    boxes += [
        Node(0, f"data {source.name} {source.version}", f"{source.date or 'no date'}\n{source.sha256[:12]}…")
        for source in lineage.sources
    ]
    lock = (lineage.dvc_lock_sha256 or "none")[:12]
    boxes.append(Node(0, f"commit {(lineage.git.commit or 'none')[:12]}", f"dvc.lock {lock}"))
    before = ancestors(registry, record)
    if before:
        boxes.append(Node(0, f"follows {before[0]}", f"after {', '.join(before[1:])}" if before[1:] else ""))
    made = record.registered_at[:10]
    boxes.append(Node(1, record.id, f"{record.state}, by {record.author}\n{made}", target=True))
    for entry in record.history:
        if "states" in entry.effects and entry.action not in ("registered", "imported"):
            kinds = ", ".join(one["kind"] for one in entry.body.get("evidence", []))
            title = entry.effect_on(record.number)
            boxes.append(Node(2, title, f"{entry.at[:10]}, {entry.actor}\n{kinds or 'no report'}"))
    return boxes


def draw(registry: Registry, record: AdapterRecord) -> "Figure":
    """The picture: ingredients on the left, the version, and on the right each decision about it, in order."""
    from matplotlib.figure import Figure

    columns = [[box for box in nodes(registry, record) if box.column == column] for column in range(3)]
    tall = max(sum(map(_height, column)) + GAP * (len(column) + 1) for column in columns)
    figure = Figure(figsize=(PAGE, tall + TITLE))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, PAGE), ylim=(0, tall + TITLE))
    axes.axis("off")
    axes.text(PAGE / 2, tall + TITLE / 2, f"Lineage of {record.id}", ha="center", va="center", fontsize=13)
    sources, (target,), decisions = (_place(axes, column, tall) for column in columns)
    for source in sources:
        _arrow(axes, source.right, target.left)
    for before, after in zip([target, *decisions], decisions, strict=False):
        if before is target:
            _arrow(axes, target.right, after.left)
        else:
            _arrow(axes, before.bottom, after.top)
    return figure


class _Placed(NamedTuple):
    """Where the arrows of a box begin and end, in inches from the lower left corner."""

    left: tuple[float, float]
    right: tuple[float, float]
    top: tuple[float, float]
    bottom: tuple[float, float]


def _place(axes: "Axes", column: list[Node], tall: float) -> list[_Placed]:
    from matplotlib.patches import FancyBboxPatch

    placed = []
    y = (tall + sum(map(_height, column)) + GAP * (len(column) - 1)) / 2
    for box in column:
        x, height = MARGIN + box.column * (PAGE - 2 * MARGIN - BOX) / 2, _height(box)
        title, detail = _lines(box)
        shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.08", "edgecolor": "#666666"}
        colour = "#fde9c8" if box.target else "#f7f7f7"
        axes.add_patch(FancyBboxPatch((x, y - height), BOX, height, facecolor=colour, **shape))
        style: dict[str, Any] = {"va": "top", "fontsize": 9, "linespacing": 1.4}
        axes.text(x + PAD, y - PAD, "\n".join(title), fontweight="bold", **style)
        axes.text(x + PAD, y - PAD - LINE * len(title), "\n".join(detail), color="#333333", **style)
        middle = y - height / 2
        sides = (x, middle), (x + BOX, middle), (x + BOX / 2, y), (x + BOX / 2, y - height)
        placed.append(_Placed(*sides))
        y -= height + GAP
    return placed


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#666666", "shrinkA": 0, "shrinkB": 1, "mutation_scale": 12}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def _lines(box: Node) -> tuple[list[str], list[str]]:
    detail = [short for line in box.detail.splitlines() for short in textwrap.wrap(line, DETAIL_CHARACTERS)]
    return textwrap.wrap(box.title, TITLE_CHARACTERS), detail


def _height(box: Node) -> float:
    return 2 * PAD + LINE * sum(map(len, _lines(box)))

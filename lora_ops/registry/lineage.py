"""The lineage of one version as a picture: what it was made of, whom it follows, where it went."""

from typing import TYPE_CHECKING, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records import AdapterRecord
from lora_ops.registry.store import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARENTS_SHOWN = 3


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
        if "states" in entry.body.get("effects", {}) and entry.action not in ("registered", "imported"):
            kinds = ", ".join(one["kind"] for one in entry.body.get("evidence", []))
            boxes.append(Node(2, entry.action, f"{entry.at[:10]}, {entry.actor}\n{kinds or 'no report'}"))
    return boxes


def draw(registry: Registry, record: AdapterRecord) -> "Figure":
    """The picture: ingredients on the left, the version, and each decision about it on the right."""
    from matplotlib.figure import Figure

    boxes = nodes(registry, record)
    columns = [[box for box in boxes if box.column == column] for column in range(3)]
    rows = max(len(column) for column in columns)
    figure = Figure(figsize=(11, 0.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.5, 2.5), ylim=(-0.5, rows - 0.5), title=f"Lineage of {record.id}")
    axes.axis("off")
    middle = (rows - 1) / 2
    for column in columns:
        for place, box in enumerate(column):
            height = middle + (len(column) - 1) / 2 - place
            axes.text(
                box.column,
                height,
                f"{box.title}\n{box.detail}".strip(),
                ha="center",
                va="center",
                fontsize=8,
                bbox={
                    "boxstyle": "round",
                    "facecolor": "#fde9c8" if box.target else "white",
                    "edgecolor": "#555555",
                },
            )
            if box.target:
                continue
            start, end = (
                ((0.25, height), (0.78, middle)) if box.column == 0 else ((1.22, middle), (1.75, height))
            )
            axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": "#999999"})
    return figure

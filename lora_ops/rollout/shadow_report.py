"""From a shadow version's pairs to the evidence of its shadow: one row a pair, which the registry counts."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_ops.errors import LoraOpsError
from lora_ops.registry.reports import Report, make
from lora_ops.registry.store import Registry

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "pairs.jsonl"
STATUS = {"answered": 200, "failed": 502}
"""A copy that gave way to clients says nothing of its version, and is no row."""
SCORES = (
    "agreement",
    "similarity",
    *(f"{who}_{what}" for who in ("production", "shadow") for what in ("task", "identifiers", "insults")),
    *(f"{who}_{what}" for who in ("production", "shadow") for what in ("tokens", "seconds")),
)


def shadow_report(registry: Registry, reference: str, pairs: "pd.DataFrame", *, terms: str = "") -> Report:
    """Return the evidence of a version's shadow, and as its source the scores of all pairs that it counts.

    Args:
        registry: where the version is; `rollout.accept_replay` decides whether replayed pairs count.
        reference: which version.
        pairs: of it, as `read_pairs` gives them.
        terms: what people must know of the rollout besides.

    Raises:
        Refused: pairs are replayed, and this registry takes none.
        LoraOpsError: there are no pairs since it entered its shadow.
    """
    counted = pairs[pairs["status"].isin(tuple(STATUS))]
    if counted.empty:
        raise LoraOpsError(
            f"There are no pairs of {reference} yet: give it a share of the requests (`lora-ops rollout start "
            f"{reference}`), or replay held-out rows (`lora-ops rollout replay {reference}`)."
        )
    rows = [_row(one) for one in counted.to_dict("records")]
    against = ", ".join(sorted({str(one) for one in counted["production"]}))
    said = f"{len(rows)} pairs with {against}, judged by the gateway"
    said += f"; {terms}" if terms else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SOURCE
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
        return make(registry, reference, "shadow", path, said)


def _row(pair: dict[Any, Any]) -> dict[str, Any]:
    scores = {name: pair[name] for name in SCORES if pair[name] == pair[name]}  # NaN is no score
    return {
        "id": pair["id"],
        "request_id": pair["request_id"],
        "time": pair["time"].isoformat(),
        "adapter": pair["shadow"],
        "digest": pair["shadow_digest"],
        "production": pair["production"],
        "production_digest": pair["production_digest"],
        "unit": pair["unit"],
        "key": pair["key"] if isinstance(pair["key"], str) else None,
        "names_unit": str(pair["names_unit"]) != "False",  # an earlier release says nothing
        "status": STATUS[pair["status"]],
        "better": _better(pair),
        "replayed": bool(pair["replayed"]),
        **scores,
    }


def _better(pair: dict[Any, Any]) -> Literal["adapter", "same", "production"] | None:
    """Return whose answers pass the task's check more often; None where nobody can tell.

    Two labels that differ both pass the check of a task whose right answer is not known.
    """
    ours, theirs = pair["shadow_task"], pair["production_task"]
    if ours != ours or theirs != theirs or ours is None or theirs is None:
        return None
    if ours != theirs:
        return "adapter" if ours > theirs else "production"
    return "same" if pair["agreement"] == 1 else None

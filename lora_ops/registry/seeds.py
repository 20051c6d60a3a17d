"""What other training seeds made of the same recipe: the noise that no interval over test rows contains."""

from typing import Any

from lora_ops.hashing import canonical
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.registry import SeedSpread
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version


def seed_spread(registry: Registry, version: Version) -> SeedSpread:
    """Return the main metric of every training seed that the recipe of `version` was registered with.

    The same recipe is the same base model, rows, splits and settings of training and answering.
    """
    own = version.stored
    recipe, metric = _recipe(own), own["evaluation"]["primary"]
    values = {}
    for one in registry.versions(version.tenant):
        other = one.stored
        if _recipe(other) == recipe and metric in other["evaluation"]["metrics"]:
            values[_seed(other)] = other["evaluation"]["metrics"][metric][ADAPTER]["value"]
    # Where a seed was registered twice (another torch), this version speaks for its own.
    values[_seed(own)] = own["evaluation"]["metrics"][metric][ADAPTER]["value"]
    return SeedSpread(metric=metric, values=values)


def same_recipe(left: Version, right: Version) -> bool:
    """Return whether two versions differ in nothing that they were made of but the training seed."""
    return _recipe(left.stored) == _recipe(right.stored)


def _recipe(manifest: dict[str, Any]) -> str:
    params = manifest["params"]
    train = {name: value for name, value in params.get("train", {}).items() if name != "seed"}
    splits = {name: split["sha256"] for name, split in manifest["data"]["splits"].items()}
    limit = params.get("evaluate", {}).get("max_new_tokens")
    made_of = [manifest["base_model"]["sha256"], splits, manifest["evaluation"]["test_sha256"], train, limit]
    return canonical(made_of)


def _seed(manifest: dict[str, Any]) -> str:
    return str(manifest["params"].get("train", {}).get("seed", "?"))

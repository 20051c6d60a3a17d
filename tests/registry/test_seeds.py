"""What other seeds made of a recipe, from the versions that are registered."""

import pytest

from lora_ops.registry.cards import record
from lora_ops.registry.seeds import same_recipe, seed_spread
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, Build, trained_alike

pytestmark = pytest.mark.usefixtures("older_packages")


def register(registry: Registry, package: Build, seed: int, value: float, rank: int = 8) -> str:
    """Register one training: its own weights, and the data, base model and test rows of all others."""
    folder, manifest = package(seed + 100 * rank)
    alike = trained_alike(folder, manifest, package(999)[1], seed, rank, value)
    return registry.register(folder, alike, actor=AUTHOR)[0].id


def test_seed_spread_takes_the_seeds_of_one_recipe(registry: Registry, package: Build) -> None:
    ids = [register(registry, package, seed, value) for seed, value in ((0, 0.60), (1, 0.66), (2, 0.63))]
    other = register(registry, package, 0, 0.70, rank=16)
    spread = seed_spread(registry, registry.get(ids[0]))
    assert spread.values == {"0": 0.60, "1": 0.66, "2": 0.63}
    assert str(spread) == (
        "3 trainings of this recipe with other seeds: exact_match 0.600 to 0.660, standard deviation 0.030"
    )
    assert seed_spread(registry, registry.get(other)).values == {"0": 0.70}
    first, second, last = (registry.get(one) for one in (*ids[:2], other))
    assert same_recipe(first, second) and not same_recipe(first, last)


def test_show_says_that_one_training_tells_no_seed(registry: Registry, package: Build) -> None:
    spread = record(registry, register(registry, package, 0, 0.6)).performance.seeds
    assert spread is not None
    assert (
        str(spread) == "one training of this recipe: the intervals cover the test rows, not the training seed"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_seed_spread_lets_a_version_speak_for_its_seed(registry: Registry, package: Build, seed: int) -> None:
    """A seed that was trained twice, with another torch, counts once."""
    first = register(registry, package, seed, 0.6)
    second = registry.get(register(registry, package, 2, 0.7))
    assert seed_spread(registry, registry.get(first)).values == {str(seed): 0.6, "2": 0.7}
    assert seed_spread(registry, second).values["2"] == 0.7

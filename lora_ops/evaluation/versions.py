"""Two versions on the rows that both answered and neither was trained on, from what their packages keep."""

from typing import Any

import pandas as pd
from pydantic import Field

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.inference import difference, holm, interval, seed_noise
from lora_ops.evaluation.metrics import sample
from lora_ops.hashing import sha256_text
from lora_ops.paths import ANSWERS
from lora_ops.records.evaluation import ADAPTER, Interval, PairedDifference
from lora_ops.records.record import Record
from lora_ops.records.registry import SeedSpread
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.membership import SEEN, groups_of, incomparable
from lora_ops.registry.seeds import same_recipe, seed_spread
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

DRAWS = 2000


class VersionComparison(Record):
    """Right minus left, paired by row, resampled by group."""

    left: str
    right: str
    rows: int = Field(
        description="that both answered, with the same target, of groups that neither was trained on"
    )
    groups: int
    left_out: int = Field(description="rows of either that don't count")
    metrics: dict[str, dict[str, Interval]] = Field(description="metric -> version -> value on those rows")
    differences: dict[str, PairedDifference] = Field(description="metric -> right minus left")
    notes: list[str] = Field(description="why the metrics that the versions recorded can't be compared")
    seeds: dict[str, SeedSpread] = Field(description="version -> the main metric of each seed of its recipe")
    gates: dict[str, list[str]] = Field(
        description="version -> which of its gates are looser than production's, in words"
    )
    same_recipe: bool = Field(description="whether they differ in nothing that they were made of but the seed")
    seed_noise: float | None = Field(
        description="how much two trainings of one recipe differ in the first metric by their seeds alone "
        "(95 %); None where no recipe was registered with two seeds"
    )

    @property
    def verdict(self) -> str:
        """What the first metric says, in words."""
        metric, found = next(iter(self.differences.items()))
        if found.is_clear and self.seed_noise is not None and abs(found.value) <= self.seed_noise:
            return (
                f"{self.right} differs from {self.left} by no more than another training seed could change "
                f"({metric} {found}, two seeds up to {self.seed_noise:.3f})"
            )
        return f"{self.right} {found.verdict} {self.left} ({metric} {found})"

    @property
    def about_seeds(self) -> str:
        """What is known of the noise between training seeds, which the intervals don't cover."""
        if self.same_recipe:
            return "They have the same recipe, so their difference is that of two trainings and of nothing else"
        if self.seed_noise is None:
            return (
                "The intervals cover the test rows, not the training seed: to tell a recipe from a lucky seed, "
                "register it with several seeds"
            )
        return "; ".join(f"{version}: {spread}" for version, spread in self.seeds.items())


def compare_versions(registry: Registry, left: Version, right: Version) -> VersionComparison:
    """Compare two versions of one tenant by the answers that their packages keep.

    Raises:
        LoraOpsError: one version, two tenants, a package without answers, no common row, or a changed file.
    """
    if left.id == right.id:
        raise LoraOpsError(f"{left.id} is the same version as itself: name two versions.")
    if left.tenant != right.tenant:
        raise LoraOpsError(f"{left.id} and {right.id} are of two tenants, which answer different questions.")
    params = right.manifest.params
    both, left_out = common_rows(registry, left, right)
    if both.empty:
        raise LoraOpsError(
            f"{left.id} and {right.id} answered no row in common that neither was trained on: evaluate both on "
            "one test split (the same data.seed and ratio of data.rows)."
        )
    metrics: dict[str, dict[str, Interval]] = {}
    differences: dict[str, PairedDifference] = {}
    for metric in shared_metrics(left.manifest.params, params):
        of_left, of_right = (
            sample(
                metric,
                list(both["target_left"]),
                list(both[f"{ADAPTER}_{side}"]),
                params.get("data", {}).get("labels", ()),
                list(both["group_right"]),
            )
            for side in ("left", "right")
        )
        metrics[metric] = {left.id: interval(of_left, DRAWS, 0), right.id: interval(of_right, DRAWS, 0)}
        differences[metric] = difference(of_right, of_left, DRAWS, 0)
    seeds = {version.id: seed_spread(registry, version) for version in (left, right)}
    one_recipe, first = same_recipe(left, right), next(iter(metrics))
    recipes = [spread for spread in seeds.values() if spread.metric == first][: 1 if one_recipe else 2]
    return VersionComparison(
        left=left.id,
        right=right.id,
        rows=len(both),
        groups=both["group_right"].nunique(),
        left_out=left_out,
        metrics=metrics,
        differences=holm(differences),
        notes=incomparable(registry, left, right),
        seeds=seeds,
        gates={version.id: gate_notes(registry, version) for version in (left, right)},
        same_recipe=one_recipe,
        seed_noise=seed_noise([list(spread.values.values()) for spread in recipes]),
    )


def common_rows(registry: Registry, left: Version, right: Version) -> tuple[pd.DataFrame, int]:
    """Return the rows that two versions both answered, and how many rows of either are left out.

    A row counts where both have the same target for it, and neither was trained on a row of its group.

    Returns:
        Columns key (digest of the text), and for each side (`_left`, `_right`) group (digest), target and
        the adapter's answer; and the number of rows left out.

    Raises:
        LoraOpsError: a package keeps no answers, or a kept file is missing or was changed.
    """
    ours, theirs = _answers(registry, left), _answers(registry, right)
    both = ours.merge(theirs, on="key", suffixes=("_left", "_right"))
    seen = _seen(registry, left, right)
    unseen = ~both["group_left"].isin(seen) & ~both["group_right"].isin(seen)
    both = both[unseen & (both["target_left"] == both["target_right"])]
    return both, len({*ours["key"], *theirs["key"]}) - len(both)


def _answers(registry: Registry, version: Version) -> pd.DataFrame:
    """Return columns key (digest of the text), group (digest), target and the adapter's answer."""
    file = version.manifest.files.get(ANSWERS)
    if file is None:
        raise LoraOpsError(
            f"{version.id} keeps no answers (an older package): package its adapter again with `dvc repro`."
        )
    path = registry.files.checked(file.sha256, ANSWERS)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame["key"] = frame["text"].map(sha256_text)
    frame["group"] = frame["group"].map(sha256_text)
    return frame[["key", "group", "target", ADAPTER]].drop_duplicates("key")


def _seen(registry: Registry, *versions: Version) -> set[str]:
    """Return the groups that one of `versions` was trained or tuned on."""
    seen: set[str] = set()
    for version in versions:
        groups = groups_of(registry, version) or {}
        seen = seen.union(*(groups.get(split, set()) for split in SEEN))
    return seen


def shared_metrics(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return the metrics that both versions measure; macro-F1 only where both have the same labels."""
    same_labels = left.get("data", {}).get("labels") == right.get("data", {}).get("labels")
    measured = left.get("evaluate", {}).get("metrics", [])
    shared = [name for name in right.get("evaluate", {}).get("metrics", []) if name in measured]
    return [name for name in shared if name != "macro_f1" or same_labels] or ["exact_match"]

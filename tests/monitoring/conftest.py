"""What the tests of monitoring share: the registry's fixtures, and a clone with adapters and drift sets."""

import shutil
from pathlib import Path

import pytest

from lora_ops.monitoring.drift_set import write_drift_set
from lora_ops.records.drift import DriftRow
from tests.registry.conftest import (  # noqa: F401 - fixtures
    clock,
    owners,
    package,
    registry,
    resampled_once,
    staged,
    story,
)
from tests.serving.conftest import Clone, clone_source  # noqa: F401 - a fixture

THINGS = ("hotel", "flight", "taxi", "dentist", "museum", "bakery", "school", "garage", "florist", "stadium")


def drift_rows(count: int = 30) -> list[DriftRow]:
    """Return made rows that differ in their words."""
    return [
        DriftRow(
            id=str(row), group=f"g{row}", text=f"{THINGS[row % 10]} number {row} near the {THINGS[row // 10]}"
        )
        for row in range(count)
    ]


@pytest.fixture
def clone(clone_source: Path, tmp_path: Path) -> Clone:  # noqa: F811
    """finance@1, finance@2 and healthcare@1 with a drift set for each tenant, which a test may change."""
    root = tmp_path / "clone"
    shutil.copytree(clone_source, root)
    for tenant in ("finance", "healthcare"):
        write_drift_set(root, tenant, drift_rows())
    return Clone(root, root / "models/base")

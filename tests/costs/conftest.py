"""What the tests of the archive share: a registry of 200 days ago, and a copy of it for each test."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from tests.registry.conftest import (  # noqa: F401 - fixtures
    AUTHOR,
    Clock,
    Story,
    build_package,
    owners,
    resampled_once,
)

from .archive_kit import OldRegistry, age_files


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, owners: Owners) -> Path:  # noqa: F811
    """A registry of 200 days ago.

    finance@3 is in production after @1 and @2, healthcare@2 is the candidate after @1, and media@1 is rejected.
    """
    folder = tmp_path_factory.mktemp("old")
    with closing(Registry(folder / "registry", create=True, owners=owners, clock=Clock())) as registry:
        story = Story(registry, folder / "reports")
        for seed, tenant in enumerate(("finance", "finance", "finance", "healthcare", "healthcare", "media")):
            package = folder / f"package-{seed}"
            registry.register(package, build_package(package, seed, tenant, fresh_days=3650), actor=AUTHOR)
        for number in (1, 2, 3):
            story.to(f"finance@{number}", "production")
        lifecycle.reject(registry, "media@1", actor="ben", reason="worse")
    return folder


@pytest.fixture
def kit(old: Path, tmp_path: Path, owners: Owners) -> OldRegistry:  # noqa: F811
    shutil.copytree(old / "registry", tmp_path / "registry")
    made = OldRegistry(tmp_path, owners)
    with made.open() as registry:
        age_files(registry)
    return made

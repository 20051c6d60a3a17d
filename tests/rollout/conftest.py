"""What the tests of rollouts share: the registry's fixtures."""

from tests.registry.conftest import (  # noqa: F401 - fixtures
    clock,
    owners,
    package,
    registry,
    story,
)

"""What the tests of the gates share: the registry's fixtures, and a review that people vote in."""

from tests.registry.conftest import (  # noqa: F401 - fixtures
    clock,
    owners,
    package,
    registry,
    resampled_once,
    story,
)

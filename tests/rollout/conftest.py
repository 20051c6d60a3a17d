"""What the tests of rollouts share: the registry's fixtures, and a rollout."""

from tests.registry.conftest import (  # noqa: F401 - fixtures
    bad_release,
    clock,
    connect,
    owners,
    package,
    registry,
    resampled_once,
    server,
    story,
)
from tests.rollout.rolling import rollout, traffic_of  # noqa: F401 - fixtures

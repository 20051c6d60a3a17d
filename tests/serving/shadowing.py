"""What the tests of shadow traffic share: a gateway whose tenants have a version in shadow, and its pairs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from lora_ops.engines.protocol import Engine
from lora_ops.records.route import RouteRecord, ShadowRoute
from lora_ops.rollout.pairs import read_pairs
from lora_ops.serving.fair_queue import Overloaded
from lora_ops.serving.gateway import Gateway
from lora_ops.settings.params import Settings
from tests.serving.conftest import Clone, Served, served

BODY = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 4}
COPIES = "lora_ops_shadow_copies_total"
ALL = RouteRecord(shadow=ShadowRoute(number=2, percent=100))


def inner(gateway: Served) -> Gateway:
    return gateway.server.gateway  # type: ignore[attr-defined, no-any-return]


@contextmanager
def shadowed(
    clone: Clone, engine: Engine, settings: Settings | None = None, route: RouteRecord = ALL
) -> Iterator[Served]:
    """A gateway whose tenants all have this route."""
    with served(clone.root, settings or clone.settings(), engine) as gateway:
        inner(gateway).tenant_route = lambda tenant: route
        yield gateway


def pairs(clone: Clone) -> pd.DataFrame:
    with clone.registry() as registry:
        digest = registry.get("finance@2").summary.content_digest
    return read_pairs(clone.root / ".serving/pairs", "finance@2", digest)


def count(gateway: Served, outcome: str) -> float:
    return gateway.metric(COPIES, outcome=outcome)


def rollout(settings: Settings, **shadow: Any) -> Settings:
    changed = settings.rollout.shadow.model_copy(update=shadow)
    return settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"shadow": changed})})


class NeverIdle:
    """Asks no copy, as if all slots were taken all the time."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    async def __call__(self, *_: object) -> None:
        self.asked.set()
        raise Overloaded("no idle slots")

    async def close(self) -> None:
        pass

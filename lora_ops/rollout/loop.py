"""The controller's loop: one round of each rollout that runs, again and again, whatever happens to one."""

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType

from lora_ops.errors import LoraOpsError
from lora_ops.registry.rollouts import running
from lora_ops.registry.store import Registry
from lora_ops.rollout.controller import Evidence, Round, one_round

logger = logging.getLogger(__name__)

RULES = "owners.yaml and params.yaml"  # among tenants, none of which has such a name


def run_rollouts(
    registry: Registry,
    evidence: Evidence,
    *,
    take_rules: Callable[[], None],
    lock_of: Callable[[str], AbstractContextManager[None]],
    tenants: Sequence[str] | None,
    seconds: float,
    say: Callable[[Round], None],
) -> None:
    """Look at every rollout each `seconds` until SIGTERM or SIGINT; a round that runs ends first.

    Args:
        registry: where.
        evidence: what the traffic says.
        take_rules: makes the registry go by owners.yaml and params.yaml of now: whoever lost a role yesterday
            approves nothing today. Where they can't be read, rollouts go back, and none goes on.
        lock_of: gives the lock of a tenant: of several loops one looks at it, and another one goes on where
            that dies.
        tenants: whose rollouts; None: of all.
        seconds: between two looks.
        say: told of each round that changed something, or says something else than the one before.
    """
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, end)
    said: dict[str, str] = {}
    while not stop.is_set():
        only_back = _outdated(take_rules, said)
        for tenant in _tenants(registry, tenants, said):
            text = _round(registry, tenant, evidence, lock_of, say, said.get(tenant), only_back=only_back)
            if text is not None:
                said[tenant] = text
            if stop.is_set():
                return
        stop.wait(seconds)


def _outdated(take_rules: Callable[[], None], said: dict[str, str]) -> bool:
    """Take the rules of now, and return whether they can't be read."""
    try:
        take_rules()
    except LoraOpsError as error:
        if said.get(RULES) != str(error):
            logger.warning("No rollout goes on until this is mended; a breach still takes one back: %s", error)
        said[RULES] = str(error)
        return True
    said.pop(RULES, None)
    return False


def _tenants(registry: Registry, wanted: Sequence[str] | None, said: dict[str, str]) -> Sequence[str]:
    if wanted is not None:
        return wanted
    try:
        return registry.tenants()
    except LoraOpsError as error:  # locked, or being restored: the next look finds it
        _warn(str(error), said, "")
        return ()


def _round(
    registry: Registry,
    tenant: str,
    evidence: Evidence,
    lock_of: Callable[[str], AbstractContextManager[None]],
    say: Callable[[Round], None],
    before: str | None,
    *,
    only_back: bool,
) -> str | None:
    """Look once at a tenant's rollout, and return what was said of it; None where none runs."""
    try:
        rollout = running(registry, tenant)
        if rollout is None:
            return None
        if only_back:
            rollout = rollout.model_copy(update={"paused": True})
        with lock_of(tenant):
            done = one_round(registry, rollout, evidence)
    except LoraOpsError as error:
        # Its next look may find the registry writable, or another controller gone.
        text = str(error)
        if text != before:
            logger.warning("The rollout of '%s' was not looked at: %s", tenant, text)
        return text
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if text != before:
            logger.exception("The rollout of '%s' was not looked at.", tenant)
        return text
    if done.changed or done.said != before:
        say(done)
    return done.said


def _warn(text: str, said: dict[str, str], key: str) -> None:
    if said.get(key) != text:
        logger.warning("No rollout was looked at: %s", text)
    said[key] = text

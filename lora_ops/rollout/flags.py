"""Asks OpenFeature which version a requester gets, for a bounded time; production where it fails."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from openfeature import api
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails
from openfeature.provider import FeatureProvider, ProviderStatus
from openfeature.provider.no_op_provider import NoOpProvider

from lora_ops.rollout.assignment import Requester
from lora_ops.rollout.provider import (
    PREFIX,
    PRODUCTION,
    RegistryProvider,
    TenantRoute,
    context,
    flagd_provider,
)
from lora_ops.settings.rollout import RolloutSettings

logger = logging.getLogger(__name__)

THREADS = 16  # evaluations by another process at the same time; each ends at its deadline
FAILURES = 3  # in a row, after which nobody waits for the provider
PAUSE_SECONDS = 5.0  # until one request asks it again
START_SECONDS = 5.0
REPEAT_SECONDS = 60.0  # between two lines of the log that say the same
LIBRARY_LOGGERS = ("openfeature", "openfeature.contrib")
MOST_TEXTS = 1000
NOBODY = NoOpProvider()
# What it answered, though not with a version: nobody has to wait for that.
WRONG_ANSWERS = (ErrorCode.FLAG_NOT_FOUND, ErrorCode.TYPE_MISMATCH, ErrorCode.PARSE_ERROR)


class Repeated:
    """Lets each text through once in `REPEAT_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._let: dict[str, float] = {}

    def is_new(self, text: str) -> bool:
        """Return whether the text was not let through lately, and remember it."""
        now = self._clock()
        if now < self._let.get(text, 0.0):
            return False
        if len(self._let) >= MOST_TEXTS:
            self._let.clear()
        self._let[text] = now + REPEAT_SECONDS
        return True

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a line of a library through: once, and without the traceback that it writes at each request."""
        record.exc_info = None
        return self.is_new(record.getMessage())


_libraries = Repeated()


@dataclass(frozen=True)
class Choice:
    """What the provider says of one requester.

    Attributes:
        value: `production`, `canary` or a version's id.
        decision, arm: of our own provider, as `Assignment` has them.
    """

    value: str = PRODUCTION
    decision: str | None = None
    arm: str | None = None


class Flags:
    """One gateway's client of OpenFeature, in a domain of its own.

    A provider that asks another process is called in a thread. After `FAILURES` failures in a row everybody
    gets production at once, and one request in `PAUSE_SECONDS` asks again.

    Args:
        provider: who answers.
        deadline: seconds that a request waits for another process; None: the provider answers from memory.
        failed: called with tenant and reason of each request that the provider has no answer for.
    """

    def __init__(
        self,
        provider: FeatureProvider,
        *,
        deadline: float | None = None,
        failed: Callable[[str, str], None] = lambda tenant, reason: None,
    ) -> None:
        self._provider = provider
        self._deadline = deadline
        self._failed = failed
        self._domain = f"lora-ops-{uuid.uuid4().hex}"
        self._client = api.get_client(self._domain)
        self._pool = None if deadline is None else ThreadPoolExecutor(THREADS, thread_name_prefix="flags")
        self._in_a_row = 0
        self._paused_until = 0.0
        self._said = Repeated()

    async def start(self) -> None:
        """Register the provider; one that can't start goes on trying by itself."""
        for name in LIBRARY_LOGGERS:
            logging.getLogger(name).addFilter(_libraries.filter)
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.to_thread(api.set_provider_and_wait, self._provider, self._domain)
        except Exception as error:  # noqa: BLE001 - whatever it does wrong, production answers
            logger.error("The flag provider is not ready (%r): production answers until it is.", error)

    def close(self) -> None:
        """Let the provider go; what it still does ends by itself."""
        api.set_provider(NOBODY, self._domain)  # the SDK ends the other one in a thread
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def problem(self) -> str | None:
        """Why the provider can't be relied on at this moment, or None."""
        if self._in_a_row >= FAILURES:
            return "the flag provider does not answer: production answers everybody"
        if self._client.get_provider_status() not in (ProviderStatus.READY, ProviderStatus.STALE):
            return "the flag provider is not ready: what it knew last counts, else production answers"
        return None

    async def choose(self, tenant: str, who: Requester) -> Choice:
        """Return what the provider says; production where it fails, which is counted."""
        if self._pool is None:
            return self._choice(tenant, self._evaluate(tenant, who))
        now = time.monotonic()
        if self._in_a_row >= FAILURES:
            if now < self._paused_until:
                self._failed(tenant, "paused")
                return Choice()
            self._paused_until = now + PAUSE_SECONDS  # this request asks, and nobody beside it
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadline):
                found = await loop.run_in_executor(self._pool, self._evaluate, tenant, who)
        except TimeoutError:
            self._count_failure()
            return self._without(tenant, "timeout", "it did not come in time")
        return self._choice(tenant, found)

    def _evaluate(self, tenant: str, who: Requester) -> FlagEvaluationDetails[str]:
        sent = context(tenant, who, sent=self._pool is not None)
        return self._client.get_string_details(PREFIX + tenant, PRODUCTION, sent)

    def _choice(self, tenant: str, found: FlagEvaluationDetails[str]) -> Choice:
        code = found.error_code
        if code is None or code in WRONG_ANSWERS:
            if self._in_a_row >= FAILURES:
                logger.warning("The flag provider answers again.")
            self._in_a_row = 0
        else:
            self._count_failure()
        if code is not None:
            return self._without(tenant, code.value.lower(), found.error_message or code.value)
        decision, arm = found.flag_metadata.get("decision"), found.flag_metadata.get("arm")
        # A flag that is off has an empty value where another process evaluates it.
        return Choice(found.value or PRODUCTION, _text(decision), _text(arm))

    def _count_failure(self) -> None:
        self._in_a_row += 1
        if self._in_a_row >= FAILURES:
            self._paused_until = time.monotonic() + PAUSE_SECONDS

    def _without(self, tenant: str, reason: str, text: str) -> Choice:
        self.report(tenant, reason, f"the flag {PREFIX}{tenant} has no answer ({text})")
        return Choice()

    def report(self, tenant: str, reason: str, text: str) -> None:
        """Count a requester who gets production since the flag can't be followed; log why, once a minute."""
        self._failed(tenant, reason)
        if self._said.is_new(text):
            logger.warning("Production answers: %s.", text)


def open_flags(
    settings: RolloutSettings,
    root: Path,
    tenant_route: Callable[[str], TenantRoute | None],
    failed: Callable[[str, str], None],
) -> Flags:
    """Return the client of the provider that params.yaml names, which is still to be started."""
    if settings.provider == "registry":
        return Flags(RegistryProvider(tenant_route), failed=failed)
    # The other resolvers evaluate in memory.
    deadline = settings.flagd.deadline_ms / 1000 if settings.flagd.resolver == "rpc" else None
    return Flags(flagd_provider(settings.flagd, root), deadline=deadline, failed=failed)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

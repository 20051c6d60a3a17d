"""Shadow traffic: a share of what production answered is asked again of the version in shadow, for nobody.

A copy begins once the answer has left. It waits in a bounded queue for idle slots and free adapter memory, and
ends as soon as clients need either. It counts in no limit, event or metric of the tenant's requests. What comes
of it is a pair of answers, which is judged and kept.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from lora_ops.engines.protocol import EngineBusy
from lora_ops.errors import LoraOpsError
from lora_ops.escaping import shortened
from lora_ops.records.pair import PairStatus
from lora_ops.records.route import RouteRecord
from lora_ops.serving.after_answer import Answered
from lora_ops.serving.answering import Answering
from lora_ops.serving.background_answers import Preempted
from lora_ops.serving.cached_adapter import NoFreeMemory
from lora_ops.serving.errors import as_api_error, too_long
from lora_ops.serving.fair_queue import Overloaded
from lora_ops.serving.logs import OncePerMinute
from lora_ops.serving.made_pairs import made_pair
from lora_ops.serving.pair_log import UnjudgedPair
from lora_ops.serving.pseudonyms import Pseudonyms
from lora_ops.serving.rate_limits import NeverFits
from lora_ops.serving.requests import AnswerRequest, RequestStats, held_to_labels
from lora_ops.serving.router import NotServed, Route, Router
from lora_ops.serving.shadow_target import TargetUnavailable
from lora_ops.settings.rollout import ShadowSettings
from lora_ops.settings.serving import ServingSettings

logger = logging.getLogger(__name__)

AT_ONCE = 4  # copies that are tried at the same time
# Of those, how many are answered at the same time here: each shares the engine's steps with clients who come
# while it runs. A copy that finds no slots or memory waits outside, and keeps no other one from its answer.
ANSWERED_AT_ONCE = 1
TRIES = 3  # of a copy that clients end each time
IDLE_SECONDS = 0.05  # between two looks for idle slots
MEMORY_SECONDS = 1.0  # between two looks for free adapter memory
LATE_SECONDS = 600.0  # a copy that found no idle slots for so long is left out
MOST_ANSWERS = 16  # of one request; a copy of one with more is left out
TOKEN_BYTES = 36  # of a token in memory

Outcome = Literal["asked", "answered", "preempted", "dropped", "failed"]


@dataclass(frozen=True)
class ShadowVersion:
    """A tenant's version in shadow, and its part of the requests."""

    route: Route
    percent: float

    def gets(self, request_id: str) -> bool:
        """Return whether a request is asked again: a hash of its id decides, whoever's it is."""
        text = f"shadow\0{self.route.digest}\0{request_id}".encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(hashlib.sha256(text).digest()[:8]) / 2**64
        return drawn < self.percent / 100


def shadow_version(
    router: Router, tenant: str, tenant_route: Callable[[str], RouteRecord]
) -> ShadowVersion | None:
    """Return the version that a tenant's route has in shadow, or None: it has none, or that may not answer."""
    try:
        record = tenant_route(tenant)
        if record.shadow is None or record.shadow.number in record.stopped:
            return None
        route = router.route(f"{tenant}@{record.shadow.number}")
    except LoraOpsError:  # closed, expired, or the registry can't be read or trusted
        return None
    if route.version is None or route.version.state not in ("shadow", "canary"):
        return None
    return ShadowVersion(route, record.shadow.percent)


class Ask(Protocol):
    """Asks a copy of a request, here or at another gateway."""

    async def __call__(self, request: AnswerRequest, stats: RequestStats) -> None:
        """Fill `stats` with the whole answer; raise what kept it from being made."""

    async def close(self) -> None:
        """Let go of what asking takes."""


class AskHere:
    """Asks copies of this gateway, in idle slots."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def __call__(self, request: AnswerRequest, stats: RequestStats) -> None:
        """Fill `stats` with the whole answer.

        Raises:
            Preempted, Overloaded, NoFreeMemory: clients need the slots or the memory, or have them.
            LoraOpsError, EngineError, TimeoutError: as `Answering.answer`.
        """
        async with aclosing(self._answering.answer(request, stats)) as chunks:
            async for _ in chunks:
                pass

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _Copy:
    """A request that waits to be asked again."""

    answered: Answered
    request: AnswerRequest
    until: float
    """Of the event loop's clock: then it is left out."""

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        texts = sum(map(len, self.answered.stats.texts.values())) + 2 * len(self.request.text)
        return texts + TOKEN_BYTES * sum(map(len, self.request.prompts))


class Shadow:
    """Copies requests for versions in shadow.

    Args:
        version: gives the version that is in shadow for a tenant now.
        ask: asks a copy.
        settings: how many copies wait.
        serving: tells which tenants answer with labels alone.
        insult_threshold: from which score on an answer counts as insulting.
        pseudonyms: names the users of pairs.
        context_length: gives the tokens that prompt and answer may have together.
        keep: takes each pair.
        count: called with a version and what became of a copy of it.
    """

    def __init__(
        self,
        version: Callable[[str], ShadowVersion | None],
        ask: Ask,
        settings: ShadowSettings,
        serving: ServingSettings,
        insult_threshold: float,
        pseudonyms: Pseudonyms,
        context_length: Callable[[], int],
        keep: Callable[[UnjudgedPair], None],
        count: Callable[[str, Outcome], None],
    ) -> None:
        self._version = version
        self._ask = ask
        self._settings = settings
        self._serving = serving
        self._insult_threshold = insult_threshold
        self._pseudonyms = pseudonyms
        self._context_length = context_length
        self._keep = keep
        self._count = count
        self._waiting: asyncio.Queue[_Copy] = asyncio.Queue()
        self._copies = 0
        self._bytes = 0
        self._room = asyncio.Semaphore(AT_ONCE if settings.target else ANSWERED_AT_ONCE)
        self._workers: list[asyncio.Task[None]] = []
        self._failure = ""
        self._report_failures = OncePerMinute(
            lambda count: logger.warning("%d copies for a version in shadow failed: %s", count, self._failure)
        )

    def start(self) -> None:
        """Begin to ask copies."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]

    async def close(self) -> None:
        """Drop the copies that wait or run."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._ask.close()
        while not self._waiting.empty():
            self._count(self._waiting.get_nowait().request.route.name, "dropped")

    async def after_answer(self, answered: Answered) -> None:
        """Queue a copy of a request whose answer has left, if it is one of those that are asked again."""
        request = answered.request
        if request.route.decision != "production" or request.is_copy or not request.sampling.max_tokens:
            return
        found = self._version(request.tenant)
        if found is None or not found.gets(request.request_id):
            return
        name = found.route.name
        self._count(name, "asked")
        copy = _Copy(
            answered,
            replace(
                request,
                request_id=f"{request.request_id}-shadow",
                model=name,
                route=found.route,
                sampling=replace(request.sampling, logprobs=None, prompt_logprobs=False),
                streamed=False,
                trace_parent=None,
                place=None,
                echoes=(),
                user=None,
                priority="background",
            ),
            asyncio.get_running_loop().time() + LATE_SECONDS,
        )
        few = len(request.costs) <= MOST_ANSWERS and self._copies < self._settings.queue
        if not (few and self._bytes + copy.size <= self._settings.queue_bytes) or not (
            request.reads_alike(found.route) or request.read_again
        ):
            self._count(name, "dropped")
            return
        self._copies += 1
        self._bytes += copy.size
        self._waiting.put_nowait(copy)

    async def _work(self) -> None:
        while True:
            copy = await self._waiting.get()
            outcome: Outcome = "dropped"  # by a shutdown
            try:
                outcome = await self._asked(copy)
            except Exception:
                outcome = "failed"
                logger.exception("The copy of request %s failed.", copy.answered.request.request_id)
            finally:
                self._copies -= 1
                self._bytes -= copy.size
                self._count(copy.request.route.name, outcome)

    async def _asked(self, copy: _Copy) -> Outcome:
        """Ask a copy, in idle slots, and keep the pair; return what became of it."""
        try:
            asked = await self._as_asked(copy)
        except Exception as error:  # noqa: BLE001 - in production its clients would be refused, too
            return self._failed(copy, error)
        tries = 0
        while asyncio.get_running_loop().time() < copy.until:
            now = self._version(copy.request.tenant)
            if now is None or now.route.digest != copy.request.route.digest:
                return "dropped"  # it was stopped, revoked or replaced meanwhile
            stats = RequestStats()
            try:
                async with self._room:
                    await self._ask(replace(asked, started=time.perf_counter()), stats)
            except Preempted:
                tries += 1
                if tries == TRIES:
                    self._keep(self._pair(copy, "preempted"))
                    return "preempted"
                await asyncio.sleep(IDLE_SECONDS)
            except Overloaded:  # no slots are idle
                await asyncio.sleep(IDLE_SECONDS)
            except (NoFreeMemory, EngineBusy, TargetUnavailable):
                await asyncio.sleep(MEMORY_SECONDS)
            except (NeverFits, NotServed):
                return "dropped"
            except Exception as error:  # noqa: BLE001 - whatever a version does wrong is what it is asked for
                return self._failed(copy, error)
            else:
                self._keep(self._pair(copy, "answered", stats))
                return "answered"
        return "dropped"

    def _failed(self, copy: _Copy, error: Exception) -> Outcome:
        problem = as_api_error(error)
        self._failure = f"{copy.request.route.name}: {shortened(str(error) or type(error).__name__)}"
        self._report_failures()
        self._keep(self._pair(copy, "failed", code=problem.code))
        return "failed"

    async def _as_asked(self, copy: _Copy) -> AnswerRequest:
        """Return the request as the version in shadow would be asked, were it in production.

        Raises:
            OutOfService: the tenant answers with labels alone, and it was trained for none.
            NotThePrompt, BadPrompt, ApiError: by its template or system prompt this is none, or too long.
        """
        request = copy.request
        if self._serving.tenant(request.tenant).labels_only:
            free = replace(request.sampling, structure=None)
            request = replace(request, sampling=held_to_labels(free, request.route, tools=False))
        # What it answers to production's prompt says nothing about it.
        if not copy.answered.request.reads_alike(request.route) and request.read_again:
            prompts = await asyncio.to_thread(request.read_again, request.route)
            room = self._context_length() - max(map(len, prompts))
            if room < 1:
                raise too_long("messages", f"a prompt of {max(map(len, prompts))}", self._context_length())
            most = min(request.sampling.max_tokens, room)
            request = replace(request, prompts=prompts, sampling=replace(request.sampling, max_tokens=most))
        return request

    def _pair(
        self, copy: _Copy, status: PairStatus, stats: RequestStats | None = None, code: str | None = None
    ) -> UnjudgedPair:
        request = copy.answered.request
        return made_pair(
            copy.answered,
            copy.request.route,
            stats,
            status=status,
            code=code,
            unit=self._pseudonyms.name(request.tenant, request.unit),
            insult_threshold=self._insult_threshold,
            target=self._settings.target,
        )

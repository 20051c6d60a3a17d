"""One request on its way: limits, queue, adapter, engine, and what is told of it afterwards."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import cast

from lora_ops.engines.protocol import Chunk, Engine
from lora_ops.serving.adapters import AdapterCache
from lora_ops.serving.answer_lengths import AnswerLengths
from lora_ops.serving.background_answers import BackgroundTicket
from lora_ops.serving.backlog import Backlog, Work
from lora_ops.serving.errors import as_api_error, outcome
from lora_ops.serving.events import Event
from lora_ops.serving.fair_queue import FairQueue, Overloaded
from lora_ops.serving.moving_request import MovingRequest
from lora_ops.serving.pseudonyms import Pseudonyms
from lora_ops.serving.rate_limits import Allowance, Place
from lora_ops.serving.requests import AnswerChunk, AnswerRequest, RequestStats, generation
from lora_ops.serving.router import Route
from lora_ops.serving.screening import Screening
from lora_ops.serving.task_check import are_labels, task_share
from lora_ops.serving.telemetry import Telemetry
from lora_ops.serving.tenant_queue import Ticket
from lora_ops.serving.traces import Tracing
from lora_ops.settings.serving import ServingSettings

# Of a prompt that is not tokenized yet, so that its allowance is checked first. Few texts have more.
CHARACTERS_PER_TOKEN = 8


class Answering:
    """Takes requests through everything between the HTTP endpoint and the engine."""

    def __init__(
        self,
        engine: Engine,
        cache: AdapterCache,
        queue: FairQueue,
        settings: ServingSettings,
        telemetry: Telemetry,
        tracing: Tracing,
        pseudonyms: Pseudonyms,
        tell: Callable[[Event], None],
        require_open: Callable[[Route], Awaitable[None]],
        screening: Screening,
        answered_in_background: Callable[[str, RequestStats], None] = lambda adapter, stats: None,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._queue = queue
        self._settings = settings
        self._telemetry = telemetry
        self._tracing = tracing
        self._pseudonyms = pseudonyms
        self._tell = tell
        self._require_open = require_open
        self._screening = screening
        self._answered_in_background = answered_in_background
        self._allowances: dict[str, Allowance] = {}
        self._loading: Counter[str] = Counter()
        self._lengths = AnswerLengths()
        self.backlog = Backlog()

    @contextmanager
    def reading(self, request: AnswerRequest, characters: int) -> Iterator[Place]:
        """Spend the tenant's allowance before the prompt is tokenized, and tell of what is refused here.

        The request's place among those of the tenant is the caller's to pass on, or to end where it fails.

        Raises:
            TooMany: the tenant is over one of its limits.
        """
        allowance, tokens = self._allowance(request.tenant), characters // CHARACTERS_PER_TOKEN
        try:
            with allowance.reading(request.tenant, tokens) as place:
                yield place
        except BaseException as error:
            self._report(request, RequestStats(), error)
            raise

    @contextmanager
    def counting(self, tenant: str, characters: int) -> Iterator[Callable[[int], None]]:
        """Spend the tenant's allowance on a text that is only tokenized; call what it gives with its tokens.

        Raises:
            TooMany: the tenant is over one of its limits.
        """
        allowance, counted = self._allowance(tenant), 0

        def count(tokens: int) -> None:
            nonlocal counted
            counted = tokens

        with allowance.reading(tenant, characters // CHARACTERS_PER_TOKEN) as place:
            yield count
            place.end()
        allowance.spend(counted)  # the estimate was given back

    async def answer(self, request: AnswerRequest, stats: RequestStats) -> AsyncGenerator[AnswerChunk, None]:
        """The answers, chunk by chunk as they come; closing it early cancels what still runs.

        Answers do not wait for whoever reads them: slots and adapters are free once the last token is made.
        Where the request's version is closed before it begins, the one that took its place answers
        (`MovingRequest`); `stats.moved` is known before the first chunk.

        Args:
            stats: where the request is counted.

        Raises:
            TooMany, NeverFits, Overloaded, Preempted, AdapterUnavailable, EngineError: as they say.
            LoraOpsError, ApiError: as `MovingRequest.begin`.
            NotScreened: the tenant wants its answers looked at, and nobody could.
            TimeoutError: it was not made within `serving.request_timeout_seconds`.
        """
        error = None
        asked = MovingRequest(request, stats, self._cache, self._require_open)
        with self._tracing.request(request) as span:
            work: list[Work] = []
            try:
                with self._spending(request) as spent:
                    # From here on it waits, for its adapter first: other replicas could answer it meanwhile.
                    work = self._work(request)
                    tickets: Sequence[Ticket | BackgroundTicket] = ()
                    try:
                        if request.priority == "background":
                            # Idle slots come first: without them its adapter would be loaded for nothing.
                            tickets = idle = self._enter_background(request)
                            await self._load_into_free_memory(asked, idle)
                        else:
                            # The adapter comes first: a slot that waits for a load answers nobody.
                            await self._load(asked)
                            tickets = self._enter(asked.request)
                        made = self._chunks(asked, tickets, stats, work)
                        async with aclosing(self._screening.leaving(request, stats, made)) as chunks:
                            async for chunk in chunks:
                                yield chunk
                    finally:
                        spent(stats.read + stats.generated)
                        for ticket in tickets:
                            self._queue.leave(ticket)
                        asked.end()
            except BaseException as raised:
                error = raised
                raise
            finally:
                for one in work:
                    one.done()
                if request.place:
                    request.place.end()
                self._report(asked.request, stats, error)
                span.ended(stats, error)

    def limits(self, tenant: str) -> dict[str, str]:
        """Return the headers that say what is left of a tenant's allowance."""
        return self._allowance(tenant).headers()

    def deadline(self, request: AnswerRequest) -> float:
        """When its time is over, by the event loop's clock."""
        left = request.started + self._settings.request_timeout_seconds - time.perf_counter()
        return asyncio.get_running_loop().time() + left

    def _spending(self, request: AnswerRequest) -> AbstractContextManager[Callable[[int], None]]:
        """Spend the tenant's allowance on an answer; what runs in the background is not at its expense."""
        if request.priority == "background":
            return nullcontext(lambda tokens: None)
        read = sum(map(len, request.prompts))
        return self._allowance(request.tenant).spending(request.tenant, int(sum(request.costs)), read)

    def _enter(self, request: AnswerRequest) -> Sequence[Ticket]:
        """Return the places in the queue of a request's answers."""
        return self._queue.enter(request.tenant, request.costs, self._expected(request))

    def _enter_background(self, request: AnswerRequest) -> Sequence[BackgroundTicket]:
        """Return the idle slots of a request's answers."""
        return self._queue.enter_background(request.costs, self._expected(request))

    async def _load_into_free_memory(self, asked: MovingRequest, tickets: Sequence[BackgroundTicket]) -> None:
        """Load the adapter; these tickets end where its memory is needed."""

        def give_way() -> None:
            for ticket in tickets:
                ticket.end()

        async with asyncio.timeout_at(self.deadline(asked.request)):
            await asked.load_into_free_memory(give_way)

    def _allowance(self, tenant: str) -> Allowance:
        found = self._allowances.get(tenant)
        if found is None:
            found = self._allowances[tenant] = Allowance(self._settings.tenant(tenant))
        return found

    async def _load(self, asked: MovingRequest) -> None:
        """Wait until the adapter is loaded that is to answer."""
        request = asked.request
        if request.route.version is None:
            return
        # They are not in the fair queue yet, so their number has a limit of its own, for each tenant.
        most = self._settings.max_running + self._settings.max_waiting
        if self._loading[request.tenant] >= most:
            raise Overloaded(
                f"The gateway is busy: {most} requests wait for {request.route.name} to be loaded."
            )
        self._loading[request.tenant] += 1
        try:
            async with asyncio.timeout_at(self.deadline(request)):
                await asked.load()
        finally:
            self._loading[request.tenant] -= 1
            if not self._loading[request.tenant]:
                del self._loading[request.tenant]

    def _expected(self, request: AnswerRequest) -> list[float]:
        """Return the tokens that each answer will probably take, prompt included."""
        written = self._written(request)
        return [float(len(prompt) + written) for prompt in request.prompts for _ in range(request.n)]

    def _written(self, request: AnswerRequest) -> int:
        return self._lengths.expected(request.tenant, request.route.name, request.sampling.max_tokens)

    def _work(self, request: AnswerRequest) -> list[Work]:
        """Return what each answer adds to the backlog; nobody waits for one in the background."""
        if request.priority == "background":
            return []
        written = self._written(request)
        return [self.backlog.add(len(prompt), written) for prompt in request.prompts for _ in range(request.n)]

    async def _chunks(
        self,
        asked: MovingRequest,
        tickets: Sequence[Ticket | BackgroundTicket],
        stats: RequestStats,
        work: Sequence[Work],
    ) -> AsyncGenerator[AnswerChunk, None]:
        """Yield the chunks of all answers as they come; the first error ends all of them."""
        arrived: asyncio.Queue[AnswerChunk | asyncio.Task[None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(
                self._one(asked, index, ticket, stats, arrived.put_nowait, work[index] if work else None)
            )
            for index, ticket in enumerate(tickets)
        ]
        generating = len(tasks)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal generating
            generating -= 1
            if not generating:  # a client that reads slowly keeps no adapter in memory
                asked.end()
            arrived.put_nowait(task)

        for task in tasks:
            task.add_done_callback(ended)
        try:
            running = len(tasks)
            while running:
                item = await arrived.get()
                if isinstance(item, AnswerChunk):
                    yield item
                else:
                    item.result()
                    running -= 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(
        self,
        asked: MovingRequest,
        index: int,
        ticket: Ticket | BackgroundTicket,
        stats: RequestStats,
        give: Callable[[AnswerChunk], None],
        work: Work | None,
    ) -> None:
        request = asked.request
        async with asyncio.timeout_at(self.deadline(request)), self._turn(ticket, stats) as took:
            used, written, first, texts = 0, 0, 0.0, []
            try:
                request, adapter = await asked.begin()
                wanted = generation(request, index, adapter)
                # Every engine's generator can be closed; the protocol promises only that it is iterated.
                generating = cast(AsyncGenerator[Chunk, None], self._engine.generate(wanted))
                used = len(wanted.prompt)
                stats.read += used
                async with aclosing(generating) as chunks:
                    async for chunk in chunks:
                        now = time.perf_counter()
                        stats.add(chunk, now - request.started)
                        texts.append(chunk.written)
                        first = first or now
                        written += chunk.tokens
                        if work:
                            work.wrote(chunk.tokens)
                        took(used + written)
                        give(AnswerChunk(index, chunk))
                if written > 1:
                    stats.per_token.append((now - first) / (written - 1))
            finally:
                took(used + written)
                if work:  # a client that reads slowly makes no work
                    work.done()
                if written and request.priority == "normal":  # the others may have been cut short
                    self._lengths.add(request.tenant, request.route.name, request.sampling.max_tokens, written)
                stats.texts[index] = "".join(texts)

    @asynccontextmanager
    async def _turn(
        self, ticket: Ticket | BackgroundTicket, stats: RequestStats
    ) -> AsyncIterator[Callable[[float], None]]:
        """Hold the ticket's slots once its turn has come; note how long that took, also where it never came."""
        started, came = time.perf_counter(), False
        try:
            async with self._queue.slot(ticket) as took:
                came = True
                stats.waited(time.perf_counter() - started)
                yield took
        finally:
            if not came:
                stats.waited(time.perf_counter() - started)

    def _report(self, request: AnswerRequest, stats: RequestStats, error: BaseException | None) -> None:
        stats.seconds = seconds = time.perf_counter() - request.started
        if request.priority == "background":
            self._answered_in_background(request.route.name, stats)
            return
        problem = as_api_error(error) if error else None
        prompt_tokens = sum(map(len, request.prompts))
        metrics = self._telemetry
        labels = metrics.route_labels(
            request.tenant, request.route.name, request.route.base_model.id, request.route.decision
        )
        metrics.requests.labels(*labels).inc()
        if request.route.fallback:
            metrics.fell_back(request.tenant, request.route.instead_of, request.route.fallback)
        if problem:
            metrics.errors.labels(*labels, str(problem.status)).inc()
        if problem and problem.status >= 500:
            metrics.unanswered.labels(*labels).inc()
        ended = outcome(problem.status if problem else 200)
        metrics.latency.labels(*labels, ended).observe(seconds)
        metrics.queue.labels(*labels, ended).observe(stats.queue_seconds)
        if stats.first_token is not None:
            metrics.first_token.labels(*labels).observe(stats.first_token)
        if stats.first_token is not None or stats.finish:  # with max_tokens 0 there is no first token
            metrics.prompt_tokens.labels(*labels).inc(prompt_tokens)
        for each in stats.per_token:
            metrics.per_token.labels(*labels).observe(each)
        metrics.generated_tokens.labels(*labels).inc(stats.generated)
        metrics.device.labels(*labels).inc(stats.device_seconds)
        texts = [text for _, text in sorted(stats.texts.items())]
        self._tell(
            Event(
                time=datetime.now(UTC),
                request_id=request.request_id,
                endpoint=request.endpoint,
                key=request.caller.key,
                user=self._pseudonyms.name(request.tenant, request.user) if request.user else None,
                tenant=request.tenant,
                model=request.model,
                adapter=request.route.name,
                digest=request.route.digest,
                base_model=request.route.base_model.id,
                unit=self._pseudonyms.name(request.tenant, request.unit) if request.is_of_user else None,
                route=request.route.decision,
                arm=request.route.arm,
                fallback=request.route.fallback,
                instead_of=request.route.instead_of,
                epoch=request.route.epoch,
                status=problem.status if problem else 200,
                code=problem.code if problem else None,
                streamed=request.streamed,
                system_prompt=request.system_prompt,
                choices=len(request.prompts) * request.n,
                finish=list(stats.finish),
                prompt_tokens=prompt_tokens,
                generated_tokens=stats.generated,
                queue_seconds=stats.queue_seconds,
                first_token_seconds=stats.first_token,
                token_seconds=list(stats.per_token),
                seconds=seconds,
                device_seconds=stats.device_seconds,
                adapter_hit=stats.adapter_hit,
                answer_task=None if problem else _task(request, texts),
                answer_is_label=are_labels(texts, request.route.labels),
                breach=stats.breach,
                # A refused prompt is not scored: whoever is refused all the time must cost next to nothing.
                prompt_text=request.text if stats.generated or stats.finish else None,
                given_from=request.given_from,
                answer_text="\n".join(texts),
            )
        )


def _task(request: AnswerRequest, texts: Sequence[str]) -> float | None:
    """Return the share of the answers that do their version's task; None where they need not."""
    if request.route.version is None or not request.sampling.max_tokens:
        return None
    # With tools a call or any text will do, and nothing at all will not.
    return task_share(texts, () if request.chat else request.route.labels)

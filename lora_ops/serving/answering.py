"""One request on its way: limits, queue, adapter, engine, and what is told of it afterwards."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

from lora_ops.engines.protocol import (
    Chunk,
    Engine,
    FinishReason,
    Generation,
)
from lora_ops.serving.adapters import AdapterCache, Use
from lora_ops.serving.answer_lengths import AnswerLengths
from lora_ops.serving.ask import Ask
from lora_ops.serving.errors import as_api_error, outcome
from lora_ops.serving.events import Event
from lora_ops.serving.fair_queue import FairQueue, Overloaded, Ticket
from lora_ops.serving.rate_limits import Allowance, Place
from lora_ops.serving.telemetry import Telemetry
from lora_ops.serving.traces import Tracing
from lora_ops.settings.serving import ServingSettings

# Of a prompt that is not tokenized yet, so that its allowance is checked first. Few texts have more.
CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of the answer with this index (prompts first, then `n`)."""

    index: int
    chunk: Chunk


@dataclass
class Tally:
    """What is known of a request when it has ended.

    Attributes:
        read: prompt tokens that were put before the engine, those of each answer.
    """

    read: int = 0
    generated: int = 0
    queue_seconds: float = 0.0
    device_seconds: float = 0.0
    first_token: float | None = None
    per_token: list[float] = field(default_factory=list)
    finish: list[FinishReason] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def waited(self, seconds: float) -> None:
        """Note how long an answer waited for its turn; the longest of a request counts."""
        self.queue_seconds = max(self.queue_seconds, seconds)

    def add(self, chunk: Chunk, seconds: float) -> None:
        """Count a chunk that came this long after the request."""
        if self.first_token is None and (chunk.tokens or chunk.text):
            self.first_token = seconds
        self.generated += chunk.tokens
        self.device_seconds += chunk.device_seconds
        if chunk.finish:
            self.finish.append(chunk.finish)


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
        tell: Callable[[Event], None],
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._queue = queue
        self._settings = settings
        self._telemetry = telemetry
        self._tracing = tracing
        self._tell = tell
        self._allowances: dict[str, Allowance] = {}
        self._loading: Counter[str] = Counter()
        self._lengths = AnswerLengths()

    @contextmanager
    def reading(self, ask: Ask, characters: int) -> Iterator[Place]:
        """Spend the tenant's allowance before the prompt is tokenized, and tell of what is refused here.

        The request's place among those of the tenant is the caller's to pass on, or to end where it fails.

        Raises:
            TooMany: the tenant is over one of its limits.
        """
        try:
            with self._allowance(ask.tenant).reading(ask.tenant, characters // CHARACTERS_PER_TOKEN) as place:
                yield place
        except BaseException as error:
            self._report(ask, Tally(), error)
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

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """The answers, piece by piece as they come; closing it early cancels what still runs.

        Answers do not wait for whoever reads them: slots and adapters are free once the last token is made.

        Raises:
            TooMany, NeverFits, Overloaded, AdapterUnavailable, EngineError: as they say.
            TimeoutError: it was not made within `serving.request_timeout_seconds`.
        """
        tally, error = Tally(), None
        with self._tracing.request(ask) as span:
            try:
                read = sum(map(len, ask.prompts))
                with self._allowance(ask.tenant).spending(ask.tenant, int(sum(ask.costs)), read) as spent:
                    use: Use | None = None
                    tickets: list[Ticket] = []
                    try:
                        # The adapter comes first: a slot that waits for a load would answer nobody meanwhile.
                        use = await self._use(ask)
                        tickets = self._queue.enter(ask.tenant, ask.costs, self._expected(ask))
                        async with aclosing(self._pieces(ask, tickets, tally, use)) as pieces:
                            async for piece in pieces:
                                yield piece
                    finally:
                        spent(tally.read + tally.generated)
                        for ticket in tickets:
                            self._queue.leave(ticket)
                        if use:
                            use.end()
            except BaseException as raised:
                error = raised
                raise
            finally:
                if ask.place:
                    ask.place.end()
                self._report(ask, tally, error)
                span.ended(tally, error)

    def limits(self, tenant: str) -> dict[str, str]:
        """Return the headers that say what is left of a tenant's allowance."""
        return self._allowance(tenant).headers()

    def deadline(self, ask: Ask) -> float:
        """When its time is over, by the event loop's clock."""
        left = ask.started + self._settings.request_timeout_seconds - time.perf_counter()
        return asyncio.get_running_loop().time() + left

    def _allowance(self, tenant: str) -> Allowance:
        found = self._allowances.get(tenant)
        if found is None:
            found = self._allowances[tenant] = Allowance(self._settings.tenant(tenant))
        return found

    async def _use(self, ask: Ask) -> Use | None:
        """Return a use of the adapter that the route names, once it is loaded; None: the base model."""
        if ask.route.version is None:
            return None
        # They stand in no line of the fair queue, so their number has a limit of its own, for each tenant.
        most = self._settings.max_running + self._settings.max_waiting
        if self._loading[ask.tenant] >= most:
            raise Overloaded(f"The gateway is busy: {most} requests wait for {ask.route.name} to be loaded.")
        self._loading[ask.tenant] += 1
        try:
            async with asyncio.timeout_at(self.deadline(ask)):
                return await self._cache.use(ask.route.version)
        finally:
            self._loading[ask.tenant] -= 1
            if not self._loading[ask.tenant]:
                del self._loading[ask.tenant]

    def _expected(self, ask: Ask) -> list[float]:
        """Return the tokens that each answer will probably take, prompt included."""
        written = self._lengths.expected(ask.tenant, ask.route.name, ask.sampling.max_tokens)
        return [float(len(prompt) + written) for prompt in ask.prompts for _ in range(ask.n)]

    async def _pieces(
        self, ask: Ask, tickets: list[Ticket], tally: Tally, use: Use | None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of all answers as they come; the first error ends all of them."""
        arrived: asyncio.Queue[Piece | asyncio.Task[None]] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._one(ask, index, ticket, tally, use, arrived.put_nowait))
            for index, ticket in enumerate(tickets)
        ]
        generating = len(tasks)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal generating
            generating -= 1
            if use and not generating:  # a client that reads slowly keeps no adapter in memory
                use.end()
            arrived.put_nowait(task)

        for task in tasks:
            task.add_done_callback(ended)
        try:
            running = len(tasks)
            while running:
                item = await arrived.get()
                if isinstance(item, Piece):
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
        ask: Ask,
        index: int,
        ticket: Ticket,
        tally: Tally,
        use: Use | None,
        give: Callable[[Piece], None],
    ) -> None:
        async with asyncio.timeout_at(self.deadline(ask)), self._turn(ticket, tally) as took:
            used, written, first, texts = 0, 0, 0.0, []
            try:
                generation = self._generation(ask, index, await use.begin() if use else None)
                # Every engine's generator can be closed; the protocol promises only that it is iterated.
                generating = cast(AsyncGenerator[Chunk, None], self._engine.generate(generation))
                used = len(generation.prompt)
                tally.read += used
                async with aclosing(generating) as chunks:
                    async for chunk in chunks:
                        now = time.perf_counter()
                        tally.add(chunk, now - ask.started)
                        texts.append(chunk.text)
                        first = first or now
                        written += chunk.tokens
                        took(used + written)
                        give(Piece(index, chunk))
                if written > 1:
                    tally.per_token.append((now - first) / (written - 1))
            finally:
                took(used + written)
                if written:
                    self._lengths.add(ask.tenant, ask.route.name, ask.sampling.max_tokens, written)
                tally.texts.append("".join(texts))

    @asynccontextmanager
    async def _turn(self, ticket: Ticket, tally: Tally) -> AsyncIterator[Callable[[float], None]]:
        """Hold the ticket's slots once its turn has come; note how long that took, also where it never came."""
        started, came = time.perf_counter(), False
        try:
            async with self._queue.slot(ticket) as took:
                came = True
                tally.waited(time.perf_counter() - started)
                yield took
        finally:
            if not came:
                tally.waited(time.perf_counter() - started)

    def _generation(self, ask: Ask, index: int, adapter: str | None) -> Generation:
        sampling = ask.sampling
        if sampling.seed is not None and index % ask.n:
            sampling = replace(sampling, seed=sampling.seed + index % ask.n)  # else all choices were the same
        prompt = ask.prompts[index // ask.n]
        return Generation(f"{ask.request_id}-{index}", prompt, adapter, sampling, ask.tenant, ask.cache_salt)

    def _report(self, ask: Ask, tally: Tally, error: BaseException | None) -> None:
        seconds = time.perf_counter() - ask.started
        problem = as_api_error(error) if error else None
        prompt_tokens = sum(map(len, ask.prompts))
        labels = (ask.tenant, ask.route.name, ask.route.base_model.id, ask.route.decision)
        metrics = self._telemetry
        metrics.requests.labels(*labels).inc()
        if problem:
            metrics.errors.labels(*labels, str(problem.status)).inc()
        ended = outcome(problem.status if problem else 200)
        metrics.latency.labels(*labels, ended).observe(seconds)
        metrics.queue.labels(*labels, ended).observe(tally.queue_seconds)
        if tally.first_token is not None:
            metrics.first_token.labels(*labels).observe(tally.first_token)
        if tally.first_token is not None or tally.finish:  # with max_tokens 0 there is no first token
            metrics.prompt_tokens.labels(*labels).inc(prompt_tokens)
        for each in tally.per_token:
            metrics.per_token.labels(*labels).observe(each)
        metrics.generated_tokens.labels(*labels).inc(tally.generated)
        metrics.device.labels(*labels).inc(tally.device_seconds)
        self._tell(
            Event(
                time=datetime.now(UTC),
                request_id=ask.request_id,
                endpoint=ask.endpoint,
                key=ask.caller.key,
                tenant=ask.tenant,
                model=ask.model,
                adapter=ask.route.name,
                digest=ask.route.digest,
                base_model=ask.route.base_model.id,
                route=ask.route.decision,
                status=problem.status if problem else 200,
                code=problem.code if problem else None,
                streamed=ask.streamed,
                system_prompt=ask.system_prompt,
                choices=len(ask.prompts) * ask.n,
                finish=list(tally.finish),
                prompt_tokens=prompt_tokens,
                generated_tokens=tally.generated,
                queue_seconds=tally.queue_seconds,
                first_token_seconds=tally.first_token,
                seconds=seconds,
                device_seconds=tally.device_seconds,
                # A refused prompt is not scored: whoever is refused all the time must cost next to nothing.
                prompt_text=ask.text if tally.generated or tally.finish else None,
                answer_text="\n".join(tally.texts),
            )
        )

"""A request that waits, and moves to the version that takes the place of its own meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from lora_ops.serving.adapters import AdapterCache
from lora_ops.serving.cached_adapter import AdapterUnavailable, AdapterUse, BackgroundUse
from lora_ops.serving.requests import AnswerRequest, RequestStats
from lora_ops.serving.router import NotServed, Route, UnknownModel

LOOK_SECONDS = 0.5  # between two looks whether a version that is being loaded may still answer


class MovingRequest:
    """One request and its use of an adapter.

    Its route was decided when it came. Nothing begins with a version that was closed since: a request for a
    tenant gets the route of that moment, and keeps its place or its turn in the queue. One for an exact version
    is refused. A response names one version, so that no answer moves once the first one of its request began.

    Args:
        request: as it was routed when it came.
        stats: told of the request that it becomes.
        cache: where adapters are loaded.
        require_open: as `Router.require_open`.
    """

    def __init__(
        self,
        request: AnswerRequest,
        stats: RequestStats,
        cache: AdapterCache,
        require_open: Callable[[Route], Awaitable[None]],
    ) -> None:
        self.request = request
        self._stats = stats
        self._cache = cache
        self._require_open = require_open
        self._use: AdapterUse | BackgroundUse | None = None
        self._begun = False
        self._beginning = asyncio.Lock()

    async def load(self) -> None:
        """Load the adapter of the version that answers, if it has one.

        Raises:
            AdapterUnavailable: as `AdapterCache.use`.
            LoraOpsError, ApiError: as `begin`.
        """
        while self._use is None and self.request.route.version is not None:
            self._stats.adapter_hit = self._cache.has(self.request.route.version)
            try:
                self._use = await self._loaded()
            except (AdapterUnavailable, NotServed):  # the load of a version that was closed fails, too
                if not await self._follow():
                    raise

    async def load_into_free_memory(self, give_way: Callable[[], None]) -> None:
        """Load the adapter as `AdapterCache.use_free_memory` does.

        Raises:
            AdapterUnavailable: as there.
        """
        if self.request.route.version is not None:
            self._use = await self._cache.use_free_memory(self.request.route.version, give_way)

    async def begin(self) -> tuple[AnswerRequest, str | None]:
        """Return what is to be answered now, and by which adapter of the engine; None: the base model.

        Raises:
            NotServed, OutOfService: its version was closed, and no other one took its place.
            AdapterUnavailable: its adapter had made room for others, and can't be loaded again.
            LoraOpsError, ApiError: the version that took its place can't be asked this.
        """
        async with self._beginning:  # all answers of a request are by the same version
            while True:
                try:
                    await self.load()
                    adapter = await self._use.begin() if self._use else None
                except AdapterUnavailable:
                    if not await self._follow():
                        raise
                    continue
                # It may have waited for half a minute, in which somebody revoked the version.
                if not await self._follow():
                    self._begun = True
                    return self.request, adapter

    def end(self) -> None:
        """Let the adapter go; nothing happens the second time."""
        if self._use:
            self._use.end()

    async def _loaded(self) -> AdapterUse:
        """Return a use of the adapter once it is loaded.

        Raises:
            NotServed: its version was closed meanwhile.
            AdapterUnavailable: as `AdapterCache.use`.
        """
        assert self.request.route.version is not None
        loading = asyncio.create_task(self._cache.use(self.request.route.version))
        try:
            while not (await asyncio.wait([loading], timeout=LOOK_SECONDS))[0]:
                await self._require_open(self.request.route)
            return loading.result()
        except BaseException:
            loading.cancel()
            loading.add_done_callback(_let_go)
            raise

    async def _follow(self) -> bool:
        """Move to the version of this moment if that of the route was closed; return whether it moved.

        Raises:
            LoraOpsError, ApiError: as `begin`.
        """
        try:
            await self._require_open(self.request.route)
        except NotServed as refusal:
            await self._move(refusal)
            return True
        return False

    async def _move(self, refusal: NotServed) -> None:
        if self.request.route_again is None or self._begun:
            raise refusal
        try:
            request = await self.request.route_again(self.request)
        except UnknownModel:
            raise refusal from None  # nothing took its place
        except NotServed as other:
            if other.route:
                self._become(replace(self.request, route=other.route))
            raise
        self.end()
        self._use = None
        self._become(request)

    def _become(self, request: AnswerRequest) -> None:
        self.request = self._stats.moved = request


def _let_go(loading: asyncio.Task[AdapterUse]) -> None:
    if not loading.cancelled() and not loading.exception():
        loading.result().end()

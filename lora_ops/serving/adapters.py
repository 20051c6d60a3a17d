"""Adapters in the engine's memory: loaded from the registry on first use, verified, evicted when it is full."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol

from lora_ops.engines.protocol import Engine, EngineError
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.registry.eligibility import base_model_reason
from lora_ops.registry.versions import Version
from lora_ops.serving.cached_adapter import (
    AdapterUnavailable,
    AdapterUse,
    BackgroundUse,
    CachedAdapter,
    NoFreeMemory,
)

logger = logging.getLogger(__name__)

BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
PREFETCH_SECONDS = 60.0
CacheLookup = Literal["hit", "miss"]
Verify = Callable[[str], Path]


class WrongBase(LoraOpsError):
    """An adapter was trained on another base model than the one that is served."""


class NoRoom(LoraOpsError):
    """An adapter can't be loaded however long it waits: pinned ones and itself are larger than the memory."""


class Crowded(LoraOpsError):
    """An adapter can't be loaded now: those that answer take all of the memory."""


class Observer(Protocol):
    """Who is told what happens in the cache."""

    def adapter_used(self, name: str, how: CacheLookup) -> None:
        """Somebody wanted it and found it there, or not."""

    def adapter_loaded(self, name: str, seconds: float) -> None:
        """It was verified and loaded."""

    def adapter_failed(self, name: str) -> None:
        """It could not be loaded."""

    def adapter_evicted(self, name: str) -> None:
        """It made room for another one."""


class MemoryObserver(Protocol):
    """Who is told which adapters are in memory."""

    def entered(self, adapter: CachedAdapter, seconds: float) -> None:
        """It is in memory, after a load that took so long."""

    def left(self, adapter: CachedAdapter, *, made_room: bool) -> None:
        """It is leaving the memory; `bytes` says how much it took."""


class AdapterCache:
    """What is loaded, who uses it, and what goes when the memory is full.

    Args:
        engine: where adapters are loaded.
        verify: gives the folder of a version after checking digests and signature; runs in a thread.
        base_model: what the engine runs; adapters of another one are refused.
        budget: bytes of memory for all adapters together.
        warm_recent: how many of the busiest adapters are evicted last.
        drain_seconds: how long to wait for room, and for the users of an adapter that is unloaded.
        observer: told of each use, load, failure and eviction.
        memory: told of each adapter that enters the memory or leaves it.
    """

    def __init__(
        self,
        engine: Engine,
        verify: Verify,
        base_model: BaseModelRecord,
        *,
        budget: int,
        warm_recent: int = 0,
        drain_seconds: float = 30.0,
        observer: Observer | None = None,
        memory: MemoryObserver | None = None,
    ) -> None:
        self._engine = engine
        self._verify = verify
        self._base_model = base_model
        self._budget = budget
        self._warm_recent = warm_recent
        self._drain_seconds = drain_seconds
        self._observer = observer
        self._memory = memory
        self._entries: dict[str, CachedAdapter] = {}
        self._freed = asyncio.Event()

    def entries(self) -> Iterable[CachedAdapter]:
        """Every adapter that was asked for, loaded or not."""
        return self._entries.values()

    def has(self, version: Version) -> bool:
        """Return whether an adapter is in memory."""
        entry = self._entries.get(version.id)
        return entry is not None and entry.loaded

    @property
    def bytes(self) -> int:
        """Memory that loaded adapters take."""
        return sum(entry.bytes for entry in self._entries.values())

    async def use(self, version: Version) -> AdapterUse:
        """Return a use of an adapter, loaded where it is not there.

        However many ask for one that is not there, it is loaded once and they all wait for that.

        Raises:
            AdapterUnavailable: its load failed, now or so lately that it is not tried again yet, or there is no
                room for it.
        """
        entry = self._entry(version.id)
        if self._observer:
            self._observer.adapter_used(entry.name, "hit" if entry.loaded else "miss")
        # After an older registry was restored, a number that was lost with the newer one is given again.
        if entry.loaded and entry.digest != version.summary.content_digest:
            await self.unload(entry.name)
        await self._until_loaded(entry, version)
        entry.used(time.monotonic())
        return AdapterUse(entry, lambda: self._until_loaded(entry, version), self._notify)

    async def use_free_memory(self, version: Version, give_way: Callable[[], None]) -> BackgroundUse:
        """Return a use of an adapter for an answer in the background, loaded only into memory that is free.

        It counts as nobody's use: such an adapter is the first to go, and is no hit or miss.

        Args:
            version: of the adapter.
            give_way: ends the answer; called where a client needs the adapter's room.

        Raises:
            AdapterUnavailable: as `use`; `NoFreeMemory` where others use the memory.
        """
        entry = self._entry(version.id)
        if entry.loaded and entry.digest != version.summary.content_digest and not entry.wanted:
            await self.unload(entry.name)
        await self._until_loaded(entry, version, background=True)
        return BackgroundUse(entry, give_way, self._notify)

    async def load(self, version: Version) -> None:
        """Load an adapter if it is not there, without using it.

        Raises:
            AdapterUnavailable: as `use`.
        """
        (await self.use(version)).end()

    async def unload(self, name: str) -> bool:
        """Forget an adapter as soon as nobody uses it; until then it answers whoever asks for it.

        Returns:
            Whether it was loaded.

        Raises:
            AdapterUnavailable: it was in use all the time for `drain_seconds`; it stays.
        """
        entry = self._entries.get(name)
        if entry is None:
            return False
        async with entry.lock:
            try:
                async with asyncio.timeout(self._drain_seconds):
                    while entry.loaded and (entry.wanted or entry.background):
                        await self._until_freed(entry)
            except TimeoutError as error:
                count = entry.users + entry.waiting
                raise AdapterUnavailable(
                    f"{name} still has {count} requests after {self._drain_seconds:.0f} seconds: "
                    "it stays loaded, try again."
                ) from error
            if not entry.loaded:
                return False
            # Nothing was awaited since the last user left, so nobody can have come.
            await self._remove(entry)
        return True

    def forget(self, name: str) -> None:
        """Drop what is known of an adapter that is not loaded and that nobody waits for."""
        entry = self._entries.get(name)
        if entry and not (entry.loaded or entry.wanted or entry.lock.locked()):
            del self._entries[name]

    def unready(self, version: Version) -> Literal["loading", "failed"] | None:
        """Return why an adapter can't answer at once, or None; it begins to load, and nobody waits for it."""
        entry = self._entry(version.id)
        if entry.loaded:
            return None
        if time.monotonic() < entry.retry_at:
            return "failed"
        self._begin_load(entry, version, background=False)
        return "loading"

    async def keep_warm(
        self, versions: Iterable[Version], *, soon: Iterable[Version] = (), must_fit: bool = False
    ) -> None:
        """Pin these and load those that are missing; one that can't be loaded is logged and tried again.

        Args:
            versions: they stay in memory.
            soon: they begin to load, and are evicted last; nobody waits for them, and they may fail.
            must_fit: refuse versions that don't fit together.

        Raises:
            LoraOpsError: `must_fit`, and there is no room for all of them.
        """
        wanted = {version.id: version for version in versions}
        now = time.monotonic()
        busiest = sorted((e for e in self._entries.values() if e.loaded), key=lambda e: -e.heat_at(now))
        recent = {entry.name for entry in busiest[: self._warm_recent] if entry.heat_at(now) >= 1}
        recent |= {version.id for version in soon}
        for entry in self._entries.values():
            entry.pin = "warm" if entry.name in wanted else "recent" if entry.name in recent else "no"
        for name, version in wanted.items():
            entry = self._entry(name)
            entry.pin = "warm"
            if entry.loaded or time.monotonic() < entry.retry_at:
                continue
            try:
                await self.load(version)
            except AdapterUnavailable as error:
                if must_fit and isinstance(error.__cause__, NoRoom):
                    raise LoraOpsError(f"serving.warm does not fit into the memory: {error}") from error
                logger.warning("%s could not be warmed up: %s", name, error)
        for version in soon:
            self._prefetch(version)

    def _prefetch(self, version: Version) -> None:
        # One that was evicted since is not loaded at once again: where the memory is for fewer adapters than
        # there are, it would make others go each second.
        entry, now = self._entry(version.id), time.monotonic()
        if now >= entry.prefetch_at and not entry.loaded and self.unready(version) == "loading":
            entry.prefetch_at = now + PREFETCH_SECONDS

    def _entry(self, name: str) -> CachedAdapter:
        return self._entries.setdefault(name, CachedAdapter(name))

    async def _until_loaded(self, entry: CachedAdapter, version: Version, *, background: bool = False) -> None:
        while not entry.loaded:  # it may be evicted again between its load and this task's turn
            # A waiter that is cancelled, its client gone, must not take the load away from the others.
            # All wait for the same load: where it fails, none of them tries once more after the others.
            loading = self._begin_load(entry, version, background=background)
            try:
                await asyncio.shield(loading)
            except NoFreeMemory:
                if background:
                    raise
                # A client's load makes room where one for the background did not.
        # An unload would wait for this request's own end.
        if entry.digest != version.summary.content_digest:
            raise AdapterUnavailable(f"{entry.name} was replaced while this request waited: send it again.")

    def _begin_load(self, entry: CachedAdapter, version: Version, *, background: bool) -> asyncio.Task[None]:
        """Return the load of an adapter that is under way, or that begins now."""
        if entry.loading is None or entry.loading.done():
            entry.loading = asyncio.create_task(self._load_once(entry, version, background=background))
            entry.loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return entry.loading

    async def _load_once(self, entry: CachedAdapter, version: Version, *, background: bool) -> None:
        async with entry.lock:
            if entry.loaded:
                return
            wait = entry.retry_at - time.monotonic()
            if wait > 0 and entry.fault:
                raise _again(entry.fault, wait)
            started = time.monotonic()
            try:
                folder = await asyncio.to_thread(self._verified, version)
                needed = await self._engine.size(folder) or version.summary.size_bytes
                if background:
                    self._take_free_memory(entry, needed)
                else:
                    await self._make_room(entry, needed)
                # The engine compares the bytes that it reads: somebody may change the folder meanwhile.
                took = await self._engine.load(entry.name, folder, _digests(version))
            except NoFreeMemory:
                raise
            except Exception as error:
                entry.bytes = 0
                fault = self._failed(entry, error)
                self._notify()
                raise fault from error
            except BaseException:
                entry.bytes = 0
                self._notify()
                raise
            entry.bytes = took or needed
            entry.loaded, entry.failures, entry.fault = True, 0, None
            entry.digest = version.summary.content_digest
            entry.rank = version.manifest.params.get("train", {}).get("rank", 0)
            self._notify()  # it may make room at once, if nobody waits for it any more
            seconds = time.monotonic() - started
            logger.info("%s loaded in %.0f ms, %d bytes", entry.name, seconds * 1000, entry.bytes)
            if self._observer:
                self._observer.adapter_loaded(entry.name, seconds)
            if self._memory:
                self._memory.entered(entry, seconds)

    def _verified(self, version: Version) -> Path:
        other = base_model_reason(version, self._base_model)
        if other:
            raise WrongBase(f"{other}.")
        return self._verify(version.id)

    def _failed(self, entry: CachedAdapter, error: Exception) -> AdapterUnavailable:
        # A permanent fault is looked at again too, whoever asks: somebody may have restored a backup.
        delay = BACK_OFF_SECONDS[min(entry.failures, len(BACK_OFF_SECONDS) - 1)]
        if isinstance(error, Crowded):  # not its own fault: the next one who asks may find room
            logger.warning("%s can't be loaded: %s.", entry.name, error)
            return AdapterUnavailable(f"{entry.name} can't be loaded: {error}.", delay)
        entry.failures += 1
        entry.retry_at = time.monotonic() + delay
        text = f"{entry.name} can't be loaded: {str(error).rstrip('.')}."
        permanent = isinstance(error, Damaged | NoRoom | WrongBase)
        entry.fault = AdapterUnavailable(text, None if permanent else delay, damaged=isinstance(error, Damaged))
        # What nobody foresaw needs its traceback to be found.
        foreseen = isinstance(error, LoraOpsError | EngineError | OSError)
        logger.error("%s", text, exc_info=None if foreseen else error)
        if self._observer:
            self._observer.adapter_failed(entry.name)
        return entry.fault

    async def _make_room(self, entry: CachedAdapter, needed: int) -> None:
        pinned = sum(other.bytes for other in self._entries.values() if other.pin == "warm")
        if needed + pinned > self._budget:
            kept = f", of which warm adapters keep {pinned:,}" if pinned else ""
            raise NoRoom(
                f"it takes {needed:,} bytes and serving.adapter_memory is {self._budget:,}{kept}: raise that"
            )
        try:
            async with asyncio.timeout(self._drain_seconds):
                while self.bytes + needed > self._budget:
                    victim = self._victim()
                    if victim:
                        await self._evict(victim)
                    else:
                        await self._freed.wait()
                entry.bytes = needed
        except TimeoutError as error:
            raise Crowded(
                f"all of serving.adapter_memory ({self._budget:,} bytes) is in use: raise it, or send less"
            ) from error

    def _take_free_memory(self, entry: CachedAdapter, needed: int) -> None:
        if self.bytes + needed > self._budget:
            raise NoFreeMemory(
                f"{entry.name} takes {needed:,} bytes, and {max(0, self._budget - self.bytes):,} of "
                "serving.adapter_memory are free: it answers nobody in the background before it fits."
            )
        entry.bytes = needed

    def _victim(self) -> CachedAdapter | None:
        """The idle one that was used the longest time ago.

        One for which requests wait goes only if no other is left, and one of the busiest before these. If those
        that wait could keep it, one tenant's queue would take the memory from everybody else.
        """
        idle = (entry for entry in self._entries.values() if entry.idle)
        return min(
            idle, key=lambda entry: (entry.waiting > 0, entry.pin == "recent", entry.last_used), default=None
        )

    async def _evict(self, entry: CachedAdapter) -> None:
        # The lock keeps the next load of it waiting until it is gone.
        async with entry.lock:
            # The engine can't forget what still answers; an answer in the background ends within a step.
            while entry.idle and entry.background:
                await self._until_freed(entry)
            if not entry.idle:
                return
            try:
                await self._remove(entry, made_room=True)
            except EngineError as error:  # not the fault of the adapter that needs the room
                logger.warning("%s makes room, but could not be unloaded: %s", entry.name, error)
        if self._observer:
            self._observer.adapter_evicted(entry.name)

    async def _remove(self, entry: CachedAdapter, *, made_room: bool = False) -> None:
        entry.loaded = False
        try:
            await self._engine.unload(entry.name)
        finally:  # whoever waits for room may stop waiting in the middle of it
            if self._memory:
                self._memory.left(entry, made_room=made_room)
            entry.bytes = 0
            self._notify()

    async def _until_freed(self, entry: CachedAdapter) -> None:
        """End the answers in the background that use an adapter; wait until anybody lets any adapter go."""
        freed = self._freed  # an answer may end at once
        entry.end_background()
        await freed.wait()

    def _notify(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()


def _digests(version: Version) -> dict[str, str]:
    """Return the SHA-256 of each file that an engine reads, as the version was registered."""
    return {name: version.manifest.files[name].sha256 for name in ADAPTER_FILES}


def _again(fault: AdapterUnavailable, wait: float) -> AdapterUnavailable:
    """The fault of a load that failed a moment ago, for the next one who asks."""
    if fault.retry_after is None:
        return AdapterUnavailable(str(fault), None, damaged=fault.damaged)
    return AdapterUnavailable(f"{fault} It is tried again in {wait:.0f} s.", wait)

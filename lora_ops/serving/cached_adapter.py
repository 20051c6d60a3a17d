"""One adapter of the cache: whether it is loaded, who uses it, and how much it was used lately."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from lora_ops.engines.busy_clock import BusyClock
from lora_ops.errors import LoraOpsError

RECENT_SECONDS = 300.0
Pin = Literal["no", "warm", "recent"]


class AdapterUnavailable(LoraOpsError):
    """An adapter can't be used now.

    Attributes:
        retry_after: seconds; None where trying again changes nothing.
        damaged: whether what is kept of it is not what was registered.
    """

    def __init__(self, text: str, retry_after: float | None = 1.0, *, damaged: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.damaged = damaged


class NoFreeMemory(AdapterUnavailable):
    """An adapter that only answers in the background would take memory that others use."""


@dataclass
class CachedAdapter:
    """An adapter that somebody has asked for since the gateway started.

    Attributes:
        digest: of the content that is loaded, or was last.
        bytes: of memory, counted from the moment that its load begins; 0 while it is not loaded.
        rank: of its LoRA matrices, as its manifest says; 0 where nothing was loaded yet.
        users: requests that use it now.
        waiting: requests that will use it, once their turn comes.
        background: what ends each answer in the background that uses it; none of them keeps it in memory.
        in_use: counts the seconds in which anything was answered with it, for nobody but the usage log.
        heat: uses, each counting half after `RECENT_SECONDS`.
        failures: loads that failed since the last good one.
        prefetch_at: when it may be loaded again before anybody asks for it.
        loading: the load that is under way, or the last one.
        fault: why the last one failed, as its askers are told until it is tried again.
    """

    name: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    loaded: bool = False
    digest: str = ""
    bytes: int = 0
    rank: int = 0
    users: int = 0
    waiting: int = 0
    background: dict["BackgroundUse", Callable[[], None]] = field(default_factory=dict)
    in_use: BusyClock = field(default_factory=BusyClock)
    pin: Pin = "no"
    last_used: float = 0.0
    heat: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    prefetch_at: float = 0.0
    fault: AdapterUnavailable | None = None
    loading: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether any client's request uses it or will do so."""
        return bool(self.users or self.waiting)

    @property
    def idle(self) -> bool:
        """Whether it may go; requests that only wait load it again."""
        return self.loaded and not self.users and self.pin != "warm"

    def end_background(self) -> None:
        """End the answers in the background that use it; they are gone a moment later."""
        for end in list(self.background.values()):
            end()

    def used(self, now: float) -> None:
        """Count one use."""
        self.heat = self.heat_at(now) + 1
        self.last_used = now

    def heat_at(self, now: float) -> float:
        """How much it was used lately."""
        return float(self.heat * 0.5 ** ((now - self.last_used) / RECENT_SECONDS))


class AdapterUse:
    """One request's use of an adapter.

    At first it waits for its turn: the adapter is loaded, and stays so unless another one needs its room. Once
    it has begun, the adapter stays loaded until it ends.
    """

    def __init__(
        self, adapter: CachedAdapter, load: Callable[[], Awaitable[None]], freed: Callable[[], None]
    ) -> None:
        self._adapter, self._load, self._freed = adapter, load, freed
        self._state: Literal["waiting", "begun", "ended"] = "waiting"
        adapter.waiting += 1

    async def begin(self) -> str:
        """Return the adapter's name in the engine, loaded again where it made room; once more is as once.

        Raises:
            AdapterUnavailable: as `AdapterCache.use`.
        """
        await self._load()
        # Nothing is awaited from here on, so it is still loaded.
        if self._state == "waiting":
            self._adapter.waiting -= 1
            self._adapter.users += 1
            self._adapter.in_use.enter()
            self._state = "begun"
        return self._adapter.name

    def end(self) -> None:
        """Let the adapter go; nothing happens the second time."""
        if self._state == "waiting":
            self._adapter.waiting -= 1
        elif self._state == "begun":
            self._adapter.users -= 1
            self._adapter.in_use.leave()
        self._state = "ended"
        self._freed()


class BackgroundUse:
    """The use of an adapter by an answer in the background, which makes nobody else's adapter go.

    The adapter goes as soon as another one needs its room: `give_way` is called, and has to end the answer.
    """

    def __init__(self, adapter: CachedAdapter, give_way: Callable[[], None], freed: Callable[[], None]) -> None:
        self._adapter, self._freed = adapter, freed
        adapter.background[self] = give_way
        adapter.in_use.enter()

    async def begin(self) -> str:
        """Return the adapter's name in the engine.

        Raises:
            NoFreeMemory: it made room for another one.
        """
        if not self._adapter.loaded or self not in self._adapter.background:
            raise NoFreeMemory(f"{self._adapter.name} made room for an adapter that clients use.")
        return self._adapter.name

    def end(self) -> None:
        """Let the adapter go; nothing happens the second time."""
        if self._adapter.background.pop(self, None):
            self._adapter.in_use.leave()
            self._freed()

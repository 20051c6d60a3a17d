"""The gateway: its parts put together, and what it keeps in memory."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

from lora_ops.engines.protocol import Engine, EngineError
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.records.base_model import read_base_model
from lora_ops.records.route import RouteRecord
from lora_ops.registry import packages
from lora_ops.registry.archived_weights import bring_back_if_archived
from lora_ops.registry.backends import open_copy, open_registry
from lora_ops.registry.eligibility import expiry_warning
from lora_ops.registry.files import InArchive
from lora_ops.registry.shared import SharedRegistry
from lora_ops.rollout.assignment import Requester
from lora_ops.rollout.kept_looks import FOLDER as LOOKS
from lora_ops.serving.adapters import AdapterCache
from lora_ops.serving.after_answer import AfterAnswer
from lora_ops.serving.answering import Answering
from lora_ops.serving.assigned_routes import AssignedRoutes
from lora_ops.serving.cached_adapter import AdapterUnavailable
from lora_ops.serving.console_risk import RiskBoard
from lora_ops.serving.console_rollouts import RolloutBoard
from lora_ops.serving.events import Event, EventLog
from lora_ops.serving.fair_queue import FairQueue
from lora_ops.serving.keys import Caller, KeyStore
from lora_ops.serving.pair_log import PairLog
from lora_ops.serving.pseudonyms import SALT, Pseudonyms
from lora_ops.serving.refreshing import Refresher
from lora_ops.serving.returning_weights import ReturningWeights
from lora_ops.serving.router import NotServed, Route, Router, UnknownModel
from lora_ops.serving.screening import Screening
from lora_ops.serving.shadow import AskHere, Shadow, shadow_version
from lora_ops.serving.shadow_target import AskTarget
from lora_ops.serving.telemetry import Telemetry
from lora_ops.serving.tokenization import Tokenization, TokenizingThreads
from lora_ops.serving.traces import Tracing
from lora_ops.serving.traffic import RecentTraffic
from lora_ops.serving.turns import in_turns
from lora_ops.serving.usage_log import FOLDER as USAGE
from lora_ops.serving.usage_log import UsageLog
from lora_ops.settings.params import Settings
from lora_ops.sqlite_files import stamp

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 1.0
# An adapter that answers no more keeps its series so long, so that each is scraped once more.
SERIES_SECONDS = 600.0


class Gateway:
    """Everything between the endpoints and the engine; made inside the event loop that serves."""

    def __init__(self, root: Path, settings: Settings, engine: Engine) -> None:
        serving = settings.serving
        folder = root / "models/base"
        self.settings = serving
        self._root, self._everything = root, settings
        self.engine = engine
        self.base_model = read_base_model(folder)
        self.tokenization = Tokenization(folder)
        self.tokenizing = TokenizingThreads(max(1, serving.max_waiting))
        self.registry = open_registry(root)
        self._refresher = None
        if isinstance(self.registry, SharedRegistry):
            self._refresher = Refresher(self._open_shared, settings.registry.wandb.refresh_seconds)
        self.router = Router(
            self.registry,
            self.base_model,
            allow_candidates=serving.allow_candidates,
            copy=lambda: open_copy(root, settings),
        )
        self.telemetry = Telemetry(serving.metric_labels)
        self.assigned_routes = AssignedRoutes(
            self.router,
            settings.rollout,
            root,
            lambda version: self.cache.unready(version),
            self.telemetry.flag_failed,
        )
        self.keys = KeyStore(root / serving.path / "keys.sqlite")
        # Each request reads both on the event loop.
        self.registry.db.never_wait()
        self.keys.never_wait()
        self.tracing = Tracing(serving.traces)
        pseudonyms = Pseudonyms(root / serving.path / SALT)
        self.events = EventLog(
            root / serving.path / "events",
            serving.events,
            keeps_text=lambda tenant: serving.tenant(tenant).keep_text,
            written=self.telemetry.events.inc,
            lost=self.telemetry.events_lost.inc,
            unscored=self.telemetry.events_unscored.inc,
            ngram_key=lambda tenant: (
                pseudonyms.ngram_key(tenant) if serving.tenant(tenant).keep_ngrams else None
            ),
            judged=lambda event: self.telemetry.judged(
                event.tenant, event.adapter, event.risks(settings.detectors.insult_threshold)
            ),
        )
        self.usage = UsageLog(
            root / serving.path / USAGE,
            serving.events,
            serving.usage.heartbeat_seconds,
            engine.status,
            lambda: self.cache.entries(),
            lost=self.telemetry.usage_lost.inc,
        )
        self._returning = ReturningWeights(self._bring_back)
        self.cache = AdapterCache(
            engine,
            self._verify,
            self.base_model,
            budget=serving.adapter_memory,
            warm_recent=serving.warm_recent,
            drain_seconds=serving.drain_timeout_seconds,
            observer=self.telemetry,
            memory=self.usage,
        )
        self.queue = FairQueue(
            serving.max_running,
            serving.max_waiting,
            serving.queue_timeout_seconds,
            share=lambda tenant: serving.tenant(tenant).share,
        )
        self.screening = Screening(
            serving,
            settings.detectors.insult_threshold,
            self.telemetry.changed,
            self.telemetry.not_screened,
        )
        self.answering = Answering(
            engine,
            self.cache,
            self.queue,
            serving,
            self.telemetry,
            self.tracing,
            pseudonyms,
            self._tell,
            self.router.require_open,
            self.screening,
            self.usage.answered_in_background,
        )
        self.after_answer = AfterAnswer(self.telemetry.after_answer_failures.inc)
        self.pairs = PairLog(
            root / serving.path / "pairs",
            serving.events,
            keeps_text=lambda tenant: serving.tenant(tenant).keep_text,
            lost=self.telemetry.pairs_lost.inc,
            unscored=self.telemetry.pairs_unscored.inc,
        )
        self.tenant_route = self._tenant_route
        mirror = settings.rollout.shadow
        self.shadow = Shadow(
            lambda tenant: shadow_version(self.router, tenant, self.tenant_route),
            AskTarget(mirror) if mirror.target else AskHere(self.answering),
            mirror,
            serving,
            settings.detectors.insult_threshold,
            pseudonyms,
            lambda: engine.context_length,
            self.pairs.append,
            self.telemetry.copied,
        )
        self.after_answer.add(self.shadow.after_answer)
        self.rollouts = RolloutBoard(lambda: open_copy(root, settings), root / serving.path / LOOKS)
        self.risk = RiskBoard(root)
        self.telemetry.watch(engine, self.cache, self.queue, self, self.answering.backlog)
        self.traffic = RecentTraffic()
        self.started = time.monotonic()
        self.stopping = False
        self._healthy = False
        self._damage: str | None = None
        self._forever: list[asyncio.Task[None]] = []
        self._beating: asyncio.Task[None] | None = None
        self._said: set[str] = set()
        self._closed: dict[str, float] = {}
        self._series_due = 0.0

    async def start(self) -> None:
        """Start the engine and warm up what params.yaml names.

        Raises:
            EngineError: the engine can't start.
            LoraOpsError: what is to stay in memory does not fit into it.
        """
        self.usage.start()
        self._beating = asyncio.create_task(self._beat())
        await self.engine.start()
        await self.screening.start()
        self.queue.tokens = self.engine.status().kv_capacity or math.inf
        await self.assigned_routes.start()
        await self._keep_house(starting=True)
        await self._ask_engine()
        self.shadow.start()
        if self._refresher:
            self._refresher.start()
        self._forever = [
            asyncio.create_task(_each_second(self._keep_house)),
            asyncio.create_task(_each_second(self._ask_engine)),
        ]

    @property
    def ready(self) -> bool:
        """Whether it should be sent requests: it neither starts nor stops, and the engine answered lately."""
        return self._healthy and not self.stopping and self.damage is None

    @property
    def damage(self) -> str | None:
        """Why the registry can't be trusted, as of the last look at it, or None."""
        return self._damage

    async def stop(self) -> None:
        """Stop the engine and write what is left of the event log."""
        self.stopping = True
        if self._refresher:
            self._refresher.close()
        for task in self._forever:
            task.cancel()
        await asyncio.gather(*self._forever, return_exceptions=True)
        self.tokenizing.close()
        await self.after_answer.close()
        await self.shadow.close()
        await self.risk.close()
        await self.engine.close()
        await self.screening.close()
        await asyncio.to_thread(self.events.close)
        await asyncio.to_thread(self.pairs.close)
        if self._beating:  # to the last: a drain may take longer than the usage log may be silent
            self._beating.cancel()
        self.usage.stop()
        await asyncio.to_thread(self.usage.close)
        await asyncio.to_thread(self.tracing.close)
        self.keys.close()
        self.assigned_routes.close()
        await self.router.close()
        self.registry.close()

    def route(self, caller: Caller, model: str) -> Route:
        """Return the route of a model that the caller may use, as `Router.route` does.

        Raises:
            UnknownModel: there is none, or it is another tenant's, which reads the same.
            NotServed: it may not answer.
        """
        self._require_reach(caller, model)
        return self.router.route(model)

    async def assigned(self, caller: Caller, model: str, who: Requester) -> Route:
        """Return who answers a caller's request, which is for somebody: one decision for each request.

        Raises:
            UnknownModel, NotServed: as `route`.
        """
        self._require_reach(caller, model)
        return await self.assigned_routes.route(model, who)

    def _require_reach(self, caller: Caller, model: str) -> None:
        tenant = model.partition("@")[0]
        is_base = self.router.is_base(model)
        if not caller.reaches(None if is_base else tenant):
            raise UnknownModel(f"There is no model '{model}' that this key reaches: see /v1/models.")

    def _tenant_route(self, tenant: str) -> RouteRecord:
        self.router.look()
        found = self.router.tenant_route(tenant)
        return found.route if found else RouteRecord()

    def _tell(self, event: Event) -> None:
        event = event.model_copy(update={"gateway": self.usage.gateway})
        self.events.append(event)
        self.traffic.add(event)

    def _verify(self, reference: str) -> Path:
        # Runs in a thread, and a registry belongs to one thread. What was found damaged loads nothing new.
        if self._damage:
            raise Damaged(f"The registry can't be trusted ({self._damage}): nothing new is loaded.")
        try:
            return self._verified(reference)
        except InArchive:
            self._returning.wait(reference)
            return self._verified(reference)

    def _verified(self, reference: str) -> Path:
        with closing(open_copy(self._root, self._everything)) as registry:
            return packages.verified_path(registry, reference, followed=True)

    def _bring_back(self, reference: str) -> None:
        with closing(open_copy(self._root, self._everything)) as registry:
            bring_back_if_archived(registry, reference, actor="gateway", reason="a request needs it")

    def _open_shared(self) -> SharedRegistry:
        opened = open_copy(self._root, self._everything)
        assert isinstance(opened, SharedRegistry)
        return opened

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.settings.usage.heartbeat_seconds)
            self.usage.beat()

    async def _ask_engine(self) -> None:
        self._healthy = await self.engine.healthy()

    async def _keep_house(self, *, starting: bool = False) -> None:
        """Keep the warm ones in memory, and what may not serve any more out of it."""
        await self.router.catch_up()
        self.router.keep_remembered()
        self._damage = self.router.damage()
        if self._damage:
            return  # what is in memory was verified and stays; nothing is loaded or unloaded on damaged records
        self._warn_of_expiry()
        warm = []
        for name in self.settings.warm:
            try:
                route = self.router.route(name)
            except (UnknownModel, NotServed) as error:
                self._say_once(f"serving.warm names '{name}': {error}")
                continue
            if route.version:
                warm.append(route.version)
        shared = list(self.assigned_routes.versions())
        await self.cache.keep_warm(warm, soon=shared, must_fit=starting)
        # After a change in the registry each route is read once more.
        async for entry in in_turns(list(self.cache.entries())):
            if entry.loaded and not entry.wanted:  # whoever still uses it finishes; a later round unloads it
                try:
                    self.router.route(entry.name)
                except (UnknownModel, NotServed) as error:
                    # A rollback must not wait for a load. It is the first to go where others need the room.
                    if self.router.may_return(entry.name):
                        continue
                    logger.warning("%s is unloaded: %s", entry.name, error)
                    await self._unload(entry.name)
        await self._end_series()

    async def _end_series(self) -> None:
        now = time.monotonic()
        if now < self._series_due:
            return
        self._series_due = now + SERIES_SECONDS / 10
        async for name in in_turns(await asyncio.to_thread(self.telemetry.adapters)):
            try:
                self.router.route(name)
                self._closed.pop(name, None)
            except (UnknownModel, NotServed):
                if now - self._closed.setdefault(name, now) >= SERIES_SECONDS:
                    del self._closed[name]
                    self.telemetry.forget(name)
                    self.cache.forget(name)

    def _warn_of_expiry(self) -> None:
        # Expiry stops a tenant's answers at once, so it is said long before, once a day: the text counts days.
        for one in self.router.versions():
            warning = expiry_warning(one, self.registry.clock()) if one.aliases else None
            if warning:
                self._say_once(warning)

    def rules_seen(self) -> tuple[object, ...]:
        """Return what differs after each change of the registry or of owners.yaml.

        Raises:
            LoraOpsError: the registry can't be read.
        """
        return *self.registry.seen(), stamp(self._root / "owners.yaml")

    def freshness(self) -> list[tuple[str, str, float, float | None]]:
        """Return what an alias names: tenant, version, seconds until its data expires and its review is due."""
        now = self.registry.clock()

        def left(until: str) -> float:
            return (datetime.fromisoformat(until) - now).total_seconds()

        return [
            (
                one.tenant,
                one.id,
                left(one.fresh_until),
                left(one.next_review_due) if one.next_review_due else None,
            )
            for one in self.router.versions()
            if one.aliases
        ]

    async def _unload(self, name: str) -> None:
        try:
            await self.cache.unload(name)
        except (AdapterUnavailable, EngineError) as error:
            logger.error("%s could not be unloaded: %s", name, error)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)


async def _each_second(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
        try:
            await work()
        except LoraOpsError as error:
            logger.error("Housekeeping failed: %s", error)
        except Exception:
            logger.exception("Housekeeping failed")

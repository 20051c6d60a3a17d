"""Replay rows as shadow traffic: production and a version in shadow answer each, and the pairs say REPLAYED.

It is for CI and for the time before there is live traffic. Nobody asked these rows, so that no gate opens by
them unless `rollout.accept_replay` is set.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from lora_ops.engines.protocol import Engine, EngineError, Sampling
from lora_ops.errors import LoraOpsError
from lora_ops.records.example import read_split
from lora_ops.records.pair import PairStatus
from lora_ops.records.record import Record
from lora_ops.serving.after_answer import Answered
from lora_ops.serving.cached_adapter import NoFreeMemory
from lora_ops.serving.errors import as_api_error
from lora_ops.serving.fair_queue import Overloaded
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import OPEN
from lora_ops.serving.made_pairs import made_pair
from lora_ops.serving.requests import AnswerRequest, RequestStats, held_to_labels
from lora_ops.serving.router import BASE, NotServed, Route, UnknownModel
from lora_ops.serving.server import running
from lora_ops.serving.shadow import IDLE_SECONDS
from lora_ops.settings.files import first_problem
from lora_ops.settings.params import Settings
from lora_ops.small_files import read_text

HELD_OUT = "held-out"
STAGES = ("shadow", "canary")


class ReplayRow(Record):
    """A row that is asked again."""

    text: str = Field(min_length=1, description="what a user's message says")
    target: str | None = Field(None, description="the right answer, where it is known")
    group: str | None = Field(None, description="rows of one group are one unit; None: each is its own")


class Replayed(NamedTuple):
    """What came of a replay."""

    version: str
    against: str
    answered: int
    failed: int


def read_rows(root: Path, tenant: str, source: str) -> list[ReplayRow]:
    """Return the rows to replay: `held-out`, those of the tenant's prepared data, or a file of JSON lines.

    Raises:
        LoraOpsError: the data is not prepared, or the file can't be read or is no such file.
    """
    if source == HELD_OUT:
        test = read_split(root / "data/prepared" / tenant, "test")
        return [ReplayRow(text=one.text, target=one.target, group=one.group) for one in test]
    path = Path(source)
    try:
        lines = read_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LoraOpsError(
            f"{source} can't be read ({error}): name a file of JSON lines, or held-out."
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [ReplayRow.model_validate_json(line)] if line.strip() else []
        except ValidationError as error:
            raise LoraOpsError(
                f"{source}, line {number}: {first_problem(error)}. A row has a text, maybe a target, a group."
            ) from error
    if not rows:
        raise LoraOpsError(f"{source} has no rows.")
    return rows


async def replay(
    root: Path, settings: Settings, engine: Engine, reference: str, rows: Sequence[ReplayRow]
) -> Replayed:
    """Let production (else the base model) and a version in shadow answer rows, and keep the pairs.

    Raises:
        LoraOpsError: the version may not answer, is in no shadow, or the adapters have no room together.
    """
    async with running(root, settings, engine) as gateway:
        shadow = gateway.router.route(reference)
        if shadow.version is None or shadow.version.state not in STAGES:
            state = shadow.version.state if shadow.version else "the base model"
            raise LoraOpsError(
                f"{reference} is '{state}', and only a version in shadow is replayed: promote it "
                f"(`lora-ops registry promote {reference} shadow`)."
            )
        against = _production(gateway, shadow)
        if against.version and against.template != shadow.template:
            raise LoraOpsError(
                f"{shadow.name} and {against.name} were trained with different templates: their rows differ, "
                "so that live traffic alone can compare them."
            )
        room = asyncio.Semaphore(settings.serving.max_running)
        replayed = _Replay(gateway, settings, against, shadow, room)
        statuses = await asyncio.gather(*(replayed.row(number, row) for number, row in enumerate(rows)))
    return Replayed(shadow.name, against.name, statuses.count("answered"), statuses.count("failed"))


def _production(gateway: Gateway, shadow: Route) -> Route:
    """Return what the version is compared with."""
    assert shadow.tenant
    try:
        found = gateway.router.route(shadow.tenant)
        if found.decision == "production":
            return found
    except (UnknownModel, NotServed):
        pass  # nothing is in production, or it may not answer
    return gateway.router.route(BASE)


class _Replay:
    """One replay of rows."""

    def __init__(
        self, gateway: Gateway, settings: Settings, against: Route, shadow: Route, room: asyncio.Semaphore
    ) -> None:
        self._gateway, self._settings = gateway, settings
        self._against, self._shadow, self._room = against, shadow, room
        self._id = uuid.uuid4().hex[:12]

    async def row(self, number: int, row: ReplayRow) -> PairStatus:
        """Let both answer a row, and keep the pair."""
        async with self._room:
            try:
                first = await self._ask(f"replay-{self._id}-{number}", self._against, row)
            except EngineError as error:
                raise LoraOpsError(f"{self._against.name} did not answer: {error}") from error
            status: PairStatus = "answered"
            code = stats = None
            try:
                stats = (await self._ask(first.request.request_id, self._shadow, row)).stats
            except NoFreeMemory:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the version does wrong is what it is asked for
                status, code = "failed", as_api_error(error).code
        self._gateway.pairs.append(
            made_pair(
                first,
                self._shadow,
                stats,
                status=status,
                code=code,
                unit=row.group or first.request.request_id,
                insult_threshold=self._settings.detectors.insult_threshold,
                replayed=True,
                expected=() if row.target is None else (row.target,),
            )
        )
        return status

    async def _ask(self, request_id: str, route: Route, row: ReplayRow) -> Answered:
        serving, tokenization = self._settings.serving, self._gateway.tokenization
        system = route.system if route.version else self._shadow.system
        turns = [("system", system)] * bool(system) + [("user", row.text)]
        prompt = tokenization.chat([(role, text or "") for role, text in turns])
        tenant = self._shadow.tenant or ""
        sampling = Sampling(
            min(serving.default_max_tokens, self._gateway.engine.context_length - len(prompt)),
            serving.default_temperature,
        )
        if route.version and serving.tenant(tenant).labels_only:
            sampling = held_to_labels(sampling, route, tools=False)
        request = AnswerRequest(
            request_id=request_id,
            endpoint="chat",
            caller=OPEN,
            model=route.name,
            route=route,
            prompts=(prompt,),
            n=1,
            sampling=sampling,
            streamed=False,
            system_prompt="adapter" if system else "none",
            text=row.text,
            started=time.perf_counter(),
            priority="background",  # in no event, limit or metric of the tenant
        )
        while True:
            stats = RequestStats()
            request = replace(request, started=time.perf_counter())
            try:
                async for _ in self._gateway.answering.answer(request, stats):
                    pass
            except Overloaded:
                await asyncio.sleep(IDLE_SECONDS)
            else:
                return Answered(request, stats)

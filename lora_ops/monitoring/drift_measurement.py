"""What an adapter and its base say to a drift set, measured by the engine that serves, and kept as one file.

Of each row two things are kept. The probabilities of the next token, at the first place of the answer: those of
the likeliest tokens one by one, and of all others together. And the mean of the last layer's states over the
prompt's tokens.

A distribution over 49,152 tokens would take 100 KB a row. Summing up the others gives a coarser partition,
whose divergence is never larger than the whole one's (data processing inequality: Cover and Thomas, 2006,
section 2.8). docs/monitoring.md has how little is lost.
"""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lora_ops import __version__
from lora_ops.engines.protocol import Engine, EngineError, Generation, Sampling
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.engines.torch_engine.token_bytes import TokenBytes
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.loading import load_tokenizer, pick_device
from lora_ops.records.drift import MeasuredFacts
from lora_ops.settings.files import first_problem
from lora_ops.settings.serving import ServingSettings

ADAPTER, BASE = "adapter", "base"
SYSTEMS = (ADAPTER, BASE)
NO_TOKEN = -1
MORE_TOKENS = 32
"""Likeliest tokens that are kept besides those of the reference, which may lack what is the likeliest now."""
NAMED_BY_SERVERS = 20
"""Tokens that an OpenAI-compatible server names with their probabilities at most."""
SMALLEST = -30.0
"""Natural logarithm of a probability below which float32 sums say nothing."""

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Side:
    """What one system says to each row.

    Attributes:
        tokens: (rows, named), token ids, `NO_TOKEN` where fewer were named.
        logprobs: (rows, named), natural logarithms of their probabilities.
        rest: (rows), of all other tokens together.
        states: (rows, hidden) in float16; (rows, 0) where the engine tells none.
    """

    tokens: Tokens
    logprobs: Floats
    rest: Floats
    states: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Measurement:
    """One measurement of a version and its base; `sides` has both of `SYSTEMS`."""

    facts: MeasuredFacts
    sides: Mapping[str, Side]

    def to_bytes(self) -> bytes:
        """Return it as safetensors; the same measurement gives the same bytes."""
        arrays = {f"{name}.{part}": value for name in SYSTEMS for part, value in vars(self.sides[name]).items()}
        return save(arrays, metadata={"facts": self.facts.model_dump_json()})

    @staticmethod
    def from_bytes(content: bytes) -> "Measurement":
        """Return a kept measurement.

        Raises:
            Damaged: the bytes are none.
        """
        try:
            arrays = load(content)
            facts = MeasuredFacts.model_validate_json(_metadata(content)["facts"])
            sides = {name: Side(**{part: arrays[f"{name}.{part}"] for part in PARTS}) for name in SYSTEMS}
        except (SafetensorError, ValidationError, KeyError, ValueError) as error:
            what = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise Damaged(f"A kept measurement of drift can't be read ({what}).") from error
        return Measurement(facts, sides)


PARTS = tuple(Side.__annotations__)


class Probe:
    """An engine that says how likely tokens are, for one adapter after the other.

    Args:
        engine: that runs. `TorchEngine` tells states and any token's probability. Of another one the first
            `NAMED_BY_SERVERS` tokens are known and no state.
        portal: of the event loop that it runs in.
        tokenizer: the base model's.
    """

    def __init__(self, engine: Engine, portal: BlockingPortal, tokenizer: object) -> None:
        self._engine, self._portal = engine, portal
        self._names = TokenBytes(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]

    def measure(
        self,
        adapter: Path,
        digests: Mapping[str, str] | None,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        named: Mapping[str, Side] | None = None,
    ) -> dict[str, Side]:
        """Return what an adapter and its base say to prompts.

        Args:
            adapter: the folder of its files.
            digests: SHA-256 of each that must be loaded; None takes them as they are.
            prompts: token ids of each row.
            tokens: how many of the likeliest tokens are named.
            named: sides of a reference, whose tokens are named too.

        Raises:
            LoraOpsError: the engine can't load it or can't answer.
        """
        try:
            return self._portal.call(self._measure, adapter, digests, prompts, tokens, named)
        except EngineError as error:
            raise LoraOpsError(f"The engine that serves can't measure drift: {error}") from error

    async def _measure(
        self,
        adapter: Path,
        digests: Mapping[str, str] | None,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        named: Mapping[str, Side] | None,
    ) -> dict[str, Side]:
        name = f"drift-{adapter.name}-{id(prompts)}"
        await self._engine.load(name, adapter, digests)
        try:
            if isinstance(self._engine, TorchEngine):
                return await _whole(self._engine, name, prompts, tokens, named)
            return {
                ADAPTER: await self._by_server(name, prompts),
                BASE: await self._by_server(None, prompts),
            }
        finally:
            await self._engine.unload(name)

    async def _by_server(self, adapter: str | None, prompts: Sequence[Sequence[int]]) -> Side:
        ids = {self._names[token]: token for token in reversed(range(len(self._names)))}
        tokens = np.full((len(prompts), NAMED_BY_SERVERS), NO_TOKEN, np.int32)
        logprobs = np.full(tokens.shape, SMALLEST, np.float32)
        sampling = Sampling(max_tokens=1, logprobs=NAMED_BY_SERVERS)
        for row, prompt in enumerate(prompts):
            generation = Generation(f"drift-{row}", tuple(prompt), adapter, sampling)
            chunks = [chunk async for chunk in self._engine.generate(generation)]
            found = [one for chunk in chunks for one in chunk.logprobs][:1]
            if not found:
                raise EngineError("it names no probabilities, which drift is measured by.")
            top = {ids[token]: value for token, value in found[0].top if token in ids}
            best = sorted(top, key=lambda token: -top[token])[:NAMED_BY_SERVERS]
            tokens[row, : len(best)] = best
            logprobs[row, : len(best)] = [top[token] for token in best]
        left = np.where(tokens == NO_TOKEN, 0.0, np.exp(logprobs)).sum(1)
        rest = np.log(np.maximum(1 - left, np.exp(SMALLEST))).astype(np.float32)
        return Side(tokens, logprobs, rest, np.empty((len(prompts), 0), np.float16))


@contextmanager
def running(engine: Engine, base: Path) -> Iterator[Probe]:
    """Start an engine in an event loop of its own, and stop it at the end.

    Raises:
        LoraOpsError: it can't start.
    """
    with start_blocking_portal() as portal:
        try:
            portal.call(engine.start)
            yield Probe(engine, portal, load_tokenizer(base))
        except EngineError as error:
            raise LoraOpsError(f"The engine that serves can't start: {error}") from error
        finally:
            portal.call(engine.close)


def engine_words(settings: ServingSettings) -> str:
    """Return which engine measures, with device, type and releases: another one may give other bits."""
    if settings.engine == "openai":
        return f"openai, lora-ops {__version__}"
    place, kind = pick_device(settings.torch.device, settings.torch.dtype)
    by_file = settings.torch.dtype == "auto" and place == "cpu"
    dtype = "the base model's type" if by_file else str(kind).removeprefix("torch.")
    return f"torch {torch.__version__} on {place} in {dtype}, lora-ops {__version__}"


def machine_words() -> str:
    """Return what computes here: the GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


class _Row(NamedTuple):
    """What one system says to one row, as `Side` has it of all."""

    tokens: Tokens
    logprobs: Floats
    rest: float
    state: npt.NDArray[np.float16]


async def _whole(
    engine: TorchEngine,
    adapter: str,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    named: Mapping[str, Side] | None,
) -> dict[str, Side]:
    """Return both sides, of the same tokens, by the whole distribution of each row."""
    found: dict[str, list[_Row]] = {one: [] for one in SYSTEMS}
    for row, prompt in enumerate(prompts):
        seen = {
            ADAPTER: await engine.inspect(tuple(prompt), adapter),
            BASE: await engine.inspect(tuple(prompt), None),
        }
        logprobs = {one: seen[one][0].numpy() for one in SYSTEMS}
        earlier = named[ADAPTER].tokens[row] if named else np.empty(0, np.int32)
        earlier = earlier[earlier != NO_TOKEN]
        likeliest = np.maximum(logprobs[ADAPTER], logprobs[BASE]).copy()
        likeliest[earlier] = -np.inf
        more = min(MORE_TOKENS if named else tokens, len(likeliest) - len(earlier))
        top = np.argpartition(-likeliest, more - 1)[:more] if more else np.empty(0, int)
        chosen = np.concatenate([earlier, np.sort(top)]).astype(np.int32)
        for one in SYSTEMS:
            others = np.delete(logprobs[one], chosen)
            rest = float(np.logaddexp.reduce(others.astype(np.float64))) if len(others) else SMALLEST
            state = seen[one][1].numpy().astype(np.float16)
            found[one].append(_Row(chosen, logprobs[one][chosen], max(rest, SMALLEST), state))
    return {one: _stacked(rows) for one, rows in found.items()}


def _stacked(rows: Sequence[_Row]) -> Side:
    width = max(len(one.tokens) for one in rows)
    tokens = np.full((len(rows), width), NO_TOKEN, np.int32)
    logprobs = np.full((len(rows), width), SMALLEST, np.float32)
    for place, one in enumerate(rows):
        named = len(one.tokens)
        tokens[place, :named], logprobs[place, :named] = one.tokens, one.logprobs
    rest = np.array([one.rest for one in rows], np.float32)
    return Side(tokens, logprobs, rest, np.stack([one.state for one in rows]))


def _metadata(content: bytes) -> dict[str, str]:
    """Return the texts in the header of safetensors, which `load` leaves out."""
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return {str(name): str(value) for name, value in found.items()}

"""The embedded engine: one thread takes the steps, the event loop hands requests in and chunks out."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_ops.engines.busy_clock import BusyClock
from lora_ops.engines.protocol import Chunk, EngineBusy, EngineError, EngineStatus, Generation
from lora_ops.engines.tenant_threads import TenantThreads
from lora_ops.engines.torch_engine.adapter_files import common_dtype, read_adapter, read_header
from lora_ops.engines.torch_engine.architectures import load_decoder
from lora_ops.engines.torch_engine.batch import Batch
from lora_ops.engines.torch_engine.decoder import Adapter
from lora_ops.engines.torch_engine.memory import GPUShare, is_out_of_memory
from lora_ops.engines.torch_engine.sequence import Sequence, started
from lora_ops.engines.torch_engine.structure import Structures
from lora_ops.engines.torch_engine.token_bytes import TokenBytes
from lora_ops.loading import pick_device
from lora_ops.paths import ADAPTER_FILES

logger = logging.getLogger(__name__)

# Prompt tokens that one step reads: on a CPU about as long as a step of a full batch takes.
PREFILL_CHUNK = {"cpu": 64}
PREFILL_CHUNK_DEVICE = 512

# A step that takes longer than this hangs. On a CPU the longest ones take a few seconds.
HANG_SECONDS = 60.0
FORM_THREADS = 4  # that look for the tokens which forms let come next, each for another tenant
PROBE_SECONDS = 1.0  # between two tries of an engine whose steps fail


# Device, inode, size and time of change of each file: enough to tell whether a name means the same adapter,
# without reading it once more.
Files = tuple[tuple[int, int, int, int], ...]


@dataclass
class _LoadedAdapter:
    adapter: Adapter
    files: Files
    users: int = 0


class TorchEngine:
    """An `Engine` in this process.

    Args:
        base_folder: the base model as the base_model stage leaves it.
        max_batch: how many answers are written together.
        kv_tokens: how many tokens the KV cache holds, of all of them together; None: 1 GiB on a CPU, and on a
            GPU what `gpu_memory_utilization` leaves.
        gpu_memory_utilization: the share of a GPU's memory that may be used, base model included.
        adapter_memory: bytes of it that adapters may take later.
        prefill_chunk: how many prompt tokens one step reads; None: 64 on a CPU, 512 elsewhere.
        threads: of torch, for this engine's steps; None: torch's own choice.
        device: of torch; "auto" is the first GPU where there is one, else the CPU.
        dtype: of the base model's weights. "auto" is bfloat16 on a GPU that has it, and on a CPU where the base
            model's files are in it, else float32. Sums are in float32 on a CPU, else in `dtype`.
        adapter_dtype: of adapters in memory, never wider than sums. "auto": bfloat16 where all of a file is
            and the decoder reads it as fast, else the type of sums. "bfloat16" rounds what is not, which
            changes answers a little.
    """

    takes_tools = False

    def __init__(
        self,
        base_folder: Path,
        *,
        max_batch: int = 32,
        kv_tokens: int | None = None,
        gpu_memory_utilization: float = 0.9,
        adapter_memory: int = 1 << 30,
        prefill_chunk: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        adapter_dtype: str = "auto",
    ) -> None:
        self.context_length = 0
        self._base_folder, self._max_batch, self._kv_tokens = base_folder, max_batch, kv_tokens
        self._device, picked = pick_device(device, dtype)
        self._dtype = None if dtype == "auto" and self._device == "cpu" else picked
        self._adapter_dtype = None if adapter_dtype == "auto" else getattr(torch, adapter_dtype)
        self._prefill_chunk = prefill_chunk or PREFILL_CHUNK.get(self._device, PREFILL_CHUNK_DEVICE)
        rows = self._prefill_chunk + max_batch
        self._busy = BusyClock()
        self._share = GPUShare(gpu_memory_utilization, rows, adapter_memory)
        # Asked for here: a new thread of torch takes the number that was set last, by a loader perhaps.
        self._threads = threads or torch.get_num_threads()
        self._adapters: dict[str, _LoadedAdapter] = {}
        self._queues: dict[Sequence, asyncio.Queue[Chunk | EngineError]] = {}
        self._wake = threading.Condition()
        self._commands: list[Callable[[Batch], None]] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        self._step_began: float | None = None
        self._sound = True
        self._status = EngineStatus()

    async def start(self) -> None:
        """Load the base model and be ready to answer.

        Raises:
            EngineError: the base model can't be loaded, or there is no GPU where one is asked for.
        """
        if self._device == "cuda" and not torch.cuda.is_available():
            raise EngineError("serving.torch.device is cuda, and torch finds no GPU here: take cpu or auto.")
        self._loop = asyncio.get_running_loop()
        ready: Future[None] = Future()
        self._closing = False
        # One at a time: a form may take seconds to compile, and these threads must not take all cores.
        self._compiler = TenantThreads(1, "torch-engine-form")
        self._form_threads = TenantThreads(FORM_THREADS, "torch-engine-mask")
        self._thread = threading.Thread(target=self._work, args=(ready,), name="torch-engine", daemon=True)
        self._thread.start()
        # Its one thread computes alone: helpers of its own would take the cores from those of the steps.
        self._loader = ThreadPoolExecutor(
            1, "torch-engine-load", initializer=torch.set_num_threads, initargs=(1,)
        )
        with self._busy.working():
            await asyncio.wrap_future(ready)

    async def close(self) -> None:
        """Stop after the step that is under way; what still runs ends with `EngineError`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(thread.join, HANG_SECONDS)
        if thread.is_alive():
            logger.error("A step of the engine hangs: its thread is left behind.")
        self._loader.shutdown(wait=False)
        self._compiler.close()
        self._form_threads.close()
        self._fail(list(self._queues), EngineError("The engine was stopped."))

    async def size(self, folder: Path) -> int:
        """How many bytes of memory the adapter in `folder` would take, whatever the type of its numbers there.

        Raises:
            EngineError: its weights can't be read.
        """
        self._require_started()
        numbers, stored = await asyncio.to_thread(read_header, folder)
        return numbers * self._kept_in(stored).itemsize

    async def load(self, name: str, folder: Path, digests: Mapping[str, str] | None = None) -> int:
        """Make the adapter in `folder` answer to `name`, while others generate.

        Args:
            name: of the adapter in this engine.
            folder: where its files are.
            digests: the SHA-256 that each file was verified with; None takes the files as they are.

        Returns:
            How many bytes of memory it takes.

        Raises:
            EngineError: the files don't fit this base model, changed since they were verified, hold what this
                engine doesn't apply, or the name is taken by another adapter.
        """
        self._require_started()
        with self._busy.working():
            files, adapter = await self._loop.run_in_executor(self._loader, self._read, folder, digests)
        loaded = self._adapters.setdefault(name, _LoadedAdapter(adapter, files))
        if loaded.files != files:
            raise EngineError(f"'{name}' is loaded already, from other files: unload it first.")
        return loaded.adapter.bytes

    async def unload(self, name: str) -> None:
        """Forget an adapter; nothing happens when it is not loaded.

        Raises:
            EngineError: a generation still uses it.
        """
        loaded = self._adapters.get(name)
        if loaded is None:
            return
        if loaded.users:
            raise EngineError(f"'{name}' is still used by {loaded.users} generations: let them finish first.")
        del self._adapters[name]
        self._submit(lambda batch: batch.forget(loaded.adapter))

    async def generate(self, generation: Generation) -> AsyncIterator[Chunk]:
        """The answer, piece by piece; closing the iterator early cancels the generation and frees its place.

        An answer that would go beyond the context ends there, with `length`.

        Raises:
            Unsupported: the form of the answer can't be read, or is too large.
            EngineError: unknown adapter, an empty or too long prompt, a token that the model doesn't have, an
                engine that is not started, was stopped or broke.
        """
        fault = self._fault()
        if fault:
            raise fault
        matcher = None
        if generation.sampling.structure:
            make = partial(self._structures.matcher, generation.sampling.structure, generation.tenant)
            matcher = await asyncio.wrap_future(self._compiler.submit(generation.tenant, make))
            fault = self._fault()  # it may have been closed in the meantime
            if fault:
                raise fault
        loaded = self._loaded(generation.adapter)
        sequence = started(
            generation,
            loaded.adapter if loaded else None,
            self._tokenizer,
            vocabulary=self._vocabulary,
            context_length=self.context_length,
        )
        sequence.matcher = matcher
        queue: asyncio.Queue[Chunk | EngineError] = asyncio.Queue()
        self._queues[sequence] = queue
        if loaded:
            loaded.users += 1
        self._submit(lambda batch: batch.add(sequence))
        try:
            while True:
                item = await queue.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            # Only a flag: the next step sees it and frees the place.
            sequence.cancelled = True
            del self._queues[sequence]
            if loaded:
                loaded.users -= 1

    async def inspect(self, prompt: tuple[int, ...], adapter: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next token's log-probabilities (vocabulary) and the mean state (hidden) of a prompt.

        See `Batch.inspect`. Requests go on afterwards: nobody else's steps are taken during it.

        Raises:
            EngineError: as `generate`.
        """
        fault = self._fault()
        if fault:
            raise fault
        loaded = self._loaded(adapter)
        found: Future[tuple[torch.Tensor, torch.Tensor]] = Future()

        def inspect(batch: Batch) -> None:
            try:
                found.set_result(batch.inspect(prompt, loaded.adapter if loaded else None))
            except EngineError as error:
                found.set_exception(error)
            except Exception as error:  # the requests of others must not fail with it
                logger.exception("A prompt could not be inspected.")
                found.set_exception(EngineError(f"The engine failed: {error}"))

        if loaded:
            loaded.users += 1
        try:
            self._submit(inspect)
            return await asyncio.wrap_future(found)
        finally:
            if loaded:
                loaded.users -= 1

    async def healthy(self) -> bool:
        """Whether steps are taken: the thread is alive, its last step went well and none hangs.

        What waits for a step that hangs is failed here, since nobody else would.
        """
        fault = self._fault()
        if fault:
            self._fail(list(self._queues), fault)
        return fault is None and self._sound

    @property
    def batches(self) -> bool:
        """Whether this base model's answers are computed together, once it is started."""
        self._require_started()
        return self._decoder.batches

    def status(self) -> EngineStatus:
        """What it was doing after its last step, and which adapters are loaded now."""
        s = self._status
        sizes = {name: loaded.adapter.bytes for name, loaded in self._adapters.items()}
        waiting = max(0, len(self._queues) - s.running)
        return replace(
            s,
            waiting=waiting,
            adapters=sizes,
            busy_seconds=self._busy.seconds,
            device="cpu" if self._device == "cpu" else "gpu",
        )

    def _require_started(self) -> None:
        if self._thread is None:
            raise EngineError("The engine is not running.")

    def _fault(self) -> EngineError | None:
        """Return why no step will be taken, or None."""
        if self._thread is None or not self._thread.is_alive():
            return EngineError("The engine is not running.")
        began = self._step_began
        if began is not None and time.monotonic() - began > HANG_SECONDS:
            return EngineError(f"A step of the engine takes more than {HANG_SECONDS:.0f} seconds.")
        return None

    def _loaded(self, name: str | None) -> _LoadedAdapter | None:
        if name is None:
            return None
        if name not in self._adapters:
            raise EngineError(f"There is no adapter '{name}' in the engine.")
        return self._adapters[name]

    def _read(self, folder: Path, digests: Mapping[str, str] | None) -> tuple[Files, Adapter]:
        pairs = read_adapter(folder, self._decoder.shapes, digests)
        found = [(folder / name).stat() for name in ADAPTER_FILES]
        files = tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)
        stored = common_dtype(matrix.dtype for pair in pairs.values() for matrix in (pair.lora_A, pair.lora_B))
        return files, self._decoder.adapter(pairs, self._kept_in(stored))

    def _kept_in(self, stored: torch.dtype) -> torch.dtype:
        if self._adapter_dtype:
            narrow = self._adapter_dtype is torch.bfloat16
        else:
            narrow = stored is torch.bfloat16 and self._decoder.reads_bfloat16
        return torch.bfloat16 if narrow else self._decoder.dtype

    def _submit(self, command: Callable[[Batch], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # The worker's thread, from here on.

    def _work(self, ready: "Future[None]") -> None:
        try:
            torch.set_num_threads(self._threads)
            decoder, tokenizer, ends = load_decoder(
                self._base_folder, self._kv_tokens, self._device, self._dtype, self._share
            )
            batch = Batch(decoder, TokenBytes(tokenizer), ends, self._max_batch, self._prefill_chunk)
        except EngineError as error:
            ready.set_exception(error)
            return
        except Exception as error:
            logger.exception("The engine could not start.")
            ready.set_exception(EngineError(f"The engine can't start: {error}"))
            return
        self._decoder, self._tokenizer = decoder, tokenizer
        self._structures = Structures(tokenizer, decoder.vocabulary, ends, self._form_threads)
        self._vocabulary = decoder.vocabulary
        self.context_length = decoder.context_length
        self._status = EngineStatus(kv_capacity=decoder.kv_tokens)
        ready.set_result(None)
        try:
            with self._busy.working():  # but for the waits for something to do
                self._take_steps(batch)
        finally:  # whatever ended it, nobody waits for answers that won't come
            self._post(self._fail_all, EngineError("The engine was stopped."))
            batch.clear()

    def _take_steps(self, batch: Batch) -> None:
        while self._take_commands(batch):
            self._step_began = time.monotonic()
            try:
                if not self._sound:
                    batch.probe()
                    self._sound = True
                    logger.info("The engine's steps succeed again.")
                made = batch.step()
            except Exception as error:
                lost = batch.shed() if is_out_of_memory(error) else None
                if lost:
                    logger.error("There was no memory for a step of %s: %s", lost.generation.id, error)
                    text = "The engine has no memory left for this answer: ask for less, or send it again."
                    self._post(self._fail, [lost], EngineBusy(text, 1.0, limited=False))
                else:
                    logger.exception("A step of the engine failed.")
                    self._post(self._fail, batch.clear(), EngineError(f"The engine failed: {error}"))
                self._sound = not batch.idle or self._succeeds(batch)
                continue
            finally:
                self._step_began = None
            self._status = EngineStatus(
                running=len(batch.running),
                kv_tokens=batch.kv_tokens,
                kv_capacity=batch.decoder.kv_tokens,
                preempted=batch.schedule.preempted,
            )
            if made:
                self._post(self._deliver, made)

    def _succeeds(self, batch: Batch) -> bool:
        """Return whether a step succeeds that has nothing of any request, whose own fault it may have been."""
        try:
            batch.probe()
        except Exception:
            logger.exception("The engine's steps fail, whatever is asked; it is tried again every second.")
            return False
        return True

    def _take_commands(self, batch: Batch) -> bool:
        """Run the commands that came, once there is something to do; return whether to go on."""
        with self._wake:
            while not self._commands and batch.idle and self._sound and not self._closing:
                self._wait()
            if not self._sound:
                self._wait(PROBE_SECONDS)
            commands, self._commands = self._commands, []
        for command in commands:
            try:
                command(batch)
            except Exception as error:
                logger.exception("A command of the engine failed.")
                self._post(self._fail, batch.clear(), EngineError(f"The engine failed: {error}"))
        return not self._closing

    def _wait(self, seconds: float | None = None) -> None:
        self._busy.leave()
        self._wake.wait(seconds)
        self._busy.enter()

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop was closed without closing the engine: nobody listens any more
            self._closing = True

    # The event loop's thread again.

    def _deliver(self, made: list[tuple[Sequence, Chunk | EngineError]]) -> None:
        for sequence, item in made:
            if sequence in self._queues:
                self._queues[sequence].put_nowait(item)

    def _fail_all(self, error: EngineError) -> None:
        self._fail(list(self._queues), error)

    def _fail(self, lost: list[Sequence], error: EngineError) -> None:
        for sequence in lost:
            if sequence in self._queues:
                self._queues[sequence].put_nowait(error)

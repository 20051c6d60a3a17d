"""The adapter cache over a real engine and a real registry: what is loaded, what goes, what is never loaded."""

import asyncio
import json
import pickle
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_ops.engines.protocol import Generation, Sampling
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.engines.torch_engine.adapter_files import read_header
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.base_model import read_base_model
from lora_ops.registry import packages
from lora_ops.registry.backends import open_registry
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.serving.adapters import AdapterCache
from lora_ops.serving.cached_adapter import AdapterUnavailable, NoFreeMemory
from lora_ops.serving.tokenization import Tokenization
from tests.conftest import record_base
from tests.serving.conftest import Clone, Served, served

ONE, TWO, THREE = "finance@1", "finance@2", "healthcare@1"


class Told:
    """Counts what the cache says."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def adapter_used(self, name: str, how: str) -> None:
        self.events.append(f"{how} {name}")

    def adapter_loaded(self, name: str, seconds: float) -> None:
        self.events.append(f"loaded {name}")

    def adapter_failed(self, name: str) -> None:
        self.events.append(f"failed {name}")

    def adapter_evicted(self, name: str) -> None:
        self.events.append(f"evicted {name}")


@asynccontextmanager
async def using(cache: AdapterCache, version: Version) -> AsyncIterator[str]:
    use = await cache.use(version)
    try:
        yield await use.begin()
    finally:
        use.end()


class Bench:
    def __init__(self, clone: Clone, engine: TorchEngine, told: Told, **options: Any) -> None:
        self.clone, self.engine, self.told = clone, engine, told
        with clone.registry() as registry:
            self.versions: dict[str, Version] = {name: registry.get(name) for name in (ONE, TWO, THREE)}
        settings = {"budget": 10**9, "drain_seconds": 0.2, **options}
        self.cache = AdapterCache(engine, self._verify, read_base_model(clone.base), observer=told, **settings)  # type: ignore[arg-type]

    def _verify(self, reference: str) -> Path:
        with closing(open_registry(self.clone.root)) as registry:
            return packages.verified_path(registry, reference)

    async def use(self, *names: str) -> None:
        for name in names:
            (await self.cache.use(self.versions[name])).end()

    def size(self, *names: str) -> int:
        """Bytes of memory."""
        held = [read_header(self._verify(name)) for name in names]
        return sum(numbers * dtype.itemsize for numbers, dtype in held)

    @property
    def loaded(self) -> set[str]:
        return set(self.engine.status().adapters)


Make = Callable[..., Any]


@pytest.fixture
def bench(clone: Clone, engine: TorchEngine) -> Make:
    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[Bench]:
        await engine.start()
        yield Bench(clone, engine, Told(), **options)
        await engine.close()

    return make


def in_loop(test: Callable[[Make], Any]) -> Callable[[Make], None]:
    def run(bench: Make) -> None:
        asyncio.run(test(bench))

    run.__name__ = test.__name__
    return run


@in_loop
async def test_an_adapter_is_loaded_once_however_many_wait_for_it(bench: Make) -> None:
    async with bench() as b:
        await asyncio.gather(*(b.use(ONE) for _ in range(20)))
        assert b.told.events.count(f"loaded {ONE}") == 1
        await b.use(ONE)
        assert b.told.events[-1] == f"hit {ONE}"


@in_loop
async def test_another_content_under_its_name_is_loaded(bench: Make) -> None:
    """After a restore a number is given again, and the adapter that had it went on answering."""
    async with bench() as b:
        await b.use(ONE)
        summary = b.versions[ONE].summary._replace(content_digest="f" * 64)
        again = replace(b.versions[ONE], summary=summary)
        async with using(b.cache, b.versions[ONE]):
            with pytest.raises(AdapterUnavailable, match="finance@1 still has 1 requests"):
                await b.cache.use(again)
        (await b.cache.use(again)).end()
        (await b.cache.use(again)).end()
        assert b.told.events.count(f"loaded {ONE}") == 2
        assert b.loaded == {ONE}


@in_loop
async def test_a_use_whose_content_was_replaced_ends_at_once(bench: Make) -> None:
    """It waited for its own end until `drain_seconds` had passed, with a slot."""
    async with bench(drain_seconds=60) as b:
        b.cache._budget = max(b.size(ONE), b.size(TWO))
        use = await b.cache.use(b.versions[ONE])
        await b.use(TWO)  # takes the room
        summary = b.versions[ONE].summary._replace(content_digest="f" * 64)
        (await b.cache.use(replace(b.versions[ONE], summary=summary))).end()
        with pytest.raises(AdapterUnavailable, match="finance@1 was replaced while this request waited"):
            await asyncio.wait_for(use.begin(), 10)
        use.end()
        assert b.loaded == {ONE}


@in_loop
async def test_a_copy_swapped_after_its_check_is_not_loaded(bench: Make) -> None:
    """The engine read the folder once more, and took whatever stood there by then."""
    async with bench() as b:
        honest, other = b._verify, b._verify(TWO)

        def swapped(reference: str) -> Path:
            folder = honest(reference)
            for name in ADAPTER_FILES:
                shutil.copyfile(other / name, folder / name)
            return folder

        b.cache._verify = swapped
        with pytest.raises(AdapterUnavailable, match="was changed after it was verified"):
            await b.use(ONE)
        assert not b.loaded
        b.cache._verify = honest
        b.cache._entry(ONE).retry_at = 0.0
        await b.use(ONE)
        assert b.loaded == {ONE}


@in_loop
async def test_the_one_that_was_used_longest_ago_makes_room(bench: Make) -> None:
    async with bench() as b:
        b.cache._budget = b.size(ONE, THREE)  # TWO is the smallest
        await b.use(ONE, TWO, ONE, THREE)
        assert b.loaded == {ONE, THREE}
        assert f"evicted {TWO}" in b.told.events


@in_loop
async def test_an_adapter_in_use_is_never_evicted(bench: Make) -> None:
    async with bench() as b, AsyncExitStack() as stack:
        b.cache._budget = b.size(ONE)
        await stack.enter_async_context(using(b.cache, b.versions[ONE]))
        with pytest.raises(AdapterUnavailable, match="is in use"):
            await b.use(THREE)
        assert b.loaded == {ONE}


@in_loop
async def test_room_is_waited_for_and_taken_when_a_generation_ends(bench: Make) -> None:
    async with bench(drain_seconds=5) as b:
        b.cache._budget = b.size(ONE)
        async with using(b.cache, b.versions[ONE]):
            waiting = asyncio.create_task(b.use(THREE))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await waiting
        assert b.loaded == {THREE}


@in_loop
async def test_an_adapter_larger_than_all_memory_is_refused(bench: Make) -> None:
    async with bench(budget=100) as b:
        with pytest.raises(AdapterUnavailable, match="serving.adapter_memory is 100"):
            await b.use(ONE)


@in_loop
async def test_memory_that_warm_adapters_fill_is_not_waited_for(bench: Make) -> None:
    async with bench(drain_seconds=3600) as b:
        b.cache._budget = b.size(ONE)
        await b.cache.keep_warm([b.versions[ONE]], must_fit=True)
        async with asyncio.timeout(30):
            with pytest.raises(AdapterUnavailable, match="of which warm adapters keep"):
                await b.use(THREE)
        assert b.loaded == {ONE}


def test_a_gateway_whose_warm_adapters_do_not_fit_does_not_start(clone: Clone, engine: TorchEngine) -> None:
    settings = clone.settings(adapter_memory=10_000, warm=(ONE, TWO, THREE))
    told = "serving.warm does not fit.*adapter_memory is 10,000"
    with pytest.raises(LoraOpsError, match=told), served(clone.root, settings, engine):
        pass


@in_loop
async def test_what_counts_is_the_memory_that_the_engine_takes_not_the_size_of_the_files(bench: Make) -> None:
    async with bench() as b:
        folder = b.clone.root / "half"
        shutil.copytree(b._verify(ONE), folder)
        half = await b.engine.size(folder)
        weights = folder / "adapter_model.safetensors"
        # In float16, which no CPU computes in: it is kept in float32.
        save_file({key: tensor.half() for key, tensor in load_file(weights).items()}, weights)
        assert await b.engine.size(folder) == 2 * half == await b.engine.load("half", folder)
        assert weights.stat().st_size < 2 * half


@in_loop
async def test_an_unload_that_fails_frees_the_room_and_is_not_blamed_on_the_next(bench: Make) -> None:
    async with bench() as b:
        b.cache._budget = b.size(ONE)
        await b.use(ONE)
        # The engine refuses: somebody uses the adapter past the cache.
        stream = b.engine.generate(Generation("g", (5, 6), ONE, Sampling(max_tokens=1500)))
        await anext(stream)
        await b.use(THREE)
        assert f"failed {THREE}" not in b.told.events
        assert b.cache.bytes <= b.cache._budget
        await stream.aclose()


@in_loop
async def test_an_error_that_nobody_foresaw_backs_off_and_is_logged_whole(bench: Make) -> None:
    async with bench() as b:
        real = b.cache._verify

        def broken(reference: str) -> Path:
            raise RuntimeError("no such device")

        b.cache._verify = broken
        with pytest.raises(AdapterUnavailable, match="no such device"):
            await b.use(ONE)
        b.cache._verify = real
        with pytest.raises(AdapterUnavailable, match="tried again in"):
            await b.use(ONE)
        assert b.cache.bytes == 0


@in_loop
async def test_a_warm_adapter_stays_and_a_busy_one_goes_last(bench: Make) -> None:
    async with bench(warm_recent=1) as b:
        b.cache._budget = b.size(ONE, THREE)
        await b.cache.keep_warm([b.versions[ONE]])
        await b.use(TWO, THREE)
        assert b.loaded == {ONE, THREE}
        b.cache._budget = b.size(ONE, TWO, THREE)
        await b.use(TWO, TWO, TWO, THREE)
        await b.cache.keep_warm([])
        assert [entry.name for entry in b.cache.entries() if entry.pin == "recent"] == [TWO]
        b.cache._budget = b.size(ONE, THREE)
        await b.use(THREE, ONE)
        assert TWO in b.loaded


@in_loop
async def test_unload_waits_and_refuses_nobody(bench: Make) -> None:
    """Whoever came while an unload waited had to wait for it, up to 30 s, and then for a load."""
    async with bench(drain_seconds=5) as b:
        first = await b.cache.use(b.versions[ONE])
        await first.begin()
        unloading = asyncio.create_task(b.cache.unload(ONE))
        await asyncio.sleep(0.02)
        second = await asyncio.wait_for(b.cache.use(b.versions[ONE]), 1)
        first.end()
        first.end()  # once is enough
        await asyncio.sleep(0.02)
        assert ONE in b.loaded and not unloading.done()
        second.end()
        assert await unloading and ONE not in b.loaded
        await b.use(ONE)
        assert b.told.events.count(f"loaded {ONE}") == 2


@in_loop
async def test_use_that_waits_makes_room_and_loads_again(bench: Make) -> None:
    """One tenant's queue kept its adapters in memory, and another tenant got 503."""
    async with bench() as b:
        b.cache._budget = b.size(ONE) + max(b.size(TWO), b.size(THREE))
        await b.use(ONE)
        waits = await b.cache.use(b.versions[TWO])
        answers = await b.cache.use(b.versions[ONE])
        await answers.begin()
        await b.use(THREE)
        assert b.loaded == {ONE, THREE}
        assert await waits.begin() == TWO
        assert b.loaded == {ONE, TWO}
        with pytest.raises(AdapterUnavailable, match="is in use"):
            await b.use(THREE)
        waits.end()
        await b.use(THREE)  # no back-off: it was not its own fault
        answers.end()
        assert all(not entry.wanted for entry in b.cache.entries())


@in_loop
async def test_lack_of_room_fails_all_that_wait_at_once(bench: Make) -> None:
    """Each of them waited for room in turn, also for a client that had gone."""
    async with bench(drain_seconds=0.2) as b:
        b.cache._budget = max(b.size(ONE), b.size(THREE))
        answers = await b.cache.use(b.versions[ONE])
        await answers.begin()
        gone = [asyncio.create_task(b.cache.use(b.versions[THREE])) for _ in range(20)]
        await asyncio.sleep(0.05)
        for one in gone[:10]:
            one.cancel()
        async with asyncio.timeout(1.5):
            found = await asyncio.gather(*gone, return_exceptions=True)
        assert {type(one) for one in found} == {asyncio.CancelledError, AdapterUnavailable}
        answers.end()
        await b.use(THREE)


@in_loop
async def test_a_load_for_nobody_makes_room_for_the_next(bench: Make) -> None:
    async with bench(drain_seconds=20) as b:
        b.cache._budget = max(b.size(ONE), b.size(THREE))
        load, go_on = b.engine.load, asyncio.Event()

        async def slow(name: str, folder: Path, digests: dict[str, str]) -> int:
            await go_on.wait()
            return await load(name, folder, digests)

        b.engine.load = slow  # type: ignore[method-assign]
        gone = asyncio.create_task(b.cache.use(b.versions[ONE]))
        await asyncio.sleep(0.05)
        waits = asyncio.create_task(b.use(THREE))
        await asyncio.sleep(0.05)
        gone.cancel()
        go_on.set()
        await asyncio.wait_for(waits, 10)


@in_loop
async def test_room_is_made_by_what_nobody_waits_for(bench: Make) -> None:
    async with bench() as b:
        b.cache._budget = b.size(ONE) + max(b.size(TWO), b.size(THREE))
        waits = await b.cache.use(b.versions[ONE])
        await b.use(TWO)
        await b.use(THREE)
        assert b.loaded == {ONE, THREE}
        waits.end()
        waits.end()


@in_loop
async def test_background_use_takes_free_memory_alone(bench: Make) -> None:
    async with bench() as b:
        small, large = sorted((TWO, THREE), key=b.size)
        b.cache._budget = b.size(ONE, small)
        await b.use(ONE)
        with pytest.raises(NoFreeMemory, match=f"{b.size(small):,} of serving.adapter_memory are free"):
            await b.cache.use_free_memory(b.versions[large], lambda: None)
        assert b.loaded == {ONE} and b.told.events == [f"miss {ONE}", f"loaded {ONE}"]
        use = await b.cache.use_free_memory(b.versions[small], lambda: None)
        assert await use.begin() == small and b.loaded == {ONE, small}
        assert b.told.events[2:] == [f"loaded {small}"]  # neither a hit nor a miss
        use.end()
        use.end()
        b.cache._budget = b.size(ONE, large)
        await b.use(large)  # what clients use stays, though it is older
        assert b.loaded == {ONE, large}


@in_loop
async def test_background_answer_ends_where_a_client_needs_its_memory(bench: Make) -> None:
    async with bench() as b:
        b.cache._budget = b.size(ONE) + b.size(THREE) // 2
        ended = asyncio.Event()
        use = await b.cache.use_free_memory(b.versions[THREE], ended.set)

        async def answer() -> None:
            name = await use.begin()
            chunks = b.engine.generate(Generation("g", (5, 6), name, Sampling(1500, ignore_eos=True)))
            async for _ in chunks:
                if ended.is_set():
                    break
            await chunks.aclose()  # type: ignore[attr-defined]
            use.end()

        answering = asyncio.create_task(answer())
        while not b.engine.status().running:
            await asyncio.sleep(0.01)
        await b.use(ONE)
        await answering
        assert ended.is_set() and b.loaded == {ONE}
        with pytest.raises(NoFreeMemory):
            await use.begin()


@in_loop
async def test_unload_ends_answers_in_the_background(bench: Make) -> None:
    async with bench() as b:
        use = await b.cache.use_free_memory(b.versions[ONE], lambda: use.end())
        assert await b.cache.unload(ONE) and b.loaded == set()


@in_loop
async def test_client_loads_what_the_background_may_not(bench: Make) -> None:
    """Both wait for the same load, which finds no free memory: the client's next one makes room."""
    async with bench() as b:
        b.cache._budget = b.size(ONE)
        await b.use(THREE)
        shadow = asyncio.create_task(b.cache.use_free_memory(b.versions[ONE], lambda: None))
        await asyncio.sleep(0)
        await b.use(ONE)
        with pytest.raises(NoFreeMemory):
            await shadow
        assert b.loaded == {ONE}


@in_loop
async def test_unloading_gives_up_on_an_answer_that_does_not_end(bench: Make) -> None:
    async with bench(drain_seconds=0.05) as b:
        async with using(b.cache, b.versions[ONE]):
            with pytest.raises(AdapterUnavailable, match="it stays loaded"):
                await b.cache.unload(ONE)
        await b.use(ONE)
        assert b.told.events[-1] == f"hit {ONE}"


@in_loop
async def test_a_failed_load_is_tried_again_later_and_hurts_nobody_else(bench: Make) -> None:
    async with bench() as b:
        hidden = b.clone.root / "away"
        shutil.move(b.clone.root / ".registry/files", hidden)
        with pytest.raises(AdapterUnavailable, match="has lost"):
            await b.use(ONE)
        shutil.move(hidden, b.clone.root / ".registry/files")
        with pytest.raises(AdapterUnavailable, match="has lost") as error:
            await b.use(ONE)
        assert (error.value.retry_after, error.value.damaged) == (None, True)
        assert b.told.events.count(f"failed {ONE}") == 1
        await b.use(TWO)
        await asyncio.sleep(1.05)
        await b.use(ONE)
        assert b.loaded == {ONE, TWO}


@in_loop
async def test_a_waiter_that_goes_away_does_not_stop_the_load(bench: Make) -> None:
    async with bench() as b:
        impatient, patient = asyncio.create_task(b.use(ONE)), asyncio.create_task(b.use(ONE))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert b.told.events.count(f"loaded {ONE}") == 1
        assert all(entry.users == 0 for entry in b.cache.entries())


@in_loop
async def test_thrashing_in_a_small_memory_stays_within_it_and_answers_everybody(bench: Make) -> None:
    async with bench(drain_seconds=20) as b:
        b.cache._budget = b.size(ONE, THREE)
        most = 0

        async def ask(name: str) -> None:
            nonlocal most
            async with using(b.cache, b.versions[name]) as adapter:
                most = max(most, b.cache.bytes)
                generation = Generation("g", (5, 6), adapter, Sampling(max_tokens=2))
                assert [c.tokens async for c in b.engine.generate(generation)]

        await asyncio.gather(*(ask(name) for _ in range(8) for name in (ONE, TWO, THREE)))
        assert most <= b.cache._budget


# What must never be loaded: each of these changes real files of the registry or of its verified copy.


def change_weights(root: Path) -> None:
    for path in (root / ".registry/files").rglob("*"):
        if path.is_file() and path.read_bytes()[8:9] == b"{" and b"lora_A" in path.read_bytes()[:3000]:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)


def forge_signature(root: Path) -> None:
    with closing(Registry(root / ".registry")) as registry:
        mine, other = registry.get(ONE), registry.get(TWO)
        assert mine.summary.signature and other.summary.signature
        registry.db.rows(
            "UPDATE versions SET signature = ? WHERE tenant = 'finance' AND number = 1",
            (other.summary.signature,),
        )


def strip_signature(root: Path) -> None:
    with closing(Registry(root / ".registry")) as registry:
        registry.db.rows("UPDATE versions SET signature = NULL")


def verified(root: Path) -> Path:
    with closing(open_registry(root)) as registry:
        return packages.verified_path(registry, ONE)


class Boom:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/lora-ops-pickle-was-run"),))


def distrust_the_key(root: Path) -> None:
    text = (root / "params.yaml").read_text()
    signing = f"  path: .registry\n  signing: {{trusted_keys: [{sha256_text('another key')}]}}\n"
    (root / "params.yaml").write_text(text.replace("  path: .registry\n", signing))


@pytest.mark.parametrize(
    ("poison", "code", "said"),
    [
        (change_weights, "adapter_damaged", "was changed on disk"),
        (forge_signature, "registry_damaged", "the signature of finance@1 was changed"),
        (strip_signature, "registry_damaged", "the signature of finance@1 was changed"),
        (distrust_the_key, "registry_damaged", "audit.head"),
    ],
)
def test_a_poisoned_package_is_refused_and_nothing_of_it_is_run(
    clone: Clone, engine: TorchEngine, poison: Callable[[Path], None], code: str, said: str
) -> None:
    poison(clone.root)
    with served(clone.root, clone.settings(), engine) as gateway:
        body = {"model": ONE, "prompt": "AIRBNB", "max_tokens": 2}
        answer = gateway.http().post("/v1/completions", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 503 and said in error["message"]
        # Trying again changes nothing, and a client that is told to would go on for ever.
        assert error["code"] == code and "retry-after" not in answer.headers
        assert engine.status().adapters == {}
        assert gateway.http().post("/v1/completions", json={**body, "model": "base"}).status_code == 200
    assert not Path("/tmp/lora-ops-pickle-was-run").exists()


# What is laid out again: the verified copy is damaged, and the kept files are whole.


def slip_in_a_pickle(root: Path) -> None:
    (verified(root) / "adapter_model.bin").write_bytes(pickle.dumps(Boom()))


def weights_that_are_a_pickle(root: Path) -> None:
    (verified(root) / "adapter_model.safetensors").write_bytes(pickle.dumps(Boom()))


def change_the_verified_copy(root: Path) -> None:
    path = verified(root) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 999}))


def remove_the_weights(root: Path) -> None:
    (verified(root) / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [slip_in_a_pickle, weights_that_are_a_pickle, change_the_verified_copy, remove_the_weights],
)
def test_a_damaged_verified_copy_is_laid_out_again(
    clone: Clone, engine: TorchEngine, damage: Callable[[Path], None]
) -> None:
    before = {path.name: path.read_bytes() for path in verified(clone.root).iterdir()}
    damage(clone.root)
    with served(clone.root, clone.settings(), engine) as gateway:
        body = {"model": ONE, "prompt": "AIRBNB", "max_tokens": 2}
        assert gateway.http().post("/v1/completions", json=body).status_code == 200
    copy = clone.root / ".registry/verified" / ONE
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert not Path("/tmp/lora-ops-pickle-was-run").exists()


def test_an_adapter_of_another_base_model_is_refused_with_both_names(clone: Clone, engine: TorchEngine) -> None:
    record = clone.base / "base_model.json"
    changed = {**json.loads(record.read_text()), "id": "newer-base", "sha256": sha256_text("other weights")}
    record.write_text(json.dumps(changed))
    with served(clone.root, clone.settings(), engine) as gateway:
        answer = gateway.http().post("/v1/completions", json={"model": ONE, "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 503
        text = answer.json()["error"]["message"]
        assert "trained on tiny-random" in text and "base model here is newer-base" in text
        assert "retry-after" not in answer.headers


def test_an_adapter_of_another_tokenizer_is_refused(clone: Clone, engine: TorchEngine) -> None:
    """Its weights are the same, and nobody noticed that it read another prompt than in training."""
    path = clone.base / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", "<|im_end|> "))
    with pytest.raises(LoraOpsError, match="chat_template.jinja was changed since the base model was made"):
        Tokenization(clone.base)
    record_base(clone.base)
    with served(clone.root, clone.settings(), engine) as gateway:
        answer = gateway.http().post("/v1/completions", json={"model": ONE, "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 503 and "retry-after" not in answer.headers
        text = answer.json()["error"]["message"]
        assert "trained with another chat_template.jinja of its base model" in text


# The calls that vLLM's users know.


def test_versions_are_loaded_and_unloaded_by_name(gateway: Served) -> None:
    http = gateway.http()
    assert "added successfully" in http.post("/v1/load_lora_adapter", json={"lora_name": TWO}).text
    assert gateway.metric("lora_ops_adapter_loaded", adapter=TWO) == 1
    assert http.post("/v1/load_lora_adapter", json={"lora_name": TWO}).status_code == 200
    assert "removed successfully" in http.post("/v1/unload_lora_adapter", json={"lora_name": TWO}).text
    assert gateway.metric("lora_ops_adapter_loaded", adapter=TWO) == 0
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": TWO}).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"lora_name": TWO, "lora_path": "/etc"}, 400),
        ({"lora_name": "../../../etc/passwd"}, 404),
        ({"lora_name": "finance@1/../../x"}, 404),
        ({"lora_name": "/tmp"}, 404),
        ({"lora_name": "finance@99"}, 404),
        ({"lora_name": "base"}, 400),
        ({}, 400),
    ],
)
def test_nothing_but_a_registered_version_can_be_loaded(gateway: Served, body: dict, status: int) -> None:
    answer = gateway.http().post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert gateway.engine.status().adapters == {}


@in_loop
async def test_soon_begins_loads_that_nobody_waits_for(bench: Make) -> None:
    async with bench() as b:
        await b.cache.keep_warm([b.versions[ONE]], soon=[b.versions[TWO]])
        assert ONE in b.loaded and b.cache.unready(b.versions[TWO]) == "loading"
        await b.use(TWO)
        assert b.cache.unready(b.versions[TWO]) is None
        await b.cache.keep_warm([b.versions[ONE]], soon=[b.versions[TWO]])
        assert {entry.name: entry.pin for entry in b.cache.entries()} == {ONE: "warm", TWO: "recent"}
        assert b.told.events.count(f"loaded {TWO}") == 1


@in_loop
async def test_soon_fails_without_failing_the_start(bench: Make) -> None:
    """A canary that doesn't fit kept the gateway from starting."""
    async with bench(budget=1) as b:
        await b.cache.keep_warm([], soon=[b.versions[TWO]], must_fit=True)
        with pytest.raises(AdapterUnavailable, match="serving.adapter_memory is 1"):
            await b.use(TWO)
        assert b.cache.unready(b.versions[TWO]) == "failed"


@in_loop
async def test_soon_evicts_nobody_a_second_time(bench: Make) -> None:
    """With room for one, the adapter in use and the one in waiting took it from each other each second."""
    async with bench() as made:
        room = max(made.size(ONE), made.size(TWO))
    async with bench(budget=room) as b:
        for _ in range(5):
            await b.cache.keep_warm([], soon=[b.versions[TWO]])
            while any(entry.loading and not entry.loading.done() for entry in b.cache.entries()):
                await asyncio.sleep(0.01)
            await b.use(ONE)
        assert b.told.events.count(f"loaded {TWO}") == 1
        assert b.told.events.count(f"loaded {ONE}") == 1

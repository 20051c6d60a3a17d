"""The forward pass in C computes what the one in torch says, and the same bits in any company."""

import ctypes
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.engines.torch_engine import llama_decoder, native_forward
from lora_ops.engines.torch_engine.decoder import BLOCK, blocks_for
from lora_ops.engines.torch_engine.lora import LoraPair
from lora_ops.engines.torch_engine.native_forward import FLAGS, NativeForward
from lora_ops.engines.torch_engine.projections import AdapterTable, Module
from lora_ops.engines.torch_engine.step import Segment, Span, Step
from lora_ops.engines.torch_engine.torch_forward import TorchForward
from lora_ops.engines.torch_engine.weights import Layer, Linear, Shape, Weights

try:
    LIBRARY = native_forward.build()
except (OSError, subprocess.SubprocessError) as error:
    pytest.skip(f"no C code here: {error}", allow_module_level=True)

POSITIONS = 128
BLOCKS = 4 * blocks_for(40)
VOCABULARY = 45
LAYERS = 2
PROJECTIONS = ("qkv", "out", "gate_up", "down")
KINDS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    heads: int
    group: int
    dim: int
    hidden: int
    inner: int
    biased: bool
    normed: bool

    @property
    def outputs(self) -> dict[str, int]:
        """Of each linear layer."""
        wide = self.heads * self.group * self.dim
        narrow = self.heads * self.dim
        names = ("q", "k", "v", "o", "gate", "up", "down")
        return dict(
            zip(names, (wide, narrow, narrow, self.hidden, self.inner, self.inner, self.hidden), strict=True)
        )

    @property
    def inputs(self) -> dict[str, int]:
        """Of each linear layer."""
        return dict.fromkeys(self.outputs, self.hidden) | {
            "o": self.heads * self.group * self.dim,
            "down": self.inner,
        }


SIZES = st.builds(
    Sizes,
    heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 9]),
    dim=st.sampled_from([2, 12, 16, 40, 64]),
    hidden=st.sampled_from([5, 16, 100, 200]),
    inner=st.sampled_from([3, 32, 130]),
    biased=st.booleans(),
    normed=st.booleans(),
)
SEEDS = st.integers(0, 2**32 - 1)
# Of each sequence: tokens in the cache, rows in this pass, which adapter (0: none), whether it is scored.
SEQUENCES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 9), st.integers(0, 3), st.booleans()), min_size=1, max_size=4
)
RANKS = st.dictionaries(st.sampled_from([*sum(KINDS, ()), "head"]), st.integers(1, 9), min_size=1)


class Random:
    """Random numbers in the order in which they are asked for."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        """Of about the size that keeps a model's numbers near one."""
        return torch.randn(shape, generator=self._generator) / math.sqrt(shape[-1])

    def tokens(self, count: int) -> list[int]:
        """Any."""
        return torch.randint(VOCABULARY, (count,), generator=self._generator).tolist()

    def order(self, count: int) -> list[int]:
        """The numbers below `count`."""
        return torch.randperm(count, generator=self._generator).tolist()


def make_weights(sizes: Sizes, random: Random) -> Weights:
    """A model."""

    def linear(*names: str) -> Linear:
        width = sum(sizes.outputs[name] for name in names)
        return Linear(random(width, sizes.inputs[names[0]]), random(width) if sizes.biased else None)

    layers = tuple(
        Layer(
            1 + random(sizes.hidden),
            linear("q", "k", "v"),
            (1 + random(sizes.dim), 1 + random(sizes.dim)) if sizes.normed else None,
            linear("o"),
            1 + random(sizes.hidden),
            linear("gate", "up"),
            linear("down"),
        )
        for _ in range(LAYERS)
    )
    angles = random(POSITIONS, sizes.dim) * 10
    return Weights(
        Shape(sizes.heads * sizes.group, sizes.heads, sizes.dim, 1e-5),
        random(VOCABULARY, sizes.hidden),
        angles.cos(),
        angles.sin(),
        layers,
        1 + random(sizes.hidden),
        Linear(random(VOCABULARY, sizes.hidden)),
    )


def make_adapter(sizes: Sizes, ranks: dict[str, int], dtype: torch.dtype, random: Random) -> AdapterTable:
    """The same modules of each layer with these ranks."""
    modules, pairs = [], {}
    for layer in range(LAYERS):
        for names in KINDS:
            offset, parts = 0, []
            for name in names:
                outputs, inputs = sizes.outputs[name], sizes.inputs[name]
                parts.append(Module(f"{layer}.{name}", offset, outputs, inputs))
                offset += outputs
                if name in ranks:
                    pairs[f"{layer}.{name}"] = LoraPair(
                        random(ranks[name], inputs), random(outputs, ranks[name]), 0.7
                    )
            modules.append(parts)
    modules.append([Module("head", 0, VOCABULARY, sizes.hidden)])
    if "head" in ranks:
        pairs["head"] = LoraPair(random(ranks["head"], sizes.hidden), random(VOCABULARY, ranks["head"]), 2.0)
    return AdapterTable(pairs, modules, "cpu", dtype)


@dataclass(frozen=True)
class Rows:
    """The rows of one sequence in one pass."""

    tokens: list[int]
    blocks: list[int]
    before: int
    adapter: AdapterTable | None
    scored: bool


def make_step(sequences: Sequence[Rows]) -> Step:
    """All of them in one pass."""
    tokens: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    spans, segments, chosen, head = [], [], [], []
    for rows in sequences:
        count = len(rows.tokens)
        spans.append(Span(len(tokens), count, rows.blocks, rows.before + count))
        segments.append(Segment(len(tokens), count, rows.adapter))
        tokens += rows.tokens
        where = range(rows.before, rows.before + count)
        positions += where
        slot_mapping += [rows.blocks[position // BLOCK] * BLOCK + position % BLOCK for position in where]
        if rows.scored:
            head.append(Segment(len(chosen), 1, rows.adapter))
            chosen.append(len(tokens) - 1)
    adapted = any(rows.adapter for rows in sequences)
    return Step(
        tokens, positions, slot_mapping, spans, segments if adapted else [], chosen, head if adapted else []
    )


def draw(
    random: Random, drawn: Sequence[tuple[int, int, int, bool]], adapters: Sequence[AdapterTable]
) -> Iterator[Rows]:
    """Sequences whose blocks lie anywhere in the cache."""
    blocks = random.order(BLOCKS)
    for before, count, which, scored in drawn:
        adapter = adapters[which % (len(adapters) + 1) - 1] if which % (len(adapters) + 1) else None
        own, blocks = blocks[: blocks_for(before + count)], blocks[blocks_for(before + count) :]
        yield Rows(random.tokens(count), own, before, adapter, scored)


Case = tuple[Weights, torch.Tensor, list[Rows]]


def make_case(
    seed: int,
    sizes: Sizes,
    drawn: Sequence[tuple[int, int, int, bool]],
    ranks: Sequence[dict[str, int]],
    bf16: bool,
) -> Case:
    """A model, what its cache holds, and the sequences of a pass."""
    random = Random(seed)
    weights = make_weights(sizes, random)
    cache = weights.make_cache(BLOCKS * BLOCK)
    cache.copy_(random(*cache.shape))
    dtype = torch.bfloat16 if bf16 else torch.float32
    adapters = [make_adapter(sizes, one, dtype, random) for one in ranks]
    return weights, cache, list(draw(random, drawn, adapters))


CASES = st.builds(
    make_case,
    seed=SEEDS,
    sizes=SIZES,
    drawn=SEQUENCES,
    ranks=st.lists(RANKS, max_size=3),
    bf16=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_scores_and_cache_are_those_of_the_torch_pass(
    case: Case,
) -> None:
    weights, cache, sequences = case
    step, ours, theirs = make_step(sequences), cache.clone(), cache.clone()
    got, states = NativeForward(weights, ours, LIBRARY).with_states(step)
    wanted, their_states = TorchForward(weights, theirs).with_states(step)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(states, their_states, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(1, 3))
def test_a_sequence_gets_the_same_bits_alone_and_in_any_batch_on_any_number_of_threads(
    case: Case,
    threads: int,
) -> None:
    weights, cache, sequences = case
    together = NativeForward(weights, mixed := cache.clone(), LIBRARY)(make_step(sequences))
    alone = NativeForward(weights, single := cache.clone(), LIBRARY)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scores = [alone(make_step([rows])) for rows in sequences]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat(scores))
    assert torch.equal(mixed, single)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_a_prompt_gets_the_same_bits_in_chunks_of_any_size(
    case: Case,
) -> None:
    weights, cache, sequences = case
    whole = sequences[0]
    at_once = NativeForward(weights, first := cache.clone(), LIBRARY)(make_step([whole]))
    piecewise = NativeForward(weights, second := cache.clone(), LIBRARY)
    for number, token in enumerate(whole.tokens):
        last = number == len(whole.tokens) - 1
        one = Rows([token], whole.blocks, whole.before + number, whole.adapter, whole.scored and last)
        scores = piecewise(make_step([one]))
    assert torch.equal(at_once, scores)
    assert torch.equal(first, second)


def in_bf16(weights: Weights) -> Weights:
    """The same model with its matrices rounded."""
    layers = tuple(
        replace(layer, **{name: getattr(layer, name).to(torch.bfloat16) for name in PROJECTIONS})
        for layer in weights.layers
    )
    embedding, head = weights.embedding.bfloat16(), weights.head.to(torch.bfloat16)
    return replace(weights, embedding=embedding, layers=layers, head=head)


def pass_of(weights: Weights, case: Case, library: ctypes.CDLL = LIBRARY) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and the cache that a pass over the case's sequences leaves."""
    _, cache, sequences = case
    logits = NativeForward(weights, after := cache.clone(), library)(make_step(sequences))
    return logits, after


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_bf16_weights_give_the_bits_of_widened_ones(case: Case) -> None:
    narrow = in_bf16(case[0])
    assert all(map(torch.equal, pass_of(narrow, case), pass_of(narrow.widened(), case)))


def cpu_flags() -> str:
    """What this CPU can do, as Linux names it."""
    cpu = Path("/proc/cpuinfo")
    return cpu.read_text() if platform.machine() == "x86_64" and cpu.is_file() else ""


OTHER_CPUS = {
    "8 lanes": ("-DLANES=8",),
    "16 lanes": ("-DLANES=16",),
    "AVX-512": ("-march=skylake-avx512",),
    "AVX2": ("-march=haswell",),
    "no AVX": ("-march=x86-64",),
}
NEEDED = {"AVX-512": "avx512f", "AVX2": "avx2", "no AVX": "sse2"}


@pytest.mark.parametrize("rows", [3, 26, 40])
@pytest.mark.parametrize("name", OTHER_CPUS)
def test_another_cpu_computes_the_same(name: str, rows: int) -> None:
    """One block of rows, a few, and so many that a panel of bf16 is widened for all of them."""
    if NEEDED.get(name, "") not in cpu_flags():
        pytest.skip(f"{name} is not of this CPU")
    sizes = Sizes(2, 3, 40, 101, 130, biased=True, normed=True)
    drawn, ranks = [(20, 1, 1, True), (3, 1, 0, True), (0, rows - 2, 2, True)], [{"q": 3, "head": 2}, {"up": 9}]
    case = make_case(0, sizes, drawn, ranks, bf16=True)
    # Lanes that this CPU lacks take gcc two minutes where other tests run.
    other = native_forward.build(flags=(*FLAGS, *OTHER_CPUS[name], "-Wno-psabi"), seconds=900)
    narrow = in_bf16(case[0])
    got = pass_of(narrow, case, other)
    assert all(map(torch.equal, got, pass_of(narrow.widened(), case, other)))
    torch.testing.assert_close(got, pass_of(narrow, case), rtol=1e-4, atol=1e-5)


def test_bf16_weights_take_half_of_the_memory() -> None:
    weights, cache, _ = make_case(0, Sizes(1, 2, 16, 64, 64, biased=False, normed=False), [], [], False)
    wide, narrow = (NativeForward(one, cache, LIBRARY).weight_bytes for one in (weights, in_bf16(weights)))
    assert wide == 2 * narrow


def test_without_a_compiler_bf16_weights_are_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    case = make_case(0, Sizes(1, 2, 16, 32, 32, biased=True, normed=False), [(5, 3, 0, True)], [], False)
    narrow = in_bf16(case[0])
    got = llama_decoder.make_forward(narrow, case[1].clone())(make_step(case[2]))
    torch.testing.assert_close(got, pass_of(narrow, case)[0], rtol=1e-4, atol=1e-5)


def test_attention_survives_scores_that_overflow_an_exponential() -> None:
    sizes = Sizes(1, 2, 16, 32, 32, biased=False, normed=False)
    weights, cache, sequences = make_case(0, sizes, [(5, 1, 0, True)], [], False)
    cache *= 1000
    got = NativeForward(weights, cache.clone(), LIBRARY)(make_step(sequences))
    assert got.isfinite().all()
    torch.testing.assert_close(got, TorchForward(weights, cache)(make_step(sequences)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dim", [40, 64])
def test_attention_over_8000_positions_is_precise(dim: int) -> None:
    """Each sum was one chain of float32: 1.9e-5 off float64, where torch is 5e-6 off."""
    random, positions = Random(0), 8000
    angles = random(positions, dim) * 10
    weights = make_weights(Sizes(3, 3, dim, 100, 32, biased=False, normed=False), random)
    weights = replace(weights, cosine=angles.cos(), sine=angles.sin())
    cache = weights.make_cache(positions)
    cache.copy_(random(*cache.shape) * math.sqrt(dim) * 3)
    rows = Rows([7], random.order(blocks_for(positions)), positions - 1, None, True)
    step = make_step([rows])
    wanted = TorchForward(in_float64(weights), cache.double())(step)
    got = NativeForward(weights, cache, LIBRARY)(step)
    assert (got - wanted).abs().max() < 5e-6 * wanted.abs().max()


def in_float64(weights: Weights) -> Weights:
    """The same model in float64."""
    layers = tuple(
        replace(
            layer,
            before_attention=layer.before_attention.double(),
            before_mlp=layer.before_mlp.double(),
            **{name: getattr(layer, name).to(torch.float64) for name in PROJECTIONS},
        )
        for layer in weights.layers
    )
    return replace(
        weights,
        embedding=weights.embedding.double(),
        cosine=weights.cosine.double(),
        sine=weights.sine.double(),
        layers=layers,
        norm=weights.norm.double(),
        head=weights.head.to(torch.float64),
    )


def test_what_each_part_took_is_counted() -> None:
    sizes = Sizes(1, 1, 16, 16, 32, biased=False, normed=False)
    weights, cache, sequences = make_case(0, sizes, [(5, 1, 0, True)], [], False)
    forward = NativeForward(weights, cache, LIBRARY)
    assert sum(forward.seconds.values()) == 0
    forward(make_step(sequences))
    assert min(forward.seconds.values()) > 0


def make_any() -> tuple[Weights, torch.Tensor]:
    """A tiny model."""
    weights, cache, _ = make_case(0, Sizes(1, 1, 2, 16, 3, biased=False, normed=False), [], [], False)
    return weights, cache


def test_without_a_compiler_the_torch_pass_runs_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    assert isinstance(llama_decoder.make_forward(*make_any()), TorchForward)
    assert "no-such-compiler" in caplog.text


def test_a_compiler_may_be_named_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "env cc -g")
    assert isinstance(llama_decoder.make_forward(*make_any()), NativeForward)


def test_without_a_home_the_torch_pass_runs_unless_another_place_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert isinstance(llama_decoder.make_forward(*make_any()), NativeForward)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert isinstance(llama_decoder.make_forward(*make_any()), TorchForward)
    assert "set XDG_CACHE_HOME" in caplog.text


def test_a_compiler_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert isinstance(llama_decoder.make_forward(*make_any()), NativeForward)
    monkeypatch.setenv("CC", "false")
    assert isinstance(llama_decoder.make_forward(*make_any()), TorchForward)
    assert len(list((tmp_path / "lora_ops").iterdir())) == 1


@pytest.mark.parametrize("part", sorted(path.name for path in native_forward.KERNELS.iterdir()))
def test_build_compiles_again_when_a_part_changes(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Path(shutil.copytree(native_forward.KERNELS, tmp_path / "kernels"))
    monkeypatch.setattr(native_forward, "KERNELS", kernels)
    before = native_forward._fingerprint("cc", FLAGS)
    (kernels / part).write_text((kernels / part).read_text() + "/* changed */\n")
    assert native_forward._fingerprint("cc", FLAGS) != before


def test_build_keeps_its_code_from_other_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_forward.build(flags=("-O0", *FLAGS[1:]))
    made = next((tmp_path / "lora_ops").glob("*.so"))
    assert [path.stat().st_mode & 0o777 for path in (made.parent, made)] == [0o700, 0o700]


def test_build_takes_no_code_from_a_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lora_ops").mkdir()
    (tmp_path / "lora_ops").chmod(0o770)
    with pytest.raises(OSError, match="chmod go-w"):
        native_forward.build()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")
@pytest.mark.parametrize("planted", ["folder", "library"])
def test_build_takes_no_code_of_another_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ("-O0", *FLAGS[1:])
    native_forward.build(flags=flags)
    made = next((tmp_path / "lora_ops").glob("*.so"))
    made.unlink()  # it is mapped into this process
    made.write_bytes(b"planted")
    os.chown(made.parent if planted == "folder" else made, 65534, 65534)
    if planted == "folder":
        with pytest.raises(OSError, match="belong to this account"):
            native_forward.build(flags=flags)
    else:
        native_forward.build(flags=flags)
        assert made.stat().st_uid == 0 and made.read_bytes() != b"planted"

"""The C kernels compute what the torch kernels say."""

import math
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.serving.torch_engine import kernels
from lora_ops.serving.torch_engine.adapter_files import LoraPair
from lora_ops.serving.torch_engine.kernels import NativeKernels, Segment, Shape, Span, Step, TorchKernels
from lora_ops.serving.torch_engine.projections import AdapterTable, Module

try:
    LIBRARY = kernels.build()
except (OSError, subprocess.SubprocessError) as error:
    pytest.skip(f"no C kernels here: {error}", allow_module_level=True)

CAPACITY = 64
SHAPES = st.builds(
    Shape,
    heads=st.sampled_from([2, 4, 6]),
    kv_heads=st.sampled_from([1, 2]),
    dim=st.sampled_from([2, 12, 16, 40, 64, 128]),
    eps=st.just(1e-5),
)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 70)


def both(shape: Shape) -> tuple[TorchKernels, NativeKernels]:
    return TorchKernels(shape), NativeKernels(shape, LIBRARY)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


@settings(max_examples=50, deadline=None)
@given(SEEDS, SIZES, SIZES, st.booleans())
def test_add_rms_norm(seed: int, rows: int, width: int, first: bool) -> None:
    torch_kernels, native = both(Shape(1, 1, 2, 1e-5))
    x, weight = random(seed, rows, width), random(seed + 1, width)
    delta = None if first else random(seed + 2, rows, width)
    ours = x.clone()
    close(native.add_rms_norm(ours, delta, weight), torch_kernels.add_rms_norm(x, delta, weight))
    assert torch.equal(ours, x)  # both have added delta to it


@settings(max_examples=50, deadline=None)
@given(SEEDS, SIZES, SIZES, st.sampled_from([0.1, 1.0, 30.0, 1e4]))
def test_silu_mul(seed: int, rows: int, width: int, scale: float) -> None:
    torch_kernels, native = both(Shape(1, 1, 2, 1e-5))
    gate_up = random(seed, rows, 2 * width) * scale
    close(native.silu_mul(gate_up), torch_kernels.silu_mul(gate_up))


def make_step(lengths: list[int], segments: list[Segment]) -> Step:
    """One row for each length, the sequences one after the other in the cache."""
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    spans = [Span(index, 1, start, n) for index, (start, n) in enumerate(zip(starts, lengths, strict=True))]
    positions = torch.tensor([n - 1 for n in lengths])
    return Step(positions, torch.tensor(starts) + positions, spans, segments)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SHAPES, st.lists(st.integers(1, 20), min_size=1, max_size=3), st.booleans())
def test_rope_store_and_attend(seed: int, shape: Shape, lengths: list[int], with_norms: bool) -> None:
    step = make_step(lengths, [])
    qkv = random(seed, len(lengths), shape.width)
    angles = random(seed + 1, CAPACITY, shape.dim)
    cache = random(seed + 2, 2, shape.kv_heads, CAPACITY, shape.dim)
    norms = (random(seed + 3, shape.dim), random(seed + 4, shape.dim)) if with_norms else None
    results = []
    for kernel in both(shape):
        mine, kept = qkv.clone(), cache.clone()
        kernel.rope_store(mine, angles.cos(), angles.sin(), kept, norms, step)
        results.append((mine, kept, kernel.attend(mine, kept, step)))
    for wanted, got in zip(*results, strict=True):
        close(got, wanted)


def test_attention_survives_scores_that_overflow_an_exponential() -> None:
    shape = Shape(2, 1, 16, 1e-5)
    step = make_step([5], [])
    qkv, cache = random(0, 1, shape.width) * 100, random(1, 2, 1, CAPACITY, 16) * 100
    torch_kernels, native = both(shape)
    close(native.attend(qkv, cache, step), torch_kernels.attend(qkv, cache, step))


MODULES = (Module("a", 0, 30, 20), Module("b", 30, 600, 20), Module("c", 630, 7, 20))


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(1, 5),
            st.dictionaries(st.sampled_from("abc"), st.integers(1, 19), min_size=1),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_add_lora_with_other_ranks_and_modules_in_each_segment(
    seed: int, segments: list[tuple[int, int, dict[str, int]]], dtype: torch.dtype
) -> None:
    made, row = [], 0
    for gap, rows, ranks in segments:
        pairs = {
            module.name: LoraPair(
                random(seed + row, ranks[module.name], 20).to(dtype),
                random(seed + row + 1, module.outputs, ranks[module.name]).to(dtype),
            )
            for module in MODULES
            if module.name in ranks
        }
        row += gap  # rows without an adapter
        made.append(Segment(row, rows, AdapterTable(pairs, [MODULES], "cpu")))
        row += rows
    step = Step(torch.tensor([]), torch.tensor([]), [], made)
    x, out = random(seed + 100, row, 20), random(seed + 101, row, 637)
    torch_kernels, native = both(Shape(1, 1, 2, 1e-5))
    ours, theirs = out.clone(), out.clone()
    native.add_lora(x, ours, 0, step)
    torch_kernels.add_lora(x, theirs, 0, step)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3 * math.sqrt(20))


def test_without_a_compiler_the_torch_kernels_run_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    made = kernels.make_kernels(Shape(1, 1, 2, 1e-5), "cpu", torch.float32)
    assert type(made) is TorchKernels
    assert "no-such-compiler" in caplog.text


def test_without_a_home_the_torch_kernels_run_unless_another_place_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert type(kernels.make_kernels(Shape(1, 1, 2, 1e-5), "cpu", torch.float32)) is NativeKernels
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert type(kernels.make_kernels(Shape(1, 1, 2, 1e-5), "cpu", torch.float32)) is TorchKernels
    assert "set XDG_CACHE_HOME" in caplog.text


def test_a_compiler_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert type(kernels.make_kernels(Shape(1, 1, 2, 1e-5), "cpu", torch.float32)) is NativeKernels
    monkeypatch.setenv("CC", "false")
    made = kernels.make_kernels(Shape(1, 1, 2, 1e-5), "cpu", torch.float32)
    assert type(made) is TorchKernels
    assert len(list((tmp_path / "lora_ops").iterdir())) == 1

"""The same forward pass in C (kernels/), in float32 on a CPU: compiled on first use, for this very CPU."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy
import torch

from lora_ops.engines.torch_engine.decoder import BLOCK
from lora_ops.engines.torch_engine.memory import allocate
from lora_ops.engines.torch_engine.step import Segment, Step
from lora_ops.engines.torch_engine.weights import Linear, Weights

KERNELS = Path(__file__).with_name("kernels")
COMPILE_SECONDS = 120.0
FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"),
    f"-DBLOCK={BLOCK}",
)
# Of `seconds` in kernels/forward.c.
PARTS = ("embed", "norm", "qkv", "rope", "attend", "out", "gate_up", "silu", "down", "head")

PIECE = 8  # rows

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


class _Linear(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("weight", "bias")),
        *((name, INTEGER) for name in ("inputs", "outputs", "bf16")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("before_attention", "q_norm", "k_norm", "before_mlp")),
        *((name, _Linear) for name in ("qkv", "out", "gate_up", "down")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("embedding", "cosine", "sine", "norm", "cache", "layer")),
        ("head", _Linear),
        *((name, INTEGER) for name in ("layers", "hidden", "heads", "kv_heads", "dim", "capacity")),
        ("eps", ctypes.c_float),
    )


class _Segments(ctypes.Structure):
    _fields_ = (("count", INTEGER), ("of", POINTER))


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("tokens", "positions", "slot_mapping", "chosen", "blocks", "span")),
        ("segments", _Segments),
        ("head_segments", _Segments),
        *((name, INTEGER) for name in ("rows", "choices", "spans", "rank", "threads")),
        *((name, POINTER) for name in ("scratch", "scores", "states")),
    )


class NativeForward:
    """The pass in C.

    Args:
        weights: on the CPU, matrices in float32 or bfloat16; all are copied.
        cache: as `Weights.make_cache` makes it.
        library: of `build`.

    Attributes:
        weight_bytes: memory that embedding and linear layers take.
        seconds: what each of PARTS has taken in all passes.
    """

    def __init__(self, weights: Weights, cache: torch.Tensor, library: ctypes.CDLL) -> None:
        self._c = library
        self._kept: list[Any] = [cache]  # what the structures below point to
        self._panels = _Panels(library, weights)
        self.weight_bytes = self._panels.bytes + weights.embedding.nbytes
        layers = (_Layer * len(weights.layers))()
        for to, layer in zip(layers, weights.layers, strict=True):
            # Copies: a view into the file of weights would keep all of that in memory, beside the panels.
            to.before_attention = self._keep(layer.before_attention.clone())
            to.before_mlp = self._keep(layer.before_mlp.clone())
            if layer.norms is not None:
                to.q_norm, to.k_norm = (self._keep(norm.clone()) for norm in layer.norms)
            to.qkv, to.out, to.gate_up, to.down = map(
                self._panels.pack, (layer.qkv, layer.out, layer.gate_up, layer.down)
            )
        s = weights.shape
        self._model = _Model(
            *map(self._keep, (weights.embedding.clone(), weights.cosine, weights.sine)),
            *map(self._keep, (weights.norm.clone(), cache)),
            ctypes.cast(layers, POINTER),
            self._panels.pack(weights.head),
            *(len(layers), weights.embedding.shape[1], s.heads, s.kv_heads, s.dim, cache.shape[3]),
            s.eps,
        )
        self._kept.append(layers)
        self._vocabulary = len(weights.head.weight)
        self._width = library.panel_width(self._vocabulary)
        self._scratch = torch.empty(0)
        self._seconds = numpy.zeros(len(PARTS))

    @property
    def seconds(self) -> dict[str, float]:
        """What each part of a pass has taken, all passes together."""
        return dict(zip(PARTS, self._seconds.tolist(), strict=True))

    def __call__(self, step: Step) -> torch.Tensor:
        """Scores of the token after each chosen row: (chosen, vocabulary)."""
        return self._run(step, None)

    def with_states(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """The same scores, and what the head reads of each chosen row: (chosen, hidden)."""
        states = torch.empty(len(step.chosen), self._model.hidden)
        return self._run(step, states), states

    def _run(self, step: Step, states: torch.Tensor | None) -> torch.Tensor:
        integers = [
            numpy.array(values, dtype=numpy.int64)
            for values in (step.tokens, step.positions, step.slot_mapping, step.chosen)
        ]
        tables = numpy.array([block for s in step.spans for block in s.blocks], dtype=numpy.int64)
        firsts = accumulate((len(s.blocks) for s in step.spans), initial=0)
        spans = numpy.array(
            [(s.first, s.rows, table, s.length) for s, table in zip(step.spans, firsts, strict=False)],
            dtype=numpy.int64,
        )
        segments, head_segments = _table(step.segments), _table(step.head_segments)
        scores = torch.empty(len(step.chosen), self._width)
        given = _Step(
            *(array.ctypes.data for array in (*integers, tables, spans)),
            _Segments(len(segments), segments.ctypes.data),
            _Segments(len(head_segments), head_segments.ctypes.data),
            *(len(step.tokens), len(step.chosen), len(step.spans)),
            max((s.adapter.rank for s in (*step.segments, *step.head_segments) if s.adapter), default=0),
            torch.get_num_threads(),
            None,
            scores.data_ptr(),
            states.data_ptr() if states is not None else None,
        )
        model = ctypes.byref(self._model)
        size = self._c.scratch_size(model, ctypes.byref(given))
        if size > len(self._scratch):
            self._scratch = torch.empty(size)
        given.scratch = self._scratch.data_ptr()
        self._c.forward(model, ctypes.byref(given), self._seconds.ctypes.data)
        return scores[:, : self._vocabulary]

    def _keep(self, tensor: torch.Tensor) -> int:
        whole = tensor.contiguous()
        self._kept.append(whole)
        return whole.data_ptr()


class _Panels:
    """All weights of linear layers, behind each other as kernels/linear.h reads them."""

    def __init__(self, library: ctypes.CDLL, weights: Weights) -> None:
        self._c = library
        linears = [weights.head]
        for layer in weights.layers:
            linears += [layer.qkv, layer.out, layer.gate_up, layer.down]
        self.bytes = sum(map(self._bytes, linears))
        self._memory = self._free = allocate(self.bytes)

    def pack(self, linear: Linear) -> _Linear:
        """A copy of this one."""
        weight = linear.weight.contiguous()
        outputs, inputs = weight.shape
        width, bf16 = self._c.panel_width(outputs), weight.dtype is torch.bfloat16
        to = self._cut(width * inputs * weight.itemsize)
        pack = self._c.pack_bf16 if bf16 else self._c.pack
        pack(weight.data_ptr(), to.data_ptr(), outputs, inputs)
        if linear.bias is None:
            return _Linear(to.data_ptr(), None, inputs, outputs, bf16)
        bias = self._cut(width * torch.float32.itemsize).view(torch.float32)
        bias[:outputs] = linear.bias
        return _Linear(to.data_ptr(), bias.data_ptr(), inputs, outputs, bf16)

    def _bytes(self, linear: Linear) -> int:
        outputs, inputs = linear.weight.shape
        a_row = inputs * linear.weight.itemsize + (linear.bias is not None) * torch.float32.itemsize
        return int(self._c.panel_width(outputs) * a_row)

    def _cut(self, size: int) -> torch.Tensor:
        cut, self._free = self._free[:size], self._free[size:]
        return cut


def _table(segments: Sequence[Segment]) -> numpy.ndarray:
    """In pieces of a few rows: threads take them in turn, and one busy adapter is work for all of them."""
    pieces = [
        (s.adapter.address if s.adapter else 0, first, min(PIECE, s.first + s.rows - first))
        for s in segments
        for first in range(s.first, s.first + s.rows, PIECE)
    ]
    return numpy.array(pieces, dtype=numpy.int64)


def build(
    compiler: str | None = None, flags: Sequence[str] = FLAGS, seconds: float = COMPILE_SECONDS
) -> ctypes.CDLL:
    """kernels/ as a library, compiled on first use for this very kind of CPU and kept in the user's cache.

    Raises:
        OSError: there is no compiler, or no place to keep the library to which only this account can write.
        subprocess.SubprocessError: the compiler failed, or took more than so many seconds.
    """
    compiler = (
        compiler or os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    )
    if compiler is None:
        raise OSError("no C compiler was found (install gcc, or set CC)")
    cache = _cache()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _only_ours(cache):
        raise OSError(
            f"{cache} must belong to this account, and no other may write to it: it holds code that runs here "
            f"(`chmod go-w {cache}`, or set XDG_CACHE_HOME)"
        )
    made = cache / f"forward-{_fingerprint(compiler, flags)}.so"
    if not (made.is_file() and _only_ours(made)):
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            target = Path(folder) / "forward.so"
            command = [*shlex.split(compiler), *flags, "-o", str(target), str(KERNELS / "forward.c"), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                raise subprocess.SubprocessError(f"`{compiler}` failed: {last[0]}")
            target.chmod(0o700)
            target.replace(made)
    # CDLL gives the interpreter's lock up during a call: the event loop and loads go on during a pass.
    library = ctypes.CDLL(str(made))
    model, step = ctypes.POINTER(_Model), ctypes.POINTER(_Step)
    signatures: dict[str, tuple[Any, Sequence[Any]]] = {
        "panel_width": (INTEGER, [INTEGER]),
        "pack": (None, [POINTER, POINTER, INTEGER, INTEGER]),
        "pack_bf16": (None, [POINTER, POINTER, INTEGER, INTEGER]),
        "scratch_size": (INTEGER, [model, step]),
        "forward": (None, [model, step, POINTER]),
    }
    for name, (result, arguments) in signatures.items():
        function: Callable[..., Any] = getattr(library, name)
        function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]
    return library


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "lora_ops"
    except RuntimeError as error:  # an account without a home, as in some containers
        raise OSError("there is no home folder to keep them in (set XDG_CACHE_HOME)") from error


def _only_ours(path: Path) -> bool:
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _fingerprint(compiler: str, flags: Sequence[str]) -> str:
    cpu = Path("/proc/cpuinfo")
    features = (
        [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features", "model name"))][
            :2
        ]
        if cpu.is_file()
        else [platform.processor()]
    )
    # All of kernels/: forward.c includes the rest.
    sources = [path.read_text() for path in sorted(KERNELS.glob("*.[ch]"))]
    text = "\n".join([*sources, compiler, *flags, platform.machine(), *features])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

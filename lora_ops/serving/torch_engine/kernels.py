"""The parts of a decoding step that are not a matrix product with the base model's weights, in two forms.

`TorchKernels` says what each one computes and runs on any device; `NativeKernels` is the same in C (kernels.c),
for float32 on a CPU with a C compiler, where dozens of small torch calls a layer cost more than they compute.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

from lora_ops.serving.torch_engine.projections import AdapterTable

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


@dataclass(frozen=True)
class Span:
    """Rows of a step that belong to one sequence, and its part of the KV cache.

    Attributes:
        first: its first row.
        rows: how many; they are the sequence's last tokens.
        start: the cache's place of the sequence's first token.
        length: how many tokens it has, these rows included.
    """

    first: int
    rows: int
    start: int
    length: int


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows with the same adapter."""

    first: int
    rows: int
    adapter: AdapterTable


class Step:
    """What is the same for all layers of one step; made once, read by every layer.

    Attributes:
        positions, places: (rows), int64; of each row in its sequence, and in the KV cache.
        spans: one for each sequence; those of one row first.
        segments: none for rows without an adapter.
    """

    def __init__(
        self,
        positions: torch.Tensor,
        places: torch.Tensor,
        spans: Sequence[Span],
        segments: Sequence[Segment],
    ) -> None:
        rows = max((segment.first + segment.rows for segment in segments), default=0)
        self.positions, self.places = positions, places
        self.spans, self.segments = spans, segments
        self.singles = sum(span.rows == 1 for span in spans)
        self.rank = max((segment.adapter.rank for segment in segments), default=0)
        self.scratch = torch.empty(rows * self.rank, dtype=torch.float32)
        # The same as arrays that C reads; their addresses are asked for here, once and not in every layer.
        self._arrays = numpy.array(
            [[span.start for span in spans], [span.length for span in spans]], dtype=numpy.int64
        )
        self._segments = numpy.array(
            [[s.adapter.address, s.first, s.rows] for s in segments], dtype=numpy.int64
        ).T.copy()
        self.starts, self.lengths = _addresses(self._arrays)
        self.tables, self.segment_starts, self.segment_rows = _addresses(self._segments) or (0, 0, 0)

    @functools.cached_property
    def masks(self) -> dict[Span, torch.Tensor]:
        """Which tokens each row of a longer span may see: (rows, length), bool."""
        device = self.positions.device
        return {
            span: torch.ones(span.rows, span.length, dtype=torch.bool, device=device).tril(
                span.length - span.rows
            )
            for span in self.spans
            if span.rows > 1
        }


def _addresses(rows: numpy.ndarray) -> list[int]:
    return [row.ctypes.data for row in rows]


@dataclass(frozen=True)
class Shape:
    """Of a layer's attention. `eps` is that of the norms."""

    heads: int
    kv_heads: int
    dim: int
    eps: float

    @property
    def width(self) -> int:
        """Of queries, keys and values beside each other."""
        return (self.heads + 2 * self.kv_heads) * self.dim


class TorchKernels:
    """Every kernel in torch: right on any device, slow for many adapters."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """x += delta; the RMS norm (Zhang and Sennrich, 2019, arXiv:1910.07467) of x, times weight."""
        if delta is not None:
            x += delta
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.shape.eps)
        return weight * scaled.to(x.dtype)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up; gate and up lie beside each other."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rope_store(
        self,
        qkv: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        cache: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        step: Step,
    ) -> None:
        """Turn queries and keys to their positions (Su et al., 2021, arXiv:2104.09864); store keys and values.

        Args:
            qkv: (rows, width), changed in place.
            cosine, sine: (positions, dim).
            cache: (2, kv_heads, capacity, dim) of this layer.
            norms: weights of the RMS norms of query and key heads, where the model has them.
        """
        s = self.shape
        heads = qkv.view(len(qkv), -1, s.dim)
        turned = heads[:, : s.heads + s.kv_heads]
        if norms is not None:
            for part, weight in ((turned[:, : s.heads], norms[0]), (turned[:, s.heads :], norms[1])):
                part.copy_(self.add_rms_norm(part, None, weight))
        cos, sin = cosine[step.positions].unsqueeze(1), sine[step.positions].unsqueeze(1)
        first, second = turned.chunk(2, dim=-1)
        turned.copy_(turned * cos + torch.cat((-second, first), dim=-1) * sin)
        keys, values = heads[:, s.heads : s.heads + s.kv_heads], heads[:, s.heads + s.kv_heads :]
        cache[0].index_copy_(1, step.places, keys.transpose(0, 1))
        cache[1].index_copy_(1, step.places, values.transpose(0, 1))

    def attend(self, qkv: torch.Tensor, cache: torch.Tensor, step: Step) -> torch.Tensor:
        """Causal attention of each row over its own sequence: (rows, heads * dim)."""
        out = qkv.new_empty(len(qkv), self.shape.heads * self.shape.dim)
        for span in step.spans:
            self._attend_span(qkv, cache, step, span, out)
        return out

    def _attend_span(
        self, qkv: torch.Tensor, cache: torch.Tensor, step: Step, span: Span, out: torch.Tensor
    ) -> None:
        s = self.shape
        rows = slice(span.first, span.first + span.rows)
        queries = qkv[rows, : s.heads * s.dim].view(span.rows, s.heads, s.dim).transpose(0, 1)
        keys, values = cache[:, :, span.start : span.start + span.length]
        result = F.scaled_dot_product_attention(
            queries[None],
            keys[None],
            values[None],
            attn_mask=step.masks.get(span),
            enable_gqa=True,
        )
        out[rows] = result[0].transpose(0, 1).reshape(span.rows, -1)

    def add_lora(self, x: torch.Tensor, out: torch.Tensor, which: int, step: Step) -> None:
        """Add to each segment's rows of `out` what its adapter adds to projection number `which` of `x`."""
        for segment in step.segments:
            projection = segment.adapter.projections[which]
            if projection is None:
                continue
            rows = slice(segment.first, segment.first + segment.rows)
            z = x[rows] @ projection.a.T.to(x.dtype)
            for part in projection.parts:
                out[rows, part.offset : part.offset + part.b.shape[1]] += z[
                    :, part.r0 : part.r0 + len(part.b)
                ] @ part.b.to(x.dtype)


class NativeKernels(TorchKernels):
    """The same in C; every tensor contiguous, on the CPU and float32; adapters may be bfloat16."""

    def __init__(self, shape: Shape, library: ctypes.PyDLL) -> None:
        super().__init__(shape)
        self._c = library

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """As `TorchKernels.add_rms_norm`."""
        out = torch.empty_like(x)
        self._c.add_rms_norm(
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            x.shape[0],
            x.shape[1],
            self.shape.eps,
        )
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """As `TorchKernels.silu_mul`."""
        rows, width = gate_up.shape
        out = gate_up.new_empty(rows, width // 2)
        self._c.silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width // 2)
        return out

    def rope_store(
        self,
        qkv: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        cache: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        step: Step,
    ) -> None:
        """As `TorchKernels.rope_store`."""
        s = self.shape
        self._c.rope_store(
            qkv.data_ptr(),
            cosine.data_ptr(),
            sine.data_ptr(),
            step.positions.data_ptr(),
            step.places.data_ptr(),
            cache[0].data_ptr(),
            cache[1].data_ptr(),
            None if norms is None else norms[0].data_ptr(),
            None if norms is None else norms[1].data_ptr(),
            len(qkv),
            s.heads,
            s.kv_heads,
            s.dim,
            cache.shape[2],
            s.eps,
        )

    def attend(self, qkv: torch.Tensor, cache: torch.Tensor, step: Step) -> torch.Tensor:
        """As `TorchKernels.attend`; in C where a row is alone in its sequence.

        Raises:
            MemoryError: there is none for the scores.
        """
        s = self.shape
        out = qkv.new_empty(len(qkv), s.heads * s.dim)
        if step.singles:
            failed = self._c.attend(
                qkv.data_ptr(),
                cache[0].data_ptr(),
                cache[1].data_ptr(),
                step.starts,
                step.lengths,
                out.data_ptr(),
                step.singles,
                s.heads,
                s.kv_heads,
                s.dim,
                cache.shape[2],
                s.dim**-0.5,
            )
            if failed:
                raise MemoryError("No memory for attention's scores.")
        for span in step.spans[step.singles :]:
            self._attend_span(qkv, cache, step, span, out)
        return out

    def add_lora(self, x: torch.Tensor, out: torch.Tensor, which: int, step: Step) -> None:
        """As `TorchKernels.add_lora`."""
        if not step.segments:
            return
        self._c.add_lora(
            x.data_ptr(),
            out.data_ptr(),
            step.scratch.data_ptr(),
            step.tables,
            which,
            step.segment_starts,
            step.segment_rows,
            len(step.segments),
            x.shape[1],
            out.shape[1],
            step.rank,
        )


def make_kernels(shape: Shape, device: str, dtype: torch.dtype) -> TorchKernels:
    """The fastest kernels that run here; says so in the log where they are not the native ones."""
    if device != "cpu" or dtype is not torch.float32:
        return TorchKernels(shape)
    try:
        return NativeKernels(shape, build())
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "The engine runs without its C kernels, several times slower with many adapters: %s", error
        )
        return TorchKernels(shape)


def build(compiler: str | None = None) -> ctypes.PyDLL:
    """kernels.c as a library, compiled on first use for this very kind of CPU and kept in the user's cache.

    Raises:
        OSError: there is no compiler, or no place to keep the library.
        subprocess.SubprocessError: the compiler failed.
    """
    compiler = (
        compiler or os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    )
    if compiler is None:
        raise OSError("no C compiler was found (install gcc, or set CC)")
    cache = _cache()
    made = cache / f"kernels-{_fingerprint(compiler)}.so"
    if not made.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            target = Path(folder) / "kernels.so"
            command = [compiler, *FLAGS, "-o", str(target), str(SOURCE), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["no message"]
                raise subprocess.SubprocessError(f"`{compiler}` failed: {last[0]}")
            target.replace(made)
    # PyDLL keeps the interpreter's lock: a call takes microseconds, and giving the lock up and waiting for it
    # again beside a busy event loop takes longer.
    library = ctypes.PyDLL(str(made))
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.add_rms_norm.argtypes = [pointer] * 4 + [integer] * 2 + [real]
    library.silu_mul.argtypes = [pointer] * 2 + [integer] * 2
    library.rope_store.argtypes = [pointer] * 9 + [integer] * 5 + [real]
    library.attend.argtypes = [pointer] * 6 + [integer] * 5 + [real]
    library.add_lora.argtypes = [pointer] * 4 + [integer] + [pointer] * 2 + [integer] * 4
    for name in ("add_rms_norm", "silu_mul", "rope_store", "add_lora"):
        getattr(library, name).restype = None
    return library


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "lora_ops"
    except RuntimeError as error:  # an account without a home, as in some containers
        raise OSError("there is no home folder to keep them in (set XDG_CACHE_HOME)") from error


def _fingerprint(compiler: str) -> str:
    cpu = Path("/proc/cpuinfo")
    features = (
        [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features", "model name"))][
            :2
        ]
        if cpu.is_file()
        else [platform.processor()]
    )
    text = "\n".join([SOURCE.read_text(), compiler, *FLAGS, platform.machine(), *features])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

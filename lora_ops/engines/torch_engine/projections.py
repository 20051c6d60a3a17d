"""One adapter as the fused decoder applies it: a few matrices for each fused projection of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch

from lora_ops.engines.torch_engine.adapter_files import LoraPair
from lora_ops.engines.torch_engine.memory import allocate

# As kernels/model.h declares them, addresses included.
PART = numpy.dtype(
    [*((name, numpy.int64) for name in ("b", "r0", "r", "offset", "n")), ("scale", numpy.float64)]
)
PROJECTION = numpy.dtype(
    [*((name, numpy.int64) for name in ("a", "rank", "parts", "bf16", "bytes")), ("part", PART, (3,))]
)


@dataclass(frozen=True)
class Module:
    """A linear layer of the base model that is a part of a fused projection.

    Attributes:
        name: in the base model, as PEFT writes it.
        offset, outputs: where its outputs lie among the projection's.
        inputs: how many numbers it reads.
    """

    name: str
    offset: int
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Part:
    """What an adapter adds to one module's outputs: ranks from `r0` on, times b and `scale`, at `offset`.

    Attributes:
        b: (rank, outputs).
    """

    b: torch.Tensor
    r0: int
    offset: int
    scale: float


@dataclass(frozen=True)
class Projection:
    """What an adapter does to one fused projection.

    Attributes:
        a: (sum of the parts' ranks, inputs).
    """

    a: torch.Tensor
    parts: tuple[Part, ...]


class AdapterTable:
    """An adapter's projections, one or None for each fused projection of the model in its order.

    All matrices lie behind each other, in huge pages where the system has them: a step reads every adapter of
    its batch from end to end.

    Attributes:
        bytes: of all matrices.
        rank: the largest sum of ranks in one projection.
        address: of the same as an array that kernels/lora.h reads.
    """

    def __init__(
        self,
        pairs: Mapping[str, LoraPair],
        fused: Sequence[Sequence[Module]],
        device: str,
        dtype: torch.dtype,
    ) -> None:
        adapted = [[module for module in modules if module.name in pairs] for modules in fused]
        count = sum(pairs[m.name].a.numel() + pairs[m.name].b.numel() for modules in adapted for m in modules)
        self.bytes = count * dtype.itemsize
        self._free = allocate(self.bytes, device).view(dtype)
        self.projections = [
            self._projection([(module, pairs[module.name]) for module in modules]) for modules in adapted
        ]
        self.rank = max(len(projection.a) for projection in self.projections if projection is not None)
        self._table = numpy.zeros(len(self.projections), dtype=PROJECTION)
        for entry, projection in zip(self._table, self.projections, strict=True):
            if projection is not None:
                entry["a"], entry["rank"] = projection.a.data_ptr(), len(projection.a)
                entry["parts"], entry["bf16"] = len(projection.parts), dtype is torch.bfloat16
                entry["bytes"] = projection.a.nbytes + sum(part.b.nbytes for part in projection.parts)
                for index, part in enumerate(projection.parts):
                    rank, outputs = part.b.shape
                    entry["part"][index] = (
                        *(part.b.data_ptr(), part.r0, rank, part.offset, outputs),
                        part.scale,
                    )
        self.address = self._table.ctypes.data

    def _projection(self, adapted: Sequence[tuple[Module, LoraPair]]) -> Projection | None:
        if not adapted:
            return None
        a = self._cut(sum(len(pair.a) for _, pair in adapted), adapted[0][0].inputs)
        parts, r0 = [], 0
        for module, pair in adapted:
            rank = len(pair.a)
            a[r0 : r0 + rank] = pair.a
            b = self._cut(rank, module.outputs)
            b[:] = pair.b.T
            parts.append(Part(b, r0, module.offset, pair.scale))
            r0 += rank
        return Projection(a, tuple(parts))

    def _cut(self, rows: int, columns: int) -> torch.Tensor:
        cut, self._free = self._free[: rows * columns], self._free[rows * columns :]
        return cut.view(rows, columns)

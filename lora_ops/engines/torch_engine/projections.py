"""One adapter as `LlamaDecoder` applies it: a few matrices for each fused projection of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch

from lora_ops.engines.torch_engine.lora import LoraPair, Part, Projection
from lora_ops.engines.torch_engine.memory import allocate

# As kernels/model.h declares them, addresses included.
PART = numpy.dtype(
    [*((name, numpy.int64) for name in ("lora_B", "r0", "r", "offset", "n")), ("scaling", numpy.float64)]
)
PROJECTION = numpy.dtype(
    [*((name, numpy.int64) for name in ("lora_A", "rank", "parts", "bf16", "bytes")), ("part", PART, (3,))]
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
        count = sum(
            pairs[m.name].lora_A.numel() + pairs[m.name].lora_B.numel() for modules in adapted for m in modules
        )
        self.bytes = count * dtype.itemsize
        self._free = allocate(self.bytes, device).view(dtype)
        self.projections = [
            self._projection([(module, pairs[module.name]) for module in modules]) for modules in adapted
        ]
        self.rank = max(len(projection.lora_A) for projection in self.projections if projection is not None)
        self._table = numpy.zeros(len(self.projections), dtype=PROJECTION)
        for entry, projection in zip(self._table, self.projections, strict=True):
            if projection is not None:
                entry["lora_A"], entry["rank"] = projection.lora_A.data_ptr(), len(projection.lora_A)
                entry["parts"], entry["bf16"] = len(projection.parts), dtype is torch.bfloat16
                entry["bytes"] = projection.lora_A.nbytes + sum(part.lora_B.nbytes for part in projection.parts)
                for index, part in enumerate(projection.parts):
                    rank, outputs = part.lora_B.shape
                    entry["part"][index] = (
                        *(part.lora_B.data_ptr(), part.r0, rank, part.offset, outputs),
                        part.scaling,
                    )
        self.address = self._table.ctypes.data

    def _projection(self, adapted: Sequence[tuple[Module, LoraPair]]) -> Projection | None:
        if not adapted:
            return None
        a = self._cut(sum(len(pair.lora_A) for _, pair in adapted), adapted[0][0].inputs)
        parts, r0 = [], 0
        for module, pair in adapted:
            rank = len(pair.lora_A)
            a[r0 : r0 + rank] = pair.lora_A
            b = self._cut(rank, module.outputs)
            b[:] = pair.lora_B.T
            parts.append(Part(b, r0, module.offset, pair.scaling))
            r0 += rank
        return Projection(a, tuple(parts))

    def _cut(self, rows: int, columns: int) -> torch.Tensor:
        cut, self._free = self._free[: rows * columns], self._free[rows * columns :]
        return cut.view(rows, columns)

"""One adapter as the fused decoder applies it: a few matrices for each fused projection of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch

from lora_ops.serving.torch_engine.adapter_files import LoraPair
from lora_ops.serving.torch_engine.memory import allocate

# As forward.c reads them, addresses included.
PART = numpy.dtype([(name, numpy.int64) for name in ("b", "r0", "r", "offset", "n")])
PROJECTION = numpy.dtype(
    [*((name, numpy.int64) for name in ("a", "rank", "parts", "half", "bytes")), ("part", PART, (3,))]
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
    """What an adapter adds to one module's outputs: ranks from `r0` on, times b, at `offset`.

    Attributes:
        b: (rank, outputs), scaled.
    """

    b: torch.Tensor
    r0: int
    offset: int


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
        address: of the same as an array that forward.c reads.
    """

    def __init__(self, pairs: Mapping[str, LoraPair], fused: Sequence[Sequence[Module]], device: str) -> None:
        memory = _Memory(sum(pair.a.nbytes + pair.b.nbytes for pair in pairs.values()), device)
        self.projections = [_projection(pairs, modules, memory) for modules in fused]
        made = [projection for projection in self.projections if projection is not None]
        self.bytes = sum(tensor.nbytes for p in made for tensor in (p.a, *(part.b for part in p.parts)))
        self.rank = max(len(projection.a) for projection in made)
        self._table = numpy.zeros(len(self.projections), dtype=PROJECTION)
        for entry, projection in zip(self._table, self.projections, strict=True):
            if projection is not None:
                half = projection.a.dtype is torch.bfloat16
                entry["a"], entry["rank"] = projection.a.data_ptr(), len(projection.a)
                entry["parts"], entry["half"] = len(projection.parts), half
                entry["bytes"] = projection.a.nbytes + sum(part.b.nbytes for part in projection.parts)
                for index, part in enumerate(projection.parts):
                    rank, outputs = part.b.shape
                    entry["part"][index] = (part.b.data_ptr(), part.r0, rank, part.offset, outputs)
        self.address = self._table.ctypes.data


class _Memory:
    """A block from which tensors are cut one after the other."""

    def __init__(self, size: int, device: str) -> None:
        self._free = allocate(size, device)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of the tensor in the block."""
        place, self._free = self._free[: tensor.nbytes], self._free[tensor.nbytes :]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _projection(pairs: Mapping[str, LoraPair], modules: Sequence[Module], memory: _Memory) -> Projection | None:
    adapted = [module for module in modules if module.name in pairs]
    if not adapted:
        return None
    a = memory.keep(torch.cat([pairs[module.name].a for module in adapted]))
    parts, r0 = [], 0
    for module in adapted:
        b = memory.keep(pairs[module.name].b.T)
        parts.append(Part(b, r0, module.offset))
        r0 += len(b)
    return Projection(a, tuple(parts))

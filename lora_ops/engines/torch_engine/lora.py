"""LoRA (Hu et al., 2021, arXiv:2106.09685): y += scaling (x A') B'. kernels/lora.h says the same in C."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of one module, as PEFT's files hold them.

    Attributes:
        lora_A: (rank, inputs).
        lora_B: (outputs, rank).
        scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class Part:
    """What an adapter adds to one module's outputs, which are a part of a projection's.

    Attributes:
        lora_B: (rank, outputs): transposed, unlike that of a `LoraPair`.
        r0: the first of its ranks among the projection's.
        offset: of the module's outputs among the projection's.
    """

    lora_B: torch.Tensor
    r0: int
    offset: int
    scaling: float


@dataclass(frozen=True)
class Projection:
    """What an adapter does to linear layers that read the same input and are computed as one.

    Attributes:
        lora_A: (sum of the parts' ranks, inputs).
    """

    lora_A: torch.Tensor
    parts: tuple[Part, ...]


def add_lora(x: torch.Tensor, y: torch.Tensor, projection: Projection) -> None:
    """Add to y what an adapter's projection makes of x; matrices of a narrower type are widened first.

    Args:
        x: (..., inputs).
        y: (..., outputs), changed in place.
    """
    z = x @ projection.lora_A.T.to(x.dtype)  # (..., sum of ranks)
    for part in projection.parts:
        rank, outputs = part.lora_B.shape
        added = z[..., part.r0 : part.r0 + rank] @ part.lora_B.to(x.dtype)
        y[..., part.offset : part.offset + outputs] += part.scaling * added

"""Long-lived memory: in huge pages where the system has them, and how much of a GPU the KV cache may have."""

import mmap
from dataclasses import dataclass

import torch


def allocate(size: int, device: str = "cpu") -> torch.Tensor:
    """`size` bytes, uint8; on a CPU they are zeros."""
    if device != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    # Private: Linux gives no huge pages to the shared memory that Python's mmap asks for by default.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)


@dataclass(frozen=True)
class GPUShare:
    """How much of a GPU an engine may use.

    Attributes:
        utilization: the share of its memory, base model included.
        step_rows: tokens of the largest step.
        reserved: bytes for adapters that are loaded later.
    """

    utilization: float
    step_rows: int
    reserved: int


@dataclass(frozen=True)
class Demand:
    """What a decoder needs of a GPU's memory, besides weights and adapters.

    Attributes:
        per_token: bytes of the KV cache for each token.
        step: bytes that the largest step takes, whatever the length of its sequences.
        per_position: bytes that it takes more for each token of the longest sequence.
        positions: how long a sequence may be.
    """

    per_token: int
    step: int
    per_position: int
    positions: int


def gpu_room(free: int, total: int, share: float, reserved: int) -> int:
    """Return how many bytes may still be taken, so that all of the GPU's users have at most `share` of it.

    As vLLM's gpu_memory_utilization: what other processes have counts as used.

    Args:
        free: bytes now, with the base model loaded.
        reserved: bytes for what comes later, such as adapters.
    """
    return int(total * share) - (total - free) - reserved


def kv_tokens_that_fit(room: int, demand: Demand) -> int:
    """Return how many tokens the KV cache may hold in `room` bytes, the largest step besides; below 1: none."""
    left = room - demand.step
    # No sequence is longer than the cache: a small cache makes steps small, too.
    short = left // (demand.per_token + demand.per_position)
    if short <= demand.positions:
        return short
    return (left - demand.positions * demand.per_position) // demand.per_token


def gpu_memory(device: str) -> tuple[int, int]:
    """Return the free bytes of a GPU and all that it has; what torch keeps for reuse is free."""
    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept, total


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed: Python's or numpy's, torch's on a GPU, or torch's on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no type for it on a CPU, nor where cuBLAS finds none.
    said = ("can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in said)

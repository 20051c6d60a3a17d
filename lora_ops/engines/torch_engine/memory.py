"""Long-lived memory that a step reads from end to end: in huge pages, where the system has them."""

import mmap

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

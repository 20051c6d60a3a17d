"""The pipeline of several tenants at once: one `dvc repro` for each, beside one another.

DVC runs one stage after the other. Reading packages, drawing pages and the Python between two matrix products
use one core, so that two tenants with half the cores each end sooner than one after the other. DVC lets several
`dvc repro` work in one repository as long as none writes what another one reads (dvc.org, command reference of
`repro`, "Parallel stage execution"); it also asks to write what an unchanged stage above makes. So what all
tenants read is made first, and each tenant's process then looks at nothing but that tenant's stages, in the
order of dvc.yaml. A last `dvc repro` brings the rest.
"""

import asyncio
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.processes import only_one

# What each tenant's stages read and no tenant's stage writes.
SHARED = ("versions", "base_model")

# What the drivers make in /dev: NVIDIA's, that of its boards, that of Windows' Linux, and AMD's.
GPU_DEVICES = ("nvidia*", "nvmap", "dxg", "kfd")

# So long may DVC take to end in order after Ctrl-C.
GRACE_S = 5.0

# DVC ends with whoever started it, even if that is killed. A child that calls this first keeps it through exec.
START = (
    "import os, sys; from lora_ops.processes import end_with_parent; end_with_parent(); "
    "os.execv(sys.executable, [sys.executable, '-m', 'dvc', *sys.argv[1:]])"
)


def default_jobs() -> int:
    """Return how many tenants to work on at once: two on a CPU of several cores, else one.

    On a GPU two trainings would share its memory.
    """
    return 1 if _has_gpu() else min(2, _cores())


def _has_gpu() -> bool:
    """Return whether torch finds a GPU; where no driver has made a device, torch is not asked.

    Importing torch takes longer than all else that happens before the first stage.
    """
    if not any(one for pattern in GPU_DEVICES for one in Path("/dev").glob(pattern)):
        return False
    import torch

    return torch.cuda.is_available()


def reproduce(tenants: Sequence[str], root: Path, *, jobs: int, force: bool = False) -> None:
    """Bring every stage of the pipeline up to date, and print what DVC says.

    Args:
        jobs: how many tenants are worked on at once. Each has its part of the cores, unless OMP_NUM_THREADS
            says how many threads a process may use.
        force: run stages that are up to date, too.

    Raises:
        LoraOpsError: a stage failed. The other tenants go on to their end first. Or another process is at it.
    """
    # Two of them would meet each other's locks in DVC, and end one another's tenants.
    lock = root / ".dvc/tmp/lora-ops-repro.lock"
    with only_one(lock, "running the pipeline") if lock.parents[1].is_dir() else nullcontext():
        asyncio.run(_reproduce(tenants, root, jobs, ["--force"] if force else []))


async def _reproduce(tenants: Sequence[str], root: Path, jobs: int, how: list[str]) -> None:
    share = {"OMP_NUM_THREADS": str(max(1, _cores() // jobs)), **os.environ}
    free = asyncio.Semaphore(jobs)
    width = max(map(len, tenants), default=0)

    async def one(tenant: str) -> bool:
        async with free:
            stages = ["--single-item", "--glob", f"*@{tenant}"]
            return await _dvc([*how, *stages], root, share, f"{tenant:{width}} | ")

    if not await _dvc([*how, *SHARED], root, os.environ):
        raise LoraOpsError("`dvc repro` failed before the first tenant's stages: what it said stands above.")
    done = await asyncio.gather(*map(one, tenants))
    failed = [tenant for tenant, is_done in zip(tenants, done, strict=True) if not is_done]
    if failed:
        raise LoraOpsError(
            f"`dvc repro` failed for {', '.join(failed)}: what it said stands above, behind the tenant's name."
        )
    # Stages that are no tenant's, such as one that was added to dvc.yaml.
    if not await _dvc([], root, os.environ):
        raise LoraOpsError("`dvc repro` failed after the tenants' stages: what it said stands above.")


async def _dvc(arguments: Sequence[str], root: Path, environment: Mapping[str, str], head: str = "") -> bool:
    """Run `dvc repro`, print each of its lines after `head`, and return whether it ended well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", START, "--wait-for-lock", "repro", *arguments),
        cwd=root,
        # Behind a pipe Python would keep what it prints until a block is full.
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    try:
        rest = b""
        while read := await process.stdout.read(1 << 16):
            # A progress bar ends its lines by \r, to be written over.
            *lines, rest = re.split(rb"\r\n|\r|\n", rest + read)
            _print(lines, head)
        _print([rest], head)
        return await process.wait() == 0
    except asyncio.CancelledError:
        # Ctrl-C in a terminal reaches DVC, too, which then ends in order. Where only this process got it, DVC
        # would go on. Nothing waits for it then: a stage of its own making may keep the pipe open.
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_S)
        if process.returncode is None:
            process.terminate()
        raise


def _print(lines: Sequence[bytes], head: str) -> None:
    for line in lines:
        if text := line.decode(errors="replace").rstrip():
            print(f"{head}{text}", flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

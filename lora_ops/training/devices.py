"""One training on several devices of this machine: a process for each, and sums over all of them."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from lora_ops.errors import LoraOpsError
from lora_ops.processes import end_with_parent

Metrics = dict[str, float]
OnStep = Callable[[Metrics], None]


@dataclass(frozen=True)
class Group:
    """The processes that train one adapter together, each with all of the model.

    Attributes:
        rank: of this process. Only rank 0 writes files and reports steps.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of each process's `tensor`, the same bits in all of them."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        total: torch.Tensor = reduce(tensor, "sum")
        return total

    def sum_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Give each parameter the sum of all processes' gradients; a process without rows adds zeros."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters.values(), parts, strict=True):
            parameter.grad = part.view_as(parameter)


def count_devices(wanted: int | None, device: str) -> int:
    """Return on how many devices to train: `wanted`, else all GPUs, or one CPU.

    Raises:
        LoraOpsError: there are fewer GPUs.
    """
    if device == "cpu":
        return wanted or 1
    found = torch.cuda.device_count()
    if wanted and wanted > found:
        raise LoraOpsError(f"train.devices is {wanted}, and torch sees {found} GPUs here: lower it.")
    return wanted or found


def train_together(size: int, device: str, work: Callable[[Group, OnStep], Any], on_step: OnStep) -> None:
    """Call `work` in `size` new processes, each on a device of its own, and wait for all of them.

    Rank 0 waits in each of its steps until `on_step` returns here, so that training never runs ahead of what
    its caller has seen. The processes end when the caller raises or dies.

    Args:
        work: can be pickled; its errors of the project are raised here.

    Raises:
        LoraOpsError: a process failed; its traceback is on stderr where the text names only its exit code.
    """
    context = multiprocessing.get_context("spawn")  # CUDA can't be used in a fork
    port, threads = _free_port(), max(1, torch.get_num_threads() // size)
    running: dict[Connection, SpawnProcess] = {}
    try:
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (Group(rank, size), device, port, threads, work, theirs)
            process = context.Process(target=_work, args=arguments, name=f"train-{rank}", daemon=True)
            process.start()
            theirs.close()
            running[ours] = process
        while running:
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                if not _hear(pipe, running[pipe], on_step):
                    del running[pipe]
    finally:
        for process in running.values():
            process.kill()
            process.join()


def _hear(pipe: Connection, process: SpawnProcess, on_step: OnStep) -> bool:
    """Take one message of a process; return whether it still runs."""
    try:
        message = pipe.recv()
    except EOFError:
        process.join()
        if process.exitcode:
            raise LoraOpsError(
                f"{process.name}, one of the processes that train together, ended with {process.exitcode}: "
                "its error is above. If the memory of a device is too small, set train.micro_batch_size."
            ) from None
        return False
    if isinstance(message, LoraOpsError):
        raise message
    on_step(message)
    pipe.send(None)
    return True


def _work(
    group: Group, device: str, port: int, threads: int, work: Callable[[Group, OnStep], Any], pipe: Connection
) -> None:
    from accelerate import PartialState

    end_with_parent()
    torch.set_num_threads(threads)
    rank, size = str(group.rank), str(group.size)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
    PartialState(cpu=device == "cpu")  # joins the others, by gloo or NCCL, and chooses this rank's GPU

    def report(metrics: Metrics) -> None:
        pipe.send(metrics)
        pipe.recv()

    try:
        work(group, report if group.rank == 0 else lambda metrics: None)
    except LoraOpsError as error:
        pipe.send(error)
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

"""Where a killed training run goes on: weights, optimizer and random state in one safetensors file."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and which run it is."""

    fingerprint: str
    step: int
    tokens: int
    seconds: float
    losses: list[tuple[int, float]]
    validations: list[tuple[int, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: dict[str, torch.Tensor] | None = None,
) -> None:
    """Replace the checkpoint in one rename, so that a kill leaves the old one or the new one, whole.

    Args:
        best: the weights with the lowest validation loss so far, where they are kept.
    """
    tensors = {f"weight/{name}": p.detach().cpu().contiguous() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = value.detach().cpu().contiguous()
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata={"progress": json.dumps(asdict(progress))})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    path: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
) -> tuple[Progress, dict[str, torch.Tensor] | None] | None:
    """Put the checkpoint's state into the arguments; return how far it had come and the best weights, if kept.

    Returns:
        None, and nothing changed, when there is no checkpoint, or it is of another run (other data, recipe,
        base model or code), or it is not a readable file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            if progress.fingerprint != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"optimizer/{key}/{name}"]
                state[key] = value if key == "step" else value.to(parameter.device)
            optimizer.state[parameter] = state
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    best = {name: tensors[f"best/{name}"] for name in parameters if f"best/{name}" in tensors}
    return progress, best or None

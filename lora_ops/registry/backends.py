"""Opens the registry that params.yaml names, embedded or shared at W&B, and its mirror."""

from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.registry.mirror import Mirror
from lora_ops.registry.owners import load_owners
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.store import Registry
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.files import find_root
from lora_ops.settings.params import Settings, load_settings


def open_registry(root: Path | None = None) -> Registry:
    """The registry that params.yaml names, for the repository at `root`, with the owners of owners.yaml.

    Raises:
        LoraOpsError: params.yaml or owners.yaml is wrong, or the registry can't be opened.
    """
    root = root or find_root()
    opened = open_copy(root, load_settings(root))
    if isinstance(opened, SharedRegistry):
        opened.refresh()
    return opened


def open_copy(root: Path, everything: Settings) -> Registry:
    """The registry as this machine has it; what other machines changed meanwhile is not asked for.

    Raises:
        LoraOpsError: owners.yaml is wrong, or the registry can't be opened.
    """
    settings = everything.registry
    path, file = root / settings.path, root / "owners.yaml"
    owners = load_owners(file) if file.is_file() else None
    registry: Registry
    if settings.backend == "embedded":
        registry = Registry(path, owners=owners, signing=settings.signing)
    else:
        registry = SharedRegistry(path, WandbProject(settings.wandb), owners=owners, signing=settings.signing)
    registry.allow_candidates = everything.serving.allow_candidates
    return registry


def open_mirror(registry: Registry, root: Path | None = None) -> Mirror:
    """The copy at W&B of an opened registry.

    Raises:
        LoraOpsError: params.yaml names no mirror.
    """
    if isinstance(registry, SharedRegistry):
        return registry.mirror
    settings = load_settings(root or find_root()).registry
    if settings.mirror is None:
        raise LoraOpsError(
            "This registry has no mirror: set `mirror: wandb` under `registry` in params.yaml; every change "
            "that was made before is sent too."
        )
    return Mirror(registry, WandbProject(settings.wandb))

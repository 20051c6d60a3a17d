"""Which adapter versions exist, what is known of each, and which one an alias names."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ops.registry.backends import open_registry
    from lora_ops.registry.store import Registry, Summary, Version, parse_reference

__all__ = ["Registry", "Summary", "Version", "open_registry", "parse_reference"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `lora-ops --help` imports this package and needs none of it.
    if name in __all__:
        module = "backends" if name == "open_registry" else "store"
        return getattr(import_module(f"lora_ops.registry.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

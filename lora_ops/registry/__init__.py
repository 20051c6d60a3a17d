"""Which adapter versions exist, what is known of each, and which one an alias names."""

from lora_ops.registry.store import Registry, Summary, Version, open_registry, parse_reference

__all__ = ["Registry", "Summary", "Version", "open_registry", "parse_reference"]

"""The versions of the packages that compute, as they are installed here."""

import importlib.metadata

TRAINING_PACKAGES = ("lora-ops", "torch", "transformers", "peft", "safetensors", "tokenizers")


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package."""
    return {name: importlib.metadata.version(name) for name in names}

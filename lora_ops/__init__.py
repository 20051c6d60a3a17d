"""LoRA adapters as production artefacts: train, evaluate, package, register, serve."""

__version__ = "0.1.0"

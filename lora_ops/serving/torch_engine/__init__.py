"""The embedded engine: one base model in this process, many adapters in one batch."""

from lora_ops.serving.torch_engine.engine import TorchEngine

__all__ = ["TorchEngine"]

"""The engine that params.yaml names."""

from pathlib import Path

from lora_ops.engines.protocol import Engine
from lora_ops.settings.serving import ServingSettings


def make_engine(root: Path, settings: ServingSettings) -> Engine:
    """Return the engine that `serving` of params.yaml names; it is not started."""
    if settings.engine == "openai":
        from lora_ops.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(settings.openai)
    from lora_ops.engines.torch_engine import TorchEngine

    return TorchEngine(
        root / "models/base", adapter_memory=int(settings.adapter_memory), **settings.torch.model_dump()
    )

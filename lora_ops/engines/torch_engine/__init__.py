"""The embedded engine: one base model in this process, many adapters in one batch."""

import os

# Threads that wait for each other in a step soon sleep. If they went on spinning, as GNU's OpenMP otherwise
# lets them, a step beside a load or a busy event loop would take many times as long: the thread that is waited
# for wants the core on which another one spins. Read once, when torch is imported for the first time.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from lora_ops.engines.torch_engine.engine import TorchEngine

__all__ = ["TorchEngine"]

"""What a stranger would write to load an adapter with plain peft.

It runs as a process of its own, which imports nothing of lora-ops:

    python -I plain_peft.py BASE ADAPTER           # does the adapter change what its base model answers?
    python -I plain_peft.py --tiny BASE ADAPTER    # makes both first, tiny and random

peft takes seconds to import, so one process does both steps.
"""

import sys
import warnings
from pathlib import Path
from typing import Any


def make_tiny(base: Path, adapter: Path) -> None:
    """Write a Llama with two layers of 32 random features, and a LoRA adapter that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about peft
        tuned: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for key, tensor in tuned.named_parameters():
        if "lora_B" in key:  # zeros would change nothing
            torch.nn.init.normal_(tensor)
    tuned.save_pretrained(str(adapter))


def load(base: Path, adapter: Path) -> None:
    """Load an adapter on its base model.

    Raises:
        AssertionError: its logits are not finite, or are those of the base model.
        Exception: whatever peft, transformers and torch raise.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model(tokens).logits
        model = PeftModel.from_pretrained(model, adapter).eval()
        after = model(tokens).logits
    assert "lora_ops" not in sys.modules
    assert torch.isfinite(after).all(), "its logits are not finite"
    assert not torch.equal(before, after), "it changes nothing"


if __name__ == "__main__":
    *options, of_base, of_adapter = sys.argv[1:]
    if options == ["--tiny"]:
        make_tiny(Path(of_base), Path(of_adapter))
    load(Path(of_base), Path(of_adapter))

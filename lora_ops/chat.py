"""Ask one question of a registered adapter and of its base model, to see the difference."""

import tempfile
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.generate import generate
from lora_ops.loading import load_base_model
from lora_ops.prompts import render_prompt
from lora_ops.records.base_model import read_base_model
from lora_ops.registry import packages
from lora_ops.registry.eligibility import base_model_reason
from lora_ops.registry.store import Registry
from lora_ops.settings.tenant import TenantSettings


def ask(reference: str, text: str, registry: Registry, root: Path) -> tuple[str, str, str]:
    """Adapter id, the base model's answer and the adapter's answer to `text`.

    `text` goes through the tenant's own prompt: the settings are those that the version was packaged with.

    Raises:
        LoraOpsError: unknown version, changed files, or the base model here is not the adapter's.
    """
    from peft import PeftModel

    base = read_base_model(root / "models/base")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        version = packages.export(registry, reference, folder, for_review=True)
        other = base_model_reason(version, base)
        if other:
            raise LoraOpsError(f"{other}.")
        model, tokenizer = load_base_model(root / "models/base")
        model = PeftModel.from_pretrained(model, folder)
        settings = TenantSettings.model_validate(version.manifest.params)
        prompts = [render_prompt(tokenizer, text, settings.data.system)]
        limits: dict[str, Any] = {"max_new_tokens": max(32, settings.evaluate.max_new_tokens), "batch_size": 1}
        adapter = generate(model, tokenizer, prompts, **limits).texts
        with model.disable_adapter():
            base_answer = generate(model, tokenizer, prompts, **limits).texts
    return version.manifest.adapter_id, base_answer[0], adapter[0]

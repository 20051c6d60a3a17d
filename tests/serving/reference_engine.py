"""The simplest real engine: transformers and PEFT, one request at a time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import torch
from peft import PeftModel

from lora_ops.loading import load_base_model
from lora_ops.serving.engine import Chunk, EngineError, EngineStatus, Generation, TokenLogprob


class ReferenceEngine:
    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_base_model(folder)
        self.context_length = self.model.config.max_position_embeddings
        self.lock = asyncio.Lock()
        self.sizes: dict[str, int] = {}
        self.running = 0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def load(self, name: str, folder: Path) -> int:
        async with self.lock:
            key = name.replace("@", "_")
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(folder, key)
            else:
                self.model = PeftModel.from_pretrained(self.model, folder, key)
            self.sizes[name] = (folder / "adapter_model.safetensors").stat().st_size
        return self.sizes[name]

    async def unload(self, name: str) -> None:
        async with self.lock:
            if self.sizes.pop(name, None) and len(self.model.peft_config) > 1:
                self.model.delete_adapter(name.replace("@", "_"))

    async def generate(self, generation: Generation) -> AsyncIterator[Chunk]:
        if generation.adapter and generation.adapter not in self.sizes:
            raise EngineError(f"There is no adapter '{generation.adapter}'.")
        sampling, ids, told = generation.sampling, list(generation.prompt), ""
        random = torch.Generator().manual_seed(sampling.seed or 0)
        self.running += 1
        try:
            for count in range(sampling.max_tokens):
                async with self.lock:
                    logits = await asyncio.to_thread(self._logits, ids, generation.adapter)
                logprobs = torch.log_softmax(logits.float(), -1)
                if sampling.temperature:
                    token = int(
                        torch.multinomial((logits / sampling.temperature).softmax(-1), 1, generator=random)
                    )
                else:
                    token = int(logits.argmax())
                ids.append(token)
                text = self.tokenizer.decode(ids[len(generation.prompt) :], skip_special_tokens=True)
                finish = "stop" if token == self.tokenizer.eos_token_id else None
                for stop in sampling.stop:
                    if stop in text:
                        text, finish = text[: text.index(stop)], "stop"
                if finish is None and count + 1 == sampling.max_tokens:
                    finish = "length"
                fresh, told = text[len(told) :], text
                top: tuple = ()
                if sampling.logprobs is not None:
                    best = logprobs.topk(max(1, sampling.logprobs))
                    names = [self.tokenizer.decode([t]) for t in best.indices.tolist()]
                    top = tuple(zip(names, best.values.tolist(), strict=True))[: sampling.logprobs]
                    shown = (TokenLogprob(self.tokenizer.decode([token]), float(logprobs[token]), top),)
                else:
                    shown = ()
                yield Chunk(
                    fresh, 1, shown, finish, 0.001, len(generation.prompt) if finish else 0
                )
                if finish:
                    return
        finally:
            self.running -= 1

    def _logits(self, ids: list[int], adapter: str | None) -> torch.Tensor:
        with torch.inference_mode():
            batch = torch.tensor([ids])
            if not isinstance(self.model, PeftModel):
                return self.model(batch).logits[0, -1]
            if adapter is None:
                with self.model.disable_adapter():
                    return self.model(batch).logits[0, -1]
            self.model.set_adapter(adapter.replace("@", "_"))
            return self.model(batch).logits[0, -1]

    def status(self) -> EngineStatus:
        return EngineStatus(running=self.running, adapters=dict(self.sizes))

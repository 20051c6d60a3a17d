"""Any base model that transformers loads: its own forward pass, one sequence after the other.

It is held against transformers at start, and slow: nothing is batched. Adapters are added by hooks on the
linear layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from lora_ops.engines.torch_engine.decoder import BLOCK, Adapter, ScheduledSequence, blocks_for
from lora_ops.engines.torch_engine.lora import LoraPair, Part, Projection, add_lora


@dataclass(frozen=True)
class HookedAdapter:
    """An adapter as the hooks read it: the projection of each module, which has one part."""

    projections: dict[str, Projection]

    @property
    def bytes(self) -> int:
        """Of all matrices."""
        return sum(one.lora_A.nbytes + one.parts[0].lora_B.nbytes for one in self.projections.values())


class HFDecoder:
    """A `Decoder` of any causal language model of transformers.

    The model itself decides how its caches are laid out. A sequence's blocks only bound how many tokens all
    caches hold together, and its first block, which nobody shares, is the name of its cache.
    """

    shares = False
    batches = False
    attention_positions = math.inf  # not known of any model
    reads_bfloat16 = False

    def __init__(self, model: Any, context_length: int, kv_tokens: int) -> None:
        self.context_length, self.kv_tokens = context_length, blocks_for(kv_tokens) * BLOCK
        self.dtype, self._device = model.dtype, model.device
        self.vocabulary = model.get_input_embeddings().num_embeddings
        self._model = model
        self._caches: dict[int, Any] = {}
        self._adapter: HookedAdapter | None = None
        shapes: dict[str, tuple[int, int]] = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | Conv1D):
                rows, columns = module.weight.shape
                # Conv1D keeps its weight the other way round; PEFT's matrices are the same for both.
                shapes[name] = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
                module.register_forward_hook(self._hook(name))
        self.shapes: Mapping[str, tuple[int, int]] = shapes

    def adapter(self, pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> Adapter:
        """The matrices where the model is."""
        projections = {}
        for name, pair in pairs.items():
            lora_A, lora_B = (matrix.to(self._device, dtype) for matrix in (pair.lora_A, pair.lora_B))
            projections[name] = Projection(lora_A, (Part(lora_B.T, 0, 0, pair.scaling),))
        return HookedAdapter(projections)

    @torch.inference_mode()
    def step(self, scheduled: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Return the logits after each scored token: (all of them, vocabulary), in the order of `scheduled`."""
        # One forward pass each, also of those whose logits nobody wants: they fill the KV cache.
        found = [self._forward(one).logits[0, len(one.tokens) - one.scored :] for one in scheduled]
        return torch.cat([torch.empty(0, self.vocabulary, device=self._device), *found])

    @torch.inference_mode()
    def step_with_states(self, scheduled: Sequence[ScheduledSequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `step` does, and the last hidden states of the same tokens: (all of them, hidden)."""
        logits, states = [], []
        for one in scheduled:
            output, scored = self._forward(one, states=True), slice(len(one.tokens) - one.scored, None)
            logits.append(output.logits[0, scored])
            states.append(output.hidden_states[-1][0, scored])
        return torch.cat(logits), torch.cat(states)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Not here: the model itself decides how its caches are laid out."""
        raise NotImplementedError

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop the sequence's cache."""
        self._caches.pop(blocks[0], None)

    def _forward(self, one: ScheduledSequence, *, states: bool = False) -> Any:
        if one.position == 0:
            self._caches[one.blocks[0]] = DynamicCache(config=self._model.config)
        assert one.adapter is None or isinstance(one.adapter, HookedAdapter)
        self._adapter = one.adapter
        tokens = torch.tensor([list(one.tokens)], device=self._device)
        cache = self._caches[one.blocks[0]]
        return self._model(input_ids=tokens, past_key_values=cache, use_cache=True, output_hidden_states=states)

    def _hook(self, name: str) -> Any:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            projection = self._adapter.projections.get(name) if self._adapter else None
            if projection:
                add_lora(inputs[0], output, projection)
            return output

        return add

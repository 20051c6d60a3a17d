"""What a decoder computes beside what transformers computes, at the begin of a context and far into it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from lora_ops.engines.torch_engine.decoder import BLOCK, Decoder, ScheduledSequence, blocks_for
from lora_ops.engines.torch_engine.llama_decoder import LlamaDecoder

# Tokens of the prompt that is tried, in the parts that are read. The last part is a step of an answer.
PROBE = (9, 8, 6, 1)
# Keys and values of one layer that stand for what was read before; they say how far the far probe goes.
FAR_BYTES = 64 << 20


@torch.inference_mode()
def near_difference(decoder: Decoder, model: Any) -> float:
    """Return the largest difference of two logits of a short prompt, relative to the largest logit."""
    tokens = _tokens(decoder)
    with computing(model, decoder.dtype):
        wanted = model(torch.tensor([tokens], device=model.device)).logits[0].float()  # (count, vocabulary)
    blocks = list(reversed(range(blocks_for(len(tokens)))))  # in no order, as a busy cache hands them out
    got = _read(decoder, tokens, 0, blocks)
    decoder.forget(blocks)
    return _relative(got, wanted)


@torch.inference_mode()
def far_difference(decoder: LlamaDecoder, model: Any) -> float:
    """Return the same of a prompt near the end of the context; 0 where it can't be told.

    Nobody reads all that is before it. The context begins with the keys and values of one block of tokens and
    goes on with those of another one, named again and again. So a window, a mask or a rotary embedding that is
    another one far out shows, at the price of a few tokens.

    Float32 only: sums of thousands of numbers in a narrower type differ by as much as what this looks for.
    """
    tokens = _tokens(decoder)
    own = blocks_for(len(tokens))
    dim = model.model.layers[0].self_attn.head_dim
    size = 2 * model.config.num_key_value_heads * dim * decoder.dtype.itemsize  # of a token, in a layer
    before = min(decoder.context_length // BLOCK - own, FAR_BYTES // (size * BLOCK))
    if before < 2 or decoder.kv_tokens // BLOCK < 2 + own or decoder.dtype is not torch.float32:
        return 0.0
    ids = torch.tensor([tokens], device=model.device)
    with computing(model, decoder.dtype):
        read: Any = DynamicCache()
        model(ids, past_key_values=read)
        # Of each layer (2, kv_heads, count, dim).
        layers = [torch.cat([layer.keys, layer.values]) for layer in read.layers]
        past = Cache(layers=[_Past(layer[:, :, :BLOCK], layer[:, :, -BLOCK:], before) for layer in layers])
        wanted = model(ids, past_key_values=past).logits[0].float()
    decoder.write_block(0, torch.stack([layer[:, :, :BLOCK] for layer in layers]))
    decoder.write_block(1, torch.stack([layer[:, :, -BLOCK:] for layer in layers]))
    got = _read(decoder, tokens, before * BLOCK, [0, *[1] * (before - 1), *range(2, 2 + own)])
    return _relative(got, wanted)


class _Past(DynamicLayer):
    """A layer's keys and values of a context that nobody read; what is read is not kept, since it is read once.

    Args:
        first, other: (2, kv_heads, BLOCK, dim) of the first block and of each other one.
        blocks: how many there are.
    """

    def __init__(self, first: torch.Tensor, other: torch.Tensor, blocks: int) -> None:
        super().__init__()
        self._first, self._other, self._blocks = first, other, blocks

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what attention reads."""
        others = self._other.repeat(1, 1, self._blocks - 1, 1)
        keys, values = torch.cat([self._first, others], dim=2)[:, None]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        return self._blocks * BLOCK


def _tokens(decoder: Decoder) -> list[int]:
    count = min(sum(PROBE), decoder.context_length)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(decoder.vocabulary, (count,), generator=generator).tolist()


def _read(decoder: Decoder, tokens: list[int], position: int, blocks: Sequence[int]) -> torch.Tensor:
    """Return the logits after each token, read in parts from this position on."""
    got, at = [], 0
    for part in PROBE:
        read = tokens[at : at + part]
        if read:
            one = ScheduledSequence(read, position + at, blocks, None, scored=len(read))
            got.append(decoder.step([one]).float())
        at += part
    return torch.cat(got)


def _relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@contextmanager
def computing(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let `model` compute in `dtype`: the weights of each module are converted while the module runs."""
    kept: dict[int, torch.Tensor] = {}

    def convert(module: Any, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            kept[id(parameter)] = parameter.data
            parameter.data = parameter.data.to(dtype)

    def restore(module: Any, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = kept.pop(id(parameter))

    hooks = []
    if model.dtype is not dtype:
        for module in model.modules():
            hooks += [module.register_forward_pre_hook(convert), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

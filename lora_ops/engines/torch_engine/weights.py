"""The weights of a Llama, Mistral, Qwen2 or Qwen3 model, as one forward pass reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """Of a layer's attention. `eps` is that of the norms."""

    heads: int
    kv_heads: int
    dim: int
    eps: float


@dataclass(frozen=True)
class Linear:
    """Linear layers that read the same input, as one.

    Attributes:
        weight: (outputs, inputs).
        bias: (outputs).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @staticmethod
    def of(layers: Sequence[Any]) -> "Linear":
        """These layers of torch, whose weights become views of the joined ones."""
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        # The model reads the joined weights from now on, or there would be two copies of each until it is gone.
        for layer, part in zip(layers, weight.split([len(one) for one in weights]), strict=True):
            layer.weight.data = part
        if all(layer.bias is None for layer in layers):
            return Linear(weight)
        biases = [weight.new_zeros(len(x.weight)) if x.bias is None else x.bias.detach() for x in layers]
        return Linear(weight, torch.cat(biases))


@dataclass(frozen=True)
class Layer:
    """One layer of the model; `norms` are those of query and key heads, where it has them."""

    before_attention: torch.Tensor
    qkv: Linear
    norms: tuple[torch.Tensor, torch.Tensor] | None
    out: Linear
    before_mlp: torch.Tensor
    gate_up: Linear
    down: Linear

    @staticmethod
    def of(layer: Any) -> "Layer":
        """This decoder layer of transformers."""
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        return Layer(
            layer.input_layernorm.weight.detach(),
            Linear.of([attention.q_proj, attention.k_proj, attention.v_proj]),
            (attention.q_norm.weight.detach(), attention.k_norm.weight.detach()) if has_norms else None,
            Linear.of([attention.o_proj]),
            layer.post_attention_layernorm.weight.detach(),
            Linear.of([mlp.gate_proj, mlp.up_proj]),
            Linear.of([mlp.down_proj]),
        )


@dataclass(frozen=True)
class Weights:
    """All of a model.

    Attributes:
        embedding: (vocabulary, hidden).
        cosine, sine: (positions, dim) of the rotary embedding.
        norm: (hidden), before the head.
    """

    shape: Shape
    embedding: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: Linear

    @staticmethod
    def of(model: Any, positions: int) -> "Weights":
        """This causal language model of transformers, for sequences of so many positions."""
        config, inner = model.config, model.model
        embedding = inner.embed_tokens.weight.detach()
        attention = inner.layers[0].self_attn
        cosine, sine = inner.rotary_emb(embedding[:1], torch.arange(positions, device=embedding.device)[None])
        return Weights(
            Shape(
                config.num_attention_heads,
                config.num_key_value_heads,
                attention.head_dim,
                config.rms_norm_eps,
            ),
            embedding,
            cosine[0].contiguous(),
            sine[0].contiguous(),
            tuple(Layer.of(layer) for layer in inner.layers),
            inner.norm.weight.detach(),
            Linear.of([model.lm_head]),
        )

    def make_cache(self, tokens: int) -> torch.Tensor:
        """An empty KV cache: (layers, keys and values, kv_heads, tokens, dim)."""
        s = self.shape
        return self.embedding.new_empty((len(self.layers), 2, s.kv_heads, tokens, s.dim))

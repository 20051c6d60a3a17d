"""The weights of a Llama, Mistral, Qwen2 or Qwen3 model, as one forward pass reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """Of a layer's attention. `eps` is that of the norms."""

    heads: int
    kv_heads: int
    dim: int
    eps: float


def computes_in(model: Any) -> torch.dtype:
    """Return the type of activations, sums and KV cache: float32 on a CPU, else that of the weights."""
    return torch.float32 if model.device.type == "cpu" else model.dtype  # type: ignore[no-any-return]


def _norm(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    return layer.weight.detach().to(dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Linear:
    """Linear layers that read the same input, as one.

    Attributes:
        weight: (outputs, inputs).
        bias: (outputs), of the type that is computed in.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @staticmethod
    def from_hf(layers: Sequence[Any], dtype: torch.dtype) -> "Linear":
        """Join these layers of torch, whose weights become views of the joined ones.

        Args:
            dtype: that is computed in.
        """
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        # The model reads the joined weights from now on, or there would be two copies of each until it is gone.
        for layer, part in zip(layers, weight.split([len(one) for one in weights]), strict=True):
            layer.weight.data = part
        if all(layer.bias is None for layer in layers):
            return Linear(weight)
        biases = [weight.new_zeros(len(x.weight)) if x.bias is None else x.bias.detach() for x in layers]
        return Linear(weight, torch.cat(biases).to(dtype))

    def to(self, dtype: torch.dtype) -> "Linear":
        """The same with its matrix in this type."""
        return replace(self, weight=self.weight.to(dtype))


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
    def from_hf(layer: Any, dtype: torch.dtype) -> "Layer":
        """Return a decoder layer of transformers; `dtype` is what is computed in."""
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        return Layer(
            _norm(layer.input_layernorm, dtype),
            Linear.from_hf([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
            (_norm(attention.q_norm, dtype), _norm(attention.k_norm, dtype)) if has_norms else None,
            Linear.from_hf([attention.o_proj], dtype),
            _norm(layer.post_attention_layernorm, dtype),
            Linear.from_hf([mlp.gate_proj, mlp.up_proj], dtype),
            Linear.from_hf([mlp.down_proj], dtype),
        )


@dataclass(frozen=True)
class Weights:
    """All of a model. Matrices may be narrower than what is computed in; norms, biases and cache are not.

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
    def from_hf(model: Any, positions: int) -> "Weights":
        """Return a causal language model of transformers, for sequences of so many positions."""
        config, inner = model.config, model.model
        embedding = inner.embed_tokens.weight.detach()
        attention = inner.layers[0].self_attn
        dtype = computes_in(model)
        places = torch.arange(positions, device=embedding.device)[None]
        cosine, sine = inner.rotary_emb(embedding[:1].to(dtype), places)
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
            tuple(Layer.from_hf(layer, dtype) for layer in inner.layers),
            _norm(inner.norm, dtype),
            Linear.from_hf([model.lm_head], dtype),
        )

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.norm.dtype

    def widened(self) -> "Weights":
        """The same with matrices of the type that is computed in."""
        layers = tuple(
            replace(
                layer,
                qkv=layer.qkv.to(self.dtype),
                out=layer.out.to(self.dtype),
                gate_up=layer.gate_up.to(self.dtype),
                down=layer.down.to(self.dtype),
            )
            for layer in self.layers
        )
        return replace(
            self, embedding=self.embedding.to(self.dtype), layers=layers, head=self.head.to(self.dtype)
        )

    def make_cache(self, tokens: int) -> torch.Tensor:
        """An empty KV cache: (layers, keys and values, kv_heads, tokens, dim)."""
        s = self.shape
        return self.norm.new_empty((len(self.layers), 2, s.kv_heads, tokens, s.dim))

"""A batch as one sequence: no padding, and the prompt's beginning that all rows share computed once."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_ops.training.attention import PACKED, Layout
from lora_ops.training.batches import Tokens, batch_loss, collate

Loss = Callable[[Any, Sequence[Tokens]], torch.Tensor]
logger = logging.getLogger(__name__)

# In bfloat16 the two losses of a trained model of 135M parameters differ by up to 1.7 %, in float32 by 1e-6.
NARROW_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Packed:
    """Rows behind each other, the prefix of all in front, each without its last token (it predicts nothing).

    Attributes:
        input_ids, position_ids: int64, (1, tokens); positions count from the beginning of each row.
        predicting: int64, (completion tokens,), the places whose next token is part of a completion.
        labels: int64, (completion tokens,), these next tokens.
        layout: who sees whom.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predicting: torch.Tensor
    labels: torch.Tensor
    layout: Layout


def pack(rows: Sequence[Tokens], device: str | torch.device = "cpu") -> Packed:
    """Pack `rows`, of which each has a prompt and a completion of at least one token."""
    # The last token of a prompt predicts the completion, so it stays with its row.
    alike = os.path.commonprefix([row.prompt[:-1] for row in rows])
    prefix = len(alike)
    own = [(row.prompt + row.completion)[prefix:-1] for row in rows]
    longest = max(map(len, own))
    ids, positions = list(alike), list(range(prefix))
    predicting: list[int] = []
    slots: list[int] = []
    for index, (row, tokens) in enumerate(zip(rows, own, strict=True)):
        ids += tokens
        positions += range(prefix, prefix + len(tokens))
        predicting += range(len(ids) - len(row.completion), len(ids))
        slots += range(index * longest, index * longest + len(tokens))
    labels = [token for row in rows for token in row.completion]

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=device)

    layout = Layout(prefix, tuple(map(len, own)), tensor(slots))
    return Packed(tensor(ids)[None], tensor(positions)[None], tensor(predicting), tensor(labels), layout)


def packed_loss(model: Any, rows: Sequence[Tokens]) -> torch.Tensor:
    """Mean cross-entropy per completion token, a scalar: `batch_loss` of the same rows, up to rounding.

    The model's attention must be `PACKED`. With dropout, rows share the mask of the prefix that they share.
    """
    packed = pack(rows, model.device)
    logits = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        layout=packed.layout,
        logits_to_keep=packed.predicting,
        use_cache=False,
    ).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), packed.labels)


def choose_loss(model: Any, rows: Sequence[Tokens], pad_token_id: int) -> Loss:
    """`packed_loss` if this model computes the same with it, else the padded `batch_loss`, with a warning.

    Whether it does is tried on some of `rows`, since no flag of an architecture promises it: recurrent layers
    or a window mix rows, and not every model hands `layout` down to its attention. The model's attention is
    `PACKED` afterwards in the first case, and as it was in the second.
    """

    def padded_loss(model: Any, rows: Sequence[Tokens]) -> torch.Tensor:
        return batch_loss(model, collate(rows, pad_token_id).to(model.device))

    before = model.config._attn_implementation
    reason = _unpackable_reason(model, rows[:3], padded_loss)
    if reason is None:
        return packed_loss
    logger.warning("Rows are padded, not packed, which is slower but as right: %s.", reason)
    model.set_attn_implementation(before)
    return padded_loss


@torch.no_grad()
def _unpackable_reason(model: Any, rows: Sequence[Tokens], padded_loss: Loss) -> str | None:
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"the model has layers of {', '.join(sorted(kinds))}"
    training = model.training
    model.eval()
    try:
        expected = padded_loss(model, rows)
        model.set_attn_implementation(PACKED)
        got = packed_loss(model, rows)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"the model can't be packed ({type(error).__name__}: {error})"
    finally:
        model.train(training)
    tolerance = 1e-3 if model.dtype is torch.float32 else NARROW_TOLERANCE
    if not torch.isclose(got, expected, rtol=tolerance, equal_nan=True):
        return f"packed, the loss of the first rows is {got:.4f} instead of {expected:.4f}"
    return None

"""Packing changes the speed of a batch, not its loss nor a gradient, whatever the model."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from lora_ops.loading import load_base_model
from lora_ops.training.attention import PACKED
from lora_ops.training.batches import Tokens, batch_loss, collate
from lora_ops.training.packing import choose_loss, pack, packed_loss

ids = st.lists(st.integers(0, 299), min_size=1, max_size=12)
batches = st.builds(
    lambda prefix, rows: [Tokens(prefix + prompt, completion) for prompt, completion in rows],
    st.lists(st.integers(0, 299), max_size=9),
    st.lists(st.tuples(ids, ids), min_size=1, max_size=5),
)


def adapted(model: Any) -> Any:
    """`model` with a peft adapter that already does something, as one in the middle of its training does."""
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return adapted(load_base_model(tiny_base)[0])


def one_by_one(model: Any, rows: Sequence[Tokens]) -> torch.Tensor:
    """The loss as its definition has it: each row alone, unpadded, by the model's own attention."""
    losses = []
    for row in rows:
        logits = model(torch.tensor([row.prompt + row.completion])).logits[0]
        predicting = logits[len(row.prompt) - 1 : -1].log_softmax(-1)
        losses.append(-predicting.gather(1, torch.tensor(row.completion)[:, None])[:, 0])
    return torch.cat(losses).mean()


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """Every adapter weight's gradient, in one vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_a_shared_beginning_lies_in_front_once_and_last_tokens_are_left_out() -> None:
    packed = pack([Tokens([1, 2, 3, 4], [5, 6]), Tokens([1, 2, 7], [8])])
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 7]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert packed.predicting.tolist() == [3, 4, 5]
    assert packed.labels.tolist() == [5, 6, 8]
    assert (packed.layout.prefix, packed.layout.lengths) == (2, (3, 1))
    assert packed.layout.slots.tolist() == [0, 1, 2, 3]


def test_the_token_that_predicts_a_completion_stays_with_its_row() -> None:
    packed = pack([Tokens([1, 2], [5]), Tokens([1, 2], [6])])
    assert packed.input_ids.tolist() == [[1, 2, 2]]
    assert packed.predicting.tolist() == [1, 2]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=batches)
def test_loss_and_gradients_are_those_of_each_row_alone_in_plain_peft(model: Any, rows: list[Tokens]) -> None:
    model.set_attn_implementation("eager")
    expected = one_by_one(model, rows)
    expected_gradients = gradients(model, expected)
    model.set_attn_implementation(PACKED)
    got = packed_loss(model, rows)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, got), expected_gradients, rtol=1e-3, atol=1e-5)


ROWS = [Tokens([1, 2, 3, 4, 5], [6, 7]), Tokens([1, 2, 9], [8]), Tokens([1, 2, 4, 4, 3, 5, 6, 7], [9, 1, 2])]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(kind: str, **more: Any) -> Any:
    """A tiny random model of one of transformers' architectures."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | more))).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "phi3", "gpt2", "olmo2", "granite"])
def test_architectures_with_plain_causal_attention_are_packed(kind: str) -> None:
    model = adapted(random_model(kind, **({"n_embd": 32, "n_layer": 2} if kind == "gpt2" else {})))
    expected = gradients(model, one_by_one(model, ROWS))
    loss = choose_loss(model, ROWS, 0)
    assert loss is packed_loss
    model.eval()
    torch.testing.assert_close(gradients(model, loss(model, ROWS)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_bf16_model_is_packed_though_it_rounds(seed: int) -> None:
    """The losses of a trained 135M model differ by up to 1.7 % in bf16, so none was packed."""
    model = random_model("llama", initializer_range=0.5, num_hidden_layers=8).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 300, (3, 30), generator=generator).tolist()
    rows = [Tokens([1, 2, *row[:29]], row[29:]) for row in ids]
    assert choose_loss(model, rows, 0) is packed_loss


@pytest.mark.parametrize(
    ("kind", "more"),
    [("gemma2", {"sliding_window": 4}), ("mistral", {"sliding_window": 4}), ("bloom", {"n_head": 4})],
)
def test_others_are_padded_and_the_log_says_so(
    kind: str, more: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(random_model(kind, **more))
    before = model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        loss = choose_loss(model, ROWS, 0)
    assert "padded, not packed" in caplog.text
    assert model.config._attn_implementation == before
    assert torch.equal(loss(model, ROWS), batch_loss(model, collate(ROWS, 0)))

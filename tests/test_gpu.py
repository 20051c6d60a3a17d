"""What a GPU computes: engine, training and evaluation in bfloat16. `make test-gpu` runs these on CUDA.

The same tests run on a CPU, so that they are known to work where no GPU is.
"""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from lora_ops.engines.torch_engine.adapter_files import read_adapter
from lora_ops.engines.torch_engine.architectures import make_decoder
from lora_ops.engines.torch_engine.decoder import ScheduledSequence, blocks_for
from lora_ops.evaluation.answers import answer
from lora_ops.loading import load_base_model
from lora_ops.records.evaluation import ADAPTER, BASE
from lora_ops.settings.evaluate import EvaluateSettings
from tests.conftest import ROOT, record_base, run
from tests.engines.torch_engine.models import make_model, rounded, save_adapter
from tests.training import test_loop

RECIPE = test_loop.with_settings(
    rank=8,
    alpha=16,
    learning_rate=0.01,
    epochs=8,
    dropout=0.0,
    base_dtype="bfloat16",
    micro_batch_size=2,
    gradient_checkpointing=True,
    devices=1,
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the test computes; what chooses for itself takes the GPU in both cases, where there is one."""
    return str(request.param)


@pytest.fixture
def sure_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny model, taught to say Airlines of a shop: bfloat16 changes no token that is far ahead.

    It also learns to say Lodging of an inn. Its output layer, which LoRA leaves alone, can then say both.
    """
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    model, tokenizer = load_base_model(base)
    taught = (("shop", "Airlines"), ("inns", "Lodging"))
    texts = [f"{name} {n}\n{answer}<|im_end|>" for n in range(9) for name, answer in taught]
    rows = tokenizer(texts, return_tensors="pt", padding=True)
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        model(**rows, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(base)
    record_base(base)
    return base


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_engine_gives_logits_of_peft_in_bf16(tmp_path: Path, device: str, name: str) -> None:
    """A batch of three sequences: two adapters and the base model.

    On a CPU the engine computes in float32 with the weights that bfloat16 holds, on a GPU in bfloat16.
    """
    model = make_model(name)
    computed, tolerance = (torch.float32, 1e-4) if device == "cpu" else (torch.bfloat16, 0.05)
    folders = [
        rounded(save_adapter(copy.deepcopy(model), tmp_path / str(seed), seed=seed, scale=0.1, r=rank))
        for seed, rank in enumerate((4, 8))
    ]
    peft = PeftModel.from_pretrained(copy.deepcopy(model), folders[0], adapter_name="0")
    peft.load_adapter(folders[1], adapter_name="1")
    peft = peft.to(device, torch.bfloat16).to(computed).eval()
    decoder = make_decoder(copy.deepcopy(model).to(device, torch.bfloat16), kv_tokens=256)
    adapters = [decoder.adapter(read_adapter(path, decoder.shapes), torch.bfloat16) for path in folders]
    tokens = torch.randint(2, 300, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    count = blocks_for(len(tokens))
    places = [list(range(place * count, (place + 1) * count)) for place in range(3)]
    scheduled = [
        ScheduledSequence(tokens, 0, blocks, adapter, scored=len(tokens))
        for blocks, adapter in zip(places, [*adapters, None], strict=True)
    ]
    got = decoder.step(scheduled).float().unflatten(0, (3, len(tokens)))
    with torch.inference_mode():
        for place, adapter in enumerate(("0", "1")):
            peft.set_adapter(adapter)
            wanted = peft(torch.tensor([tokens], device=device)).logits[0].float()
            assert float((got[place] - wanted).abs().max() / wanted.abs().max()) < tolerance
        with peft.disable_adapter():
            wanted = peft(torch.tensor([tokens], device=device)).logits[0].float()
        assert float((got[2] - wanted).abs().max() / wanted.abs().max()) < tolerance


def test_trained_in_bf16_it_is_evaluated(sure_base: Path, tmp_path: Path, device: str) -> None:
    """Base model and adapter each give the answer that they were taught, by the engine and by transformers."""
    record = test_loop.run(sure_base, tmp_path, RECIPE)
    assert record.dtype == "bfloat16"
    assert device == "cpu" or record.device == torch.cuda.get_device_name()
    losses = test_loop.losses(tmp_path)
    assert losses[-1] < losses[0] / 4
    settings = EvaluateSettings(metrics=("exact_match",), max_new_tokens=4, few_shot=0, batch_size=4)
    found = answer(sure_base, tmp_path / "adapter", test_loop.ROWS, settings)
    assert set(found.frame[BASE].str[:4]) == {"Airl"}
    assert set(found.frame[ADAPTER].str[:4]) == {"Lodg"}
    assert all(both.equal == both.rows for both in found.agreement.values())


def test_resumed_training_ends_near_the_whole_one(tiny_base: Path, tmp_path: Path, device: str) -> None:
    """On a CPU the bytes are the same (test_loop); a GPU's sums may differ in their last bits."""
    with pytest.raises(KeyboardInterrupt):
        test_loop.run(tiny_base, tmp_path / "stopped", RECIPE, on_step=test_loop.stop)
    resumed = test_loop.run(tiny_base, tmp_path / "stopped", RECIPE)
    whole = test_loop.run(tiny_base, tmp_path / "whole", RECIPE)
    assert resumed.resumed_from_step == 3
    assert resumed.validation_loss == pytest.approx(whole.validation_loss, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_run_without_gpu_says_so_and_exits_3() -> None:
    done = run(ROOT / ".ci/gpu", cwd=ROOT)
    assert (done.returncode, done.stdout) == (3, "not run: no CUDA device\n")

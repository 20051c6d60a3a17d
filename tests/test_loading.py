"""The base model's tokenizer: what AutoTokenizer would load, without torch where nothing needs it."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, GPT2Config

from lora_ops.loading import _tokenizer_class, context_tokens, load_tokenizer
from tests.conftest import ROOT, run

COUNT = """
import sys
from pathlib import Path
from lora_ops.loading import context_tokens, load_tokenizer
from lora_ops.prompts import ControlTokens, render_prompt

base = Path(sys.argv[1])
tokenizer = load_tokenizer(base)
ControlTokens(tokenizer)
tokenizer([render_prompt(tokenizer, "AIRBNB", "Name the merchant category.")])
context_tokens(base)
print([name for name in ("torch", "peft", "accelerate") if name in sys.modules])
"""


def test_tokens_are_counted_without_torch(tiny_base: Path) -> None:
    done = run(sys.executable, "-c", COUNT, tiny_base, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_load_tokenizer_loads_what_autotokenizer_does(tiny_base: Path) -> None:
    ours, theirs = load_tokenizer(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    for what in ("init_kwargs", "special_tokens_map", "added_tokens_decoder", "chat_template"):
        assert getattr(ours, what) == getattr(theirs, what), what


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("config.json", {"model_type": "qwen2"}),
        ("config.json", None),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}),
        ("tokenizer_config.json", None),
    ],
)
def test_autotokenizer_chooses_where_the_folder_may_not(
    tiny_base: Path, tmp_path: Path, name: str, changed: dict[str, object] | None
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = base / name
    path.write_text("[]" if changed is None else json.dumps({**json.loads(path.read_text()), **changed}))
    assert _tokenizer_class(base) is AutoTokenizer


def test_context_tokens_are_those_of_the_config(tiny_base: Path, tmp_path: Path) -> None:
    """GPT-2 has another name for them."""
    assert context_tokens(tiny_base) == AutoConfig.from_pretrained(tiny_base).max_position_embeddings
    GPT2Config(n_positions=77).save_pretrained(tmp_path)
    assert context_tokens(tmp_path) == 77

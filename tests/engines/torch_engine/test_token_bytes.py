"""Which bytes of text a token stands for, whatever the tokenizer's way of writing them is."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lora_ops.engines.torch_engine.token_bytes import TokenBytes
from lora_ops.loading import load_tokenizer

TEXTS = ["AIRBNB * HM2X", "naïve 🚀🎉 日本", "\x00\x7f\xad\n\t  two", "<|im_start|>user\n"]


def whole(tokenizer: Tokenizer, text: str) -> str:
    names = TokenBytes(tokenizer)
    return b"".join(names[token] for token in tokenizer.encode(text, add_special_tokens=False).ids).decode()


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_byte_level_tokenizer_make_the_text(tiny_base: Path, text: str) -> None:
    assert whole(load_tokenizer(tiny_base).backend_tokenizer, text) == text


def sentencepiece() -> Tokenizer:
    """Return a tokenizer as Llama 2 and Mistral have it."""
    letters = ["▁Hello", "▁world", "▁", "!", "H"]
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocabulary |= {letter: len(vocabulary) + place for place, letter in enumerate(letters)}
    merges = [("▁", "H")]
    tokenizer = Tokenizer(
        models.BPE({**vocabulary, "▁H": len(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


@pytest.mark.parametrize("text", ["H!", " H", "é🚀", " H</s>!"])
def test_bytes_of_a_sentencepiece_tokenizer_make_the_text(text: str) -> None:
    """`decode` of one token alone drops its space, and says U+FFFD for a part of a character."""
    assert whole(sentencepiece(), text) == text


def test_bytes_of_another_tokenizer_are_its_decoders() -> None:
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "<0x41>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = TokenBytes(tokenizer)
    assert (names[0], names[1]) == (b"hello", b"<0x41>")


def test_a_token_that_only_the_model_has_stands_for_nothing(tiny_base: Path) -> None:
    names = TokenBytes(load_tokenizer(tiny_base).backend_tokenizer)
    assert names[len(names) + 5] == b"" and len(list(names)) == len(names)

"""Text comes as soon as it is certain: whole characters, and no part of a stop text."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from lora_ops.engines.torch_engine.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base).backend_tokenizer


def pieces(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, tokenizer.encode("Name:", add_special_tokens=False).ids, stop)
    made = []
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        made.append(stream.add(token))
        if stream.stopped:
            break
    return [*made, stream.finish()], stream


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_the_pieces_together_are_the_text_and_none_is_half_a_character(tokenizer: Any, text: str) -> None:
    if "�" in text or "<|im" in text:
        return
    made, _ = pieces(tokenizer, text)
    assert "".join(made) == text
    assert not any("�" in piece for piece in made)


def test_a_character_of_several_tokens_comes_in_one_piece(tokenizer: Any) -> None:
    assert [piece for piece in pieces(tokenizer, "é→🚀")[0] if piece] == ["é", "→", "🚀"]


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab\n", max_size=20), stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_text(tokenizer: Any, text: str, stop: list[str]) -> None:
    made, stream = pieces(tokenizer, text, tuple(stop))
    ends = [place for word in stop if (place := text.find(word)) >= 0]
    shown = "".join(made)
    assert stream.stopped == bool(ends)
    # Of two stop texts the one that is complete first ends the answer.
    assert text.startswith(shown)
    assert not any(word in shown for word in stop)
    if not ends:
        assert shown == text


def test_what_may_become_a_stop_text_waits_until_it_is_certain(tokenizer: Any) -> None:
    made, _ = pieces(tokenizer, "aXXb", ("XXX",))
    assert made == ["a", "", "", "XXb", ""]


def test_special_tokens_are_not_shown(tokenizer: Any) -> None:
    assert "".join(pieces(tokenizer, "a<|im_start|>b")[0]) == "ab"


def test_bytes_that_are_no_character_are_dropped_and_what_follows_is_told() -> None:
    words = {"<unk>": 0, "▁a": 1, "<0xF0>": 2, "<0x9F>": 3, "<0x0A>": 4, "世": 5, "▁b": 6}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    # As those of Llama 2 and Mistral read.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    stream = TextStream(tokenizer, [1], ())
    told = "".join([*map(stream.add, (1, 4, 2, 3, 5, 6)), stream.finish()])
    assert told.endswith("世 b")
    assert told.startswith(" a")

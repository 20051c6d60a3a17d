"""The bytes of text that each token stands for; a token may be a part of a character."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

# SentencePiece writes a space so, and a byte that no token has as <0xE2>.
SPACE = "\u2581"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes(Mapping[int, bytes]):
    """Bytes by token id, of a tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._kinds = set(_kinds(json.loads(tokenizer.decoder.__getstate__()))) if tokenizer.decoder else set()

    def __getitem__(self, token: int) -> bytes:
        """Return the bytes of a token; of one that the model has and the tokenizer lacks, none."""
        if token not in self._known:  # made once: a prompt with alternatives names thousands in a step
            self._known[token] = self._make(token)
        return self._known[token]

    def _make(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if "ByteLevel" in self._kinds:
            return b"".join(BYTES.get(character, character.encode()) for character in name)
        byte = BYTE.fullmatch(name)
        if byte and "ByteFallback" in self._kinds:
            return bytes.fromhex(byte[1])
        if self._kinds & {"Metaspace", "Replace"}:
            return str(name).replace(SPACE, " ").encode()
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def _added(self) -> dict[int, bytes]:
        """Tokens that stand in the text as they are written, such as those that begin a turn."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token: one.content.encode() for token, one in added.items()}


def _byte_level() -> dict[str, int]:
    """Return the byte of each character by which GPT-2's vocabulary writes it (Radford et al., 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


BYTES = {character: bytes([byte]) for character, byte in _byte_level().items()}


def _kinds(decoder: Mapping[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)

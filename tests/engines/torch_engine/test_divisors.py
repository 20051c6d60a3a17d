"""Which numbers of multipleOf a form may name."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ops.engines.protocol import Structure, Unsupported
from lora_ops.engines.tenant_threads import TenantThreads
from lora_ops.engines.torch_engine.structure import Structures
from lora_ops.loading import load_tokenizer

LARGE = {"type": "integer", "multipleOf": 1_000_003}
REFUSED: list[tuple[str, str]] = [
    ("json", json.dumps(LARGE)),
    ("json", '{"type": "number", "multipleOf": 1e300}'),
    ("json", '{"type": "number", "multipleOf": 0.123457}'),
    ("json", json.dumps({"$defs": {"a": {"items": LARGE}}, "$ref": "#/$defs/a"})),
    ("json", json.dumps({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]})),
    ("json", json.dumps({"anyOf": [{"multipleOf": n} for n in (19_997, 19_993)]})),
    ("json", '{"type": "integer", "multiple\\u004ff": 1000003, "multipleOf": 1}'),
    ("grammar", f"start: %json{json.dumps(LARGE)}"),
    ("grammar", f'start: "a" | b\nb: %json \n {json.dumps({"properties": {"a": LARGE}})}'),
    ("grammar", json.dumps({"grammars": [{"json_schema": LARGE}]})),
]


@pytest.fixture
def structures(tiny_base: Path) -> Structures:
    tokenizer = load_tokenizer(tiny_base).backend_tokenizer
    return Structures(tokenizer, tokenizer.get_vocab_size(), [1], TenantThreads(1, "mask"))


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_structures_refuse_large_divisors(structures: Structures, kind: Any, text: str) -> None:
    """Its compilation took seconds and hundreds of megabytes, and held up other tenants' forms."""
    with pytest.raises(Unsupported, match="multipleOf|Lark's notation"):
        structures.matcher(Structure(kind, text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", '{"type": "number", "multipleOf": 0.01}'),
        ("json", '{"type": "integer", "multipleOf": 3600}'),
        ("json", '{"properties": {"a": {"multipleOf": 0.25}, "b": {"multipleOf": 60}, "multipleOf": {}}}'),
        ("json", " " + json.dumps({"const": "multipleOf"})),
        ("grammar", 'start: %json {"type": "integer", "multipleOf": 7} | "100 %"'),
    ],
)
def test_structures_take_small_divisors(structures: Structures, kind: Any, text: str) -> None:
    assert not structures.matcher(Structure(kind, text)).forbidden().all()


HUGE_EXPONENTS = [
    f'{{"{name}": 1e{sign}{"9" * 20}}}' for name in ("multipleOf", "maximum") for sign in ("", "-")
]


@pytest.mark.parametrize("text", ["[" * 60_000, '{"a": ' * 10_000, "{", '{"multipleOf": 1,}', *HUGE_EXPONENTS])
def test_structures_refuse_what_is_no_schema(structures: Structures, text: str) -> None:
    for structure in (Structure("json", text), Structure("grammar", f"start: %json {text}")):
        with pytest.raises(Unsupported, match="can't be read"):
            structures.matcher(structure)

"""Forms with numbers that must be multiples of another one, which take as many states as that one is large.

llguidance makes these states while it compiles a form, before any of its own limits counts: 6 s and 280 MB for
multiples of 1,000,003. Where two such numbers may stand in one place, it makes the product of their states.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

# Of all such numbers of a form, multiplied with each other: at most 0.1 s and 6 MB on one core.
MOST_STATES = 20_000

_SCHEMA = re.compile(r"%json\s*(?={)")  # in a grammar, which may hold schemas


def require_few_states(schemas: Iterator[str] | list[str]) -> None:
    """Refuse JSON schemas, all of one form, that would take too many states.

    Args:
        schemas: texts that begin with a schema.

    Raises:
        ValueError: multipleOf names too large numbers, or a schema is no JSON.
    """
    divisors: set[Decimal] = set()
    for schema in schemas:
        divisors |= _divisors(schema)
    states = Decimal(1)
    for divisor in divisors:
        if divisor > MOST_STATES or (states := states * divisor) > MOST_STATES:
            raise ValueError(
                f"the numbers that multipleOf names may come to {MOST_STATES:,} multiplied with each other, "
                "without their decimal points: leave some out"
            )


def schemas_of_grammar(grammar: str) -> Iterator[str]:
    """Yield the rest of a grammar from each JSON schema in it on.

    Raises:
        ValueError: it is llguidance's JSON of grammars and no grammar in Lark's notation.
    """
    if grammar.lstrip().startswith("{"):
        raise ValueError("a grammar is in Lark's notation, and this begins with a brace")
    for found in _SCHEMA.finditer(grammar):
        yield grammar[found.end() :]


def _divisors(schema: str) -> set[Decimal]:
    """Return the digits of each number that multipleOf names, wherever in a schema it stands."""
    found: set[Decimal] = set()

    def note(pairs: list[tuple[str, Any]]) -> None:
        # Every one of them, since readers differ on which one of the same name counts.
        for name, value in pairs:
            if name == "multipleOf" and isinstance(value, Decimal) and value.is_finite() and value:
                found.add(_digits(value))

    decoder = json.JSONDecoder(object_pairs_hook=note, parse_float=Decimal, parse_int=Decimal)
    try:
        decoder.raw_decode(schema.lstrip())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except InvalidOperation as error:  # 1e99999999999999999999
        raise ValueError("the exponent of a number is too large") from error
    return found


def _digits(value: Decimal) -> Decimal:
    """Return 25 for 0.25: the states are those of the number without its decimal point."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    whole = Decimal((0, digits, 0))
    # 1e300 has more states than anybody allows; its digits are not written out.
    return whole.scaleb(min(exponent, 10)) if exponent > 0 else whole

"""The base class of all request bodies, and the types of their fields."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

T = TypeVar("T")
MOST_DEPTH = 32  # of JSON that a client sends inside of a body
NEUTRAL: tuple[Any, ...] = (None, False, 0, "none", "auto", [], {}, ["text"], {"type": "text"})


def _only(allowed: Sequence[Any]) -> Callable[[T], T]:
    """Return a validator that refuses every other value by name."""

    def check(value: T) -> T:
        if value in allowed:
            return value
        raise ValueError("is not supported by this gateway: leave it out")

    return check


Neutral = Annotated[Any, AfterValidator(_only(NEUTRAL)), WithJsonSchema({"enum": list(NEUTRAL)})]
# Of these even 0 or false would mean something.
Null = Annotated[Any, AfterValidator(_only([None])), WithJsonSchema({"type": "null"})]
NullOrOne = Annotated[float | None, AfterValidator(_only([None, 1])), WithJsonSchema({"enum": [None, 1]})]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Text = Annotated[str, StringConstraints(min_length=1)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def _whole(value: Any) -> Any:
    # JSON knows one kind of number: some clients write 16 as 16.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


def whole_characters(value: Any) -> Any:
    """Return a value as it is; a text with half a character raises ValueError."""
    # JavaScript cuts emojis into halves, which no tokenizer takes.
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a character (a lone surrogate): send whole ones") from error
    return value


Prompt = Annotated[str, BeforeValidator(whole_characters)]


def first_keys(most: int) -> BeforeValidator:
    """Cut an object to one key more than it may have: each wrong one of 80,000 were an error of its own."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            return dict(islice(value.items(), most + 1))
        return value

    return BeforeValidator(cut)


def bounded(value: Any, most_characters: int | None = None) -> Any:
    """Return a JSON value as it is; one that is too deep or too long, or that JSON can't say, is a ValueError.

    Args:
        most_characters: of all its texts, names and numbers together.
    """
    left = math.inf if most_characters is None else most_characters
    open_values = [(value, 0)]
    while open_values:
        one, depth = open_values.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"is nested more than {MOST_DEPTH} levels deep")
        if isinstance(one, dict):
            open_values += [(inside, depth + 1) for pair in one.items() for inside in pair]
        elif isinstance(one, list):
            open_values += [(inside, depth + 1) for inside in one]
        elif isinstance(one, float) and not math.isfinite(one):
            raise ValueError("holds a number that JSON can't say")
        whole_characters(one)
        left -= len(one) if isinstance(one, str) else 1
        if left < 0:
            raise ValueError(f"has more than {most_characters:,} characters")
    return value


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts of a JSON value that is not deep, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inside in value.items():
            yield name
            yield from texts_in(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from texts_in(inside)


class Request(BaseModel):
    """A JSON body; an unknown key is refused, so that a typing slip can't hide."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_key_is_enough(cls, value: Any) -> Any:
        # An error for each of 80,000 keys takes two seconds, in which nobody else is answered.
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            names = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = next(name for name in value if name not in names)
            return {name: one for name, one in value.items() if name in names or name == unknown}
        return value

"""The base class of all request bodies, and the types of their fields."""

from collections.abc import Callable, Sequence
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

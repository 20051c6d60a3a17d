"""`suites/TENANT.yaml` and `suites/general.yaml`: what an adapter must go on doing, as data."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import regex
from pydantic import Field, StringConstraints, field_validator, model_validator

from lora_ops.settings.section import Section

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
ScoreName = Literal["exact_match", "token_f1", "chrf", "rouge_l"]
Opponent = Literal["production", "base"]
DEEPEST = 32
MOST_VALUES = 2000
"""Names and values of a JSON schema: more of them take longer than an answer is worth."""
MOST_COPIES = 100_000
"""Of the parts of a regular expression: a million takes seconds to compile, and more ends the process."""
_CALL = regex.compile(r"(?<!\\)(?:\\\\)*\(\?(?:R|[+-]?[0-9]+|&|P>)")
# A part of a pattern: an escaped character, a set, a repeat with its least and most, or any other character.
_ITEM = regex.compile(
    r"(?P<item>\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\{(?P<least>[0-9]*)(?P<most>,[0-9]*)?\}|.)", regex.DOTALL
)
# Their cost can't be bounded, or they reach beyond the suite.
UNREAD = ("$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor", "patternProperties")


def require_bounded(schema: dict[str, Any]) -> None:
    """Refuse a JSON schema whose judgement may take for ever or reach beyond the suite.

    Raises:
        ValueError: it is too large or nested too deeply, has a keyword that is not read, a pattern that does
            not compile, or a `$ref` that leaves its `$defs` or comes back to itself.
    """
    parts = schema.get("$defs", {})
    if not isinstance(parts, dict):
        raise ValueError("no JSON schema: $defs is no object")
    names = {f"#/$defs/{name}" for name in parts}
    left: list[tuple[Any, int]] = [(schema, 0)]
    values = 0
    while left:
        one, depth = left.pop()
        values += 1
        _require_json(one)
        if depth > DEEPEST or values > MOST_VALUES:
            raise ValueError(
                f"the JSON schema has more than {DEEPEST} levels or {MOST_VALUES} values: shorten it"
            )
        if isinstance(one, list):
            left += [(inside, depth + 1) for inside in one]
        elif isinstance(one, dict):
            left += [(inside, depth + 1) for inside in one.values()]
            unread = next((name for name in UNREAD if name in one), None)
            if unread:
                raise ValueError(f"the JSON schema has '{unread}', which is not read: write it without")
            if isinstance(one.get("pattern"), str):
                _require_pattern(one["pattern"])
            target = one.get("$ref")
            if isinstance(target, str) and target not in names:
                raise ValueError(
                    f"the JSON schema has '$ref: {target:.80}': only '#/$defs/NAME' of its own is read"
                )
    reached = {name: set(_refs(part)) for name, part in parts.items()}
    for start in reached:
        seen, open_names = set[str](), [start]
        while open_names:
            for name in reached[open_names.pop()] - seen:
                if name == start:
                    raise ValueError(f"the JSON schema's '$defs/{start}' refers to itself: write it out")
                seen.add(name)
                open_names.append(name)


def _require_json(value: Any) -> None:
    """Refuse what YAML has and JSON has not: it is lost where the suite is kept, or can't be kept.

    Raises:
        ValueError: a date, bytes, a set, a number that is not finite, or a key that is no text.
    """
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise ValueError(
                f"the JSON schema has the key {odd[0]!r:.80}, which is no text: write it in quotes"
            )
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the JSON schema has {value}, which no JSON has: write a number")
    elif not isinstance(value, str | int | float | list | None):
        raise ValueError(f"the JSON schema has {value!r:.80}, which no JSON has: write it in quotes")


def _refs(part: Any) -> Iterator[str]:
    """Yield the names in `$defs` that a part of a schema refers to; its depth is bounded."""
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and isinstance(part.get("$ref"), str):
        yield part["$ref"].removeprefix("#/$defs/")
    for one in inside:
        yield from _refs(one)


def _require_pattern(pattern: str) -> str:
    # Before it is compiled: no time limit stops the compiler, and some of these end the whole process.
    if _CALL.search(pattern):
        raise ValueError("the regular expression calls one of its groups, which is not read: write it out")
    if _copies(pattern) > MOST_COPIES:
        raise ValueError(
            f"the regular expression repeats its parts more than {MOST_COPIES:,} times, repeats inside repeats "
            "multiplied: write smaller ones"
        )
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    except RecursionError as error:
        raise ValueError("the regular expression is nested too deeply: shorten it") from error
    return pattern


def _copies(pattern: str) -> int:
    """Return how many items a compiler that writes out the least count of each repeat makes of a pattern."""
    sums, last = [0], 0
    for one in _ITEM.finditer(pattern):
        item, least, most = one["item"], one["least"], one["most"]
        if item == "(":
            sums.append(0)
            last = 0
        elif item == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif item == "+" or least is not None:
            count = 1 if item == "+" else int(least or 0)
            # `a{2,}` is written as `aaa*`, and `a{2}` as `aa`.
            times = max(1, count + (item == "+" or most is not None and count > 0))
            sums[-1] += last * (times - 1)
            last *= times
        elif item not in ("*", "?", "|"):
            last = 1
            sums[-1] += 1
    return sum(sums)


class Expect(Section):
    """What an answer must be; all that is named must hold. Case, spaces and composed letters are compared as
    written, except in `label`, `number` and `contains`.
    """

    label: str | None = Field(None, description="the label of params.yaml that the answer must mean")
    exact: str | None = Field(None, description="the whole answer, spaces at its ends aside")
    contains: tuple[Text, ...] = Field((), description="each of them, whatever the case")
    lacks: tuple[Text, ...] = Field((), description="none of them, whatever the case")
    regex: Annotated[str, StringConstraints(max_length=2000)] | None = Field(
        None, description="is found in the answer"
    )
    json_schema: dict[str, Any] | None = Field(None, description="the answer is JSON that this accepts")
    number: float | None = Field(None, description="the first number of the answer")
    tolerance: float = Field(0.0, ge=0, description="by which `number` may differ")
    max_words: int | None = Field(None, ge=0)
    max_characters: int | None = Field(None, ge=0)
    refuses: bool | None = Field(None, description="whether the answer must decline, or must not")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else _require_pattern(pattern)

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            # Imported here: most commands read params.yaml and no schema, and this takes them a quarter second.
            from jsonschema.exceptions import SchemaError
            from jsonschema.validators import Draft202012Validator

            try:
                require_bounded(schema)
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"no JSON schema: {error.message[:200]}") from error
        return schema

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, name) in (None, ()) for name in type(self).model_fields if name != "tolerance"):
            raise ValueError("this expects nothing, so every answer would be right")
        if self.tolerance and self.number is None:
            raise ValueError("tolerance needs a number")
        return self


class Score(Section):
    """How near an answer is to a reference, from 0 to 1."""

    metric: ScoreName
    reference: Annotated[str, StringConstraints(min_length=1, max_length=4000)]


class Turn(Section):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Case(Section):
    """One question and what its answer must be.

    Exactly one of `text`, `prompt` and `turns` asks: `text` as a row of the tenant, under its system prompt;
    `prompt` alone, outside the tenant's task; `turns` is a whole chat.
    """

    id: Name
    slice: Name
    text: Text | None = None
    prompt: Text | None = None
    turns: tuple[Turn, ...] = ()
    expect: Expect | None = None
    score: Score | None = None
    must_pass: bool = Field(False, description="a wrong answer fails the gate, whatever the other ones are")
    group: Name | None = Field(None, description="cases that are alike, such as wordings of one question")
    repeats: int = Field(1, ge=1, le=20, description="answers that are sampled; their mean is the score")
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int | None = Field(
        None, ge=1, le=512, description="default: evaluate.max_new_tokens for `text`, else 48"
    )

    @model_validator(mode="after")
    def _asks_once(self) -> Self:
        asked = [name for name in ("text", "prompt", "turns") if getattr(self, name)]
        if len(asked) != 1:
            found = " and ".join(asked) or "none of them"
            raise ValueError(f"a case asks by one of text, prompt and turns: it has {found}")
        if self.turns and self.turns[-1].role != "user":
            raise ValueError("the last of the turns is the user's, which the model answers")
        if (self.expect is None) == (self.score is None):
            raise ValueError("a case has either expect or score")
        if self.must_pass and self.expect is None:
            raise ValueError("must_pass needs expect: a score is neither right nor wrong")
        if self.repeats > 1 and not self.temperature:
            raise ValueError("repeats needs a temperature: at 0 all answers are the same")
        return self


class Slice(Section):
    """Cases that are compared together."""

    about: str = Field(min_length=1, description="what it guards, for whoever signs")
    margin: float = Field(0.1, gt=0, lt=1, description="by which the candidate's mean may be worse")
    gating: bool = Field(True, description="false: it is shown, and decides nothing")
    against: tuple[Opponent, ...] = Field(("production", "base"), min_length=1)
    least: float | None = Field(None, gt=0, le=1, description="of the mean, whatever the others answer")


class Suite(Section):
    """The cases of one tenant, by slice."""

    owner: str = Field(min_length=1, description="who answers for what it asks")
    held_out: dict[str, float] = Field(
        default_factory=dict,
        description="metric of evaluate.metrics -> margin against production on held-out rows",
    )
    slices: dict[Name, Slice] = Field(default_factory=dict)
    cases: tuple[Case, ...] = Field((), max_length=2000)

    @field_validator("held_out")
    @classmethod
    def _margins(cls, margins: dict[str, float]) -> dict[str, float]:
        wrong = [f"{metric} {margin:g}" for metric, margin in margins.items() if not 0 < margin < 1]
        if wrong:
            raise ValueError(f"a margin lies between 0 and 1, not {', '.join(wrong)}")
        return margins

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        twice = [name for name, count in Counter(case.id for case in self.cases).items() if count > 1]
        if twice:
            raise ValueError(f"the case id '{twice[0]}' stands twice: one of them would never be asked")
        asked: dict[str, str] = {}
        for case in self.cases:
            key = unicodedata.normalize("NFKC", case.model_dump_json(include={"text", "prompt", "turns"}))
            other = asked.setdefault(f"{key} {case.temperature}", case.id)
            if other != case.id:
                raise ValueError(f"the cases '{other}' and '{case.id}' ask the same: one question counts once")
        used = {case.slice for case in self.cases}
        unknown = sorted(used - self.slices.keys())
        if unknown:
            raise ValueError(f"a case names the slice '{unknown[0]}', which `slices` doesn't have")
        empty = sorted(self.slices.keys() - used)
        if empty:
            raise ValueError(f"the slice '{empty[0]}' has no case: it would guard nothing")
        # Here and not in the parts: suites that were asked before must be readable.
        shown = next((name for name, one in self.slices.items() if one.least and not one.gating), None)
        if shown:
            raise ValueError(f"the slice '{shown}' decides by its least and is not gating: remove one")
        asks_nothing = next((case.id for case in self.cases if case.expect and _finds_all(case.expect)), None)
        if asks_nothing:
            raise ValueError(
                f"the regex of the case '{asks_nothing}' is found in every answer: it asks nothing"
            )
        return self


def _finds_all(expect: Expect) -> bool:
    """Return whether a regular expression is found in answers that have nothing in common."""
    if expect.regex is None:
        return False
    try:
        return all(regex.search(expect.regex, answer, timeout=1) for answer in ("", "17", "zq", "–"))
    except TimeoutError:
        return False

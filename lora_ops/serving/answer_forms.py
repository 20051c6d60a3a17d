"""The two ways in which a request asks for the form of its answer: OpenAI's and vLLM's."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lora_ops.engines.protocol import Structure, one_of
from lora_ops.serving.request_fields import Request, Text


class JsonSchema(Request):
    """A schema as OpenAI wraps it; the answer always follows it, strict or not."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({"type": "object"}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Request):
    """OpenAI's way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_belongs_to_its_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is needed where type is json_schema, and nowhere else")
        return self

    @property
    def structure(self) -> Structure | None:
        """The form that the answer must have."""
        if self.type == "text":
            return None
        return _json(self.json_schema.schema_ if self.json_schema else {"type": "object"})


class StructuredOutputs(Request):
    """vLLM's way to ask for a form: exactly one of these."""

    choice: Annotated[list[Text], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    regex: Text | None = None
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of choice, regex, json, json_object and grammar, got {len(given)}")
        return self

    @property
    def structure(self) -> Structure:
        """The form that the answer must have."""
        if self.choice:
            return one_of(self.choice)
        if self.regex:
            return Structure("regex", self.regex)
        if self.grammar:
            return Structure("grammar", self.grammar)
        return _json({"type": "object"} if self.json_ is None else self.json_)


def _json(schema: dict[str, Any] | str) -> Structure:
    return Structure("json", schema if isinstance(schema, str) else json.dumps(schema))

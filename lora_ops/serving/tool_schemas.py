"""Tools in OpenAI's shape: what a chat offers to the model, and the calls that an earlier turn made."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, field_validator, model_validator

from lora_ops.serving.request_fields import Request, bounded, whole_characters

MAX_TOOLS = 128  # OpenAI's bound
MAX_CALLS = 128  # of one message
MAX_TOOLS_TEXT = 64 * 1024  # characters of all tools, as of an answer's form
CHOICES = ("none", "auto", "required")

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=200), BeforeValidator(whole_characters)]


class Function(Request):
    """A function that the model may call; its parameters are a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Request):
    """One tool; functions are all that there is."""

    type: Literal["function"]
    function: Function


def _few_tools(tools: Any) -> Any:
    """Refuse many or large tools unread; no tools at all are the same as none."""
    if isinstance(tools, list):
        if len(tools) > MAX_TOOLS:
            raise ValueError(f"has {len(tools):,} tools, and at most {MAX_TOOLS} are read")
        bounded(tools, MAX_TOOLS_TEXT)
    return tools or None


Tools = Annotated[
    Annotated[list[Tool], Field(fail_fast=True)] | None,
    BeforeValidator(_few_tools),
]


class NamedFunction(Request):
    """The function that must be called."""

    name: ToolName


class _ToolChoice(Request):
    """Whether the model may call a tool, must call one, or must call this one."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None

    @model_validator(mode="after")
    def _function_belongs_to_its_type(self) -> "_ToolChoice":
        if (self.type == "function") != (self.function is not None):
            raise ValueError("function is needed where type is function, and nowhere else")
        return self

    @property
    def forces(self) -> bool:
        """Whether the answer must be a call."""
        return self.type in ("required", "function")

    @property
    def as_json(self) -> str | dict[str, Any]:
        """It as OpenAI writes it."""
        return self.model_dump() if self.function else self.type


def _as_object(choice: Any) -> Any:
    return {"type": choice} if isinstance(choice, str) else choice


ToolChoice = Annotated[
    _ToolChoice,
    BeforeValidator(_as_object),
    WithJsonSchema({"anyOf": [{"enum": list(CHOICES)}, {"type": "object"}]}),
]


class CalledFunction(Request):
    """A function that was called, and its arguments as a JSON text."""

    name: ToolName
    arguments: str

    _arguments = field_validator("arguments", mode="before")(whole_characters)


class ToolCall(Request):
    """A call that an earlier answer made."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # of a streamed answer, which clients send back as they put it together


ToolCalls = Annotated[
    Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None,
    BeforeValidator(lambda calls: calls or None),
]

"""The messages of a chat in OpenAI's shape."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lora_ops.serving.request_fields import Neutral, Request, first_keys, whole_characters
from lora_ops.serving.tool_schemas import CallId, ToolCalls

MAX_MESSAGES = 1000
MAX_PARTS = 4000  # of all messages together
PARTS = ("content", "tool_calls")
MAX_COLUMNS = 1000  # as many as a source may have


class TextPart(Request):
    """A piece of a message; pictures and sound are refused."""

    type: Literal["text"]
    text: str

    _text = field_validator("text", mode="before")(whole_characters)


class Message(Request):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    columns: Annotated[dict[str, str], Field(max_length=MAX_COLUMNS), first_keys(MAX_COLUMNS)] | None = Field(
        None, description="of a user, instead of content: the values of the columns of the adapter's template"
    )
    name: str | None = None
    tool_calls: ToolCalls = Field(None, description="of an assistant: the calls that its answer made")
    tool_call_id: CallId | None = Field(None, description="of a tool: the call that its content answers")
    type: Literal["text"] | None = None  # lm-eval's
    # Clients send an answer's message back as they got it, with what the answer did not have as null.
    refusal: Neutral = None
    annotations: Neutral = None
    audio: Neutral = None
    function_call: Neutral = None

    _content = field_validator("content", "name", mode="before")(whole_characters)

    @field_validator("columns", mode="after")
    @classmethod
    def _whole_columns(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        for part in (*(columns or {}), *(columns or {}).values()):
            whole_characters(part)
        return columns

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or ())

    @model_validator(mode="after")
    def _only_an_answer_may_be_empty(self) -> "Message":
        if self.columns is not None and (self.role != "user" or self.content is not None):
            raise ValueError("columns stand in a user's message, and there instead of content")
        if self.content is None and self.columns is None and self.role != "assistant":
            raise ValueError(f"content of a {self.role}'s message must be a text, got null")
        return self

    @model_validator(mode="after")
    def _calls_have_their_roles(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls stand in an assistant's message")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id is needed in a tool's message, and nowhere else")
        return self

    @property
    def is_of_tools(self) -> bool:
        """Whether it calls tools, or is what one of them returned."""
        return self.role == "tool" or bool(self.tool_calls)


def _few_parts(messages: Any) -> Any:
    """Refuse a chat of very many parts unread: 40,000 in 1 MB kept the event loop for 0.2 s."""
    if isinstance(messages, list):
        contents = [one.get(name) for one in messages if isinstance(one, dict) for name in PARTS]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        if parts > MAX_PARTS:
            raise ValueError(
                f"the messages have {parts:,} parts and calls, and at most {MAX_PARTS:,} are read: join some"
            )
    return messages


Messages = Annotated[
    list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(_few_parts)
]

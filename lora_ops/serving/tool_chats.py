"""A chat with tools, as the engine behind gets it."""

import json
from collections.abc import Sequence
from typing import Any

from lora_ops.engines.protocol import Engine, ToolChat
from lora_ops.serving.errors import ApiError
from lora_ops.serving.message_schemas import Message
from lora_ops.serving.tool_schemas import Tool

SETTING = "serving.openai.tools"


def tool_chat(
    messages: Sequence[Message],
    turns: Sequence[tuple[str, str]],
    tools: Sequence[Tool] | None,
    engine: Engine,
    choice: str | dict[str, Any] = "auto",
    parallel: bool = True,
) -> ToolChat | None:
    """Return a chat that has something to do with tools; None: it has nothing.

    Args:
        turns: of its messages, after the adapter's own system prompt where there is one.

    Raises:
        ApiError: the engine has no tools.
    """
    if not tools and not any(one.is_of_tools for one in messages):
        return None
    if not engine.takes_tools:
        raise ApiError(
            400,
            "The engine of this gateway takes no tools, nor calls and answers of them: leave them out, or put "
            f"an engine that has them behind the gateway ({SETTING}).",
            code="unsupported",
            param="tools" if tools else "messages",
        )
    own = [None] * (len(turns) - len(messages))
    return ToolChat(
        messages=tuple(_message(*turn, sent) for turn, sent in zip(turns, [*own, *messages], strict=True)),
        tools=tuple(tool.model_dump(exclude_none=True) for tool in tools or ()),
        choice=choice,
        parallel=parallel,
    )


def _message(role: str, text: str, sent: Message | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": text}
    if sent and sent.tool_calls:
        message["tool_calls"] = [call.model_dump(exclude={"index"}) for call in sent.tool_calls]
    if sent and sent.tool_call_id:
        message["tool_call_id"] = sent.tool_call_id
        if sent.name:  # some templates show which tool it was
            message["name"] = sent.name
    return message


def tools_text(chat: ToolChat) -> str:
    """Return what a chat says of tools besides its turns: earlier calls, then the tools themselves."""
    calls = [call["function"] for one in chat.messages for call in one.get("tool_calls", ())]
    lines = [f"{call['name']} {call['arguments']}" for call in calls]
    return "\n".join([*lines, *(json.dumps(tool, ensure_ascii=False) for tool in chat.tools)])

"""A chat's messages as the turns that the base model's chat template takes."""

from collections.abc import Sequence
from typing import Literal

from lora_ops.serving.message_schemas import Message
from lora_ops.serving.router import Route
from lora_ops.templates import ContentIs, user_text

SystemPrompt = Literal["request", "adapter", "none"]
"""Whose system prompt a chat has."""


def chat_turns(
    messages: Sequence[Message], route: Route, content_is: ContentIs | None
) -> tuple[list[tuple[str, str]], SystemPrompt]:
    """Return the (role, text) turns of a chat, and whose system prompt they begin with.

    The adapter's own one comes first where the chat has none.

    Raises:
        NotThePrompt: a user's text is not what the adapter was trained on.
    """
    turns = [_turn(one, route, content_is) for one in messages]
    if any(role == "system" for role, _ in turns):
        return turns, "request"
    if route.system:
        return [("system", route.system), *turns], "adapter"
    return turns, "none"


def _turn(message: Message, route: Route, content_is: ContentIs | None) -> tuple[str, str]:
    if message.role != "user":
        return "system" if message.role == "developer" else message.role, message.text
    text = user_text(
        route.name,
        route.template,
        content=message.text if message.columns is None else None,
        columns=message.columns,
        content_is=content_is,
    )
    return "user", text

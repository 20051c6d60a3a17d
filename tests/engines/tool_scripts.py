"""How vLLM streams a chat with tools, as far as clients see it: scripts for `ScriptedServer`.

vLLM itself is in test_vllm.py.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from tests.engines.scripted_server import DONE, event

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "default": None}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time_of_day"}}
ARGUMENTS = '{"city": "Porto"}'


def call(index: int, name: str, arguments: str = ARGUMENTS) -> list[dict[str, Any]]:
    """The deltas of one call: id and name first, then its arguments in pieces."""
    first = {"name": name, "arguments": ""}
    begun = {"index": index, "id": f"call-{index}", "type": "function", "function": first}
    pieces = [arguments[at : at + 5] for at in range(0, len(arguments), 5)]
    told = [{"tool_calls": [{"index": index, "function": {"arguments": one}}]} for one in pieces]
    return [{"tool_calls": [begun]}, *told]


def events(deltas: list[dict[str, Any]], finish: str, *, logprobs: bool = False) -> list[bytes]:
    """The events of an answer, one token each; the last one has an end and nothing else."""
    named = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    told = {"content": [{**named, "top_logprobs": [named]}]} if logprobs else None
    made = [
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": usage(0)})
    ]
    for number, delta in enumerate([*deltas, {}], 1):
        choice = {"index": 0, "delta": delta, "logprobs": told}
        choice["finish_reason"] = finish if number > len(deltas) else None
        made.append(event({"choices": [choice], "usage": usage(number)}))
    return [*made, event({"choices": [], "usage": usage(len(deltas) + 1)}), DONE]


def usage(written: int) -> dict[str, int]:
    return {"prompt_tokens": 40, "completion_tokens": written, "total_tokens": 40 + written}


async def calls_tools(body: dict[str, Any]) -> AsyncIterator[bytes]:
    """Call each tool that is offered, or the one that is named; say what the last tool returned."""
    if "prompt" in body:
        yield event({"choices": [{"text": "a", "finish_reason": "stop"}]}) + DONE
        return
    last = body["messages"][-1]
    if last["role"] == "tool":
        said = [{"content": one} for one in ("It is ", last["content"])]
        made = events(said, "stop", logprobs=bool(body.get("logprobs")))
    else:
        choice = body.get("tool_choice", "none")
        names = [tool["function"]["name"] for tool in body.get("tools", ())]
        if isinstance(choice, dict):
            names = [choice["function"]["name"]]
        deltas = [delta for number, name in enumerate(names) for delta in call(number, name)]
        finish = "stop" if isinstance(choice, dict) else "tool_calls"
        made = events(deltas, finish, logprobs=bool(body.get("logprobs")))
    for one in made:
        yield one


def arguments_of(calls: list[Any]) -> list[dict[str, Any]]:
    """The arguments of an answer's calls, read as JSON."""
    return [json.loads(one.function.arguments) for one in calls]

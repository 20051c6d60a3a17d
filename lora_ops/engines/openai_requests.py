"""The bodies of requests to an OpenAI-compatible server."""

import json
from typing import Any

from lora_ops.engines.protocol import Generation, Sampling, Structure, Unsupported
from lora_ops.hashing import canonical, sha256_text
from lora_ops.small_files import parse_json

# Bytes of an answer's events: some for each token, more for one with its alternatives, and for what a server
# sends besides (comments that keep a connection open).
EVENT_BYTES = 4096
OTHER_BYTES = 2**20


def completion_body(generation: Generation, model: str | None) -> dict[str, Any]:
    """Return the body of /v1/completions.

    Raises:
        Unsupported: the answer's form is a schema, and no JSON.
    """
    sampling = generation.sampling
    body = {"model": model, "prompt": list(generation.prompt), **_sampling(sampling), **_salt(generation)}
    if sampling.logprobs is not None:
        body["logprobs"] = sampling.logprobs
    return body


def chat_body(generation: Generation, model: str | None) -> dict[str, Any]:
    """Return the body of /v1/chat/completions for a chat with tools.

    Raises:
        Unsupported: the answer's form is a schema, and no JSON.
    """
    chat, sampling = generation.chat, generation.sampling
    assert chat is not None
    body = {"model": model, "messages": list(chat.messages), **_sampling(sampling), **_salt(generation)}
    if chat.tools:  # vLLM refuses an empty list, and a choice among no tools
        body |= {
            "tools": list(chat.tools),
            "tool_choice": chat.choice,
            "parallel_tool_calls": chat.parallel,
        }
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return body


def encoded(body: dict[str, Any]) -> bytes:
    """Return a body as JSON.

    Raises:
        Unsupported: the answer's form has what JSON can't say: an infinite number or half a character.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unsupported(f"The answer's form can't be passed on: {error}") from error


def most_bytes(sampling: Sampling) -> int:
    """Return how many bytes the events of an answer may have."""
    return OTHER_BYTES + EVENT_BYTES * sampling.max_tokens * (1 + (sampling.logprobs or 0))


def _sampling(sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # Neutral values, too: vLLM takes what is missing from its model's generation config.
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.stop_token_ids:
        body["stop_token_ids"] = sorted(sampling.stop_token_ids)
    if sampling.min_tokens:
        body["min_tokens"] = sampling.min_tokens
    if sampling.structure:
        body["structured_outputs"] = _structured(sampling.structure)
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    return body


def _salt(generation: Generation) -> dict[str, str]:
    # Else vLLM's prefix cache would tell one tenant by its speed what another one asked. A salt has at most 128
    # characters there, and neither "/" nor "@".
    if not (generation.tenant or generation.cache_salt):
        return {}
    return {"cache_salt": sha256_text(canonical([generation.tenant, generation.cache_salt]))}


def _structured(structure: Structure) -> dict[str, Any]:
    """Return a form as vLLM and this gateway read it.

    Raises:
        Unsupported: it is a schema, and no JSON.
    """
    text = structure.text
    try:
        return {structure.kind: parse_json(text) if structure.kind in ("choice", "json") else text}
    except ValueError as error:
        raise Unsupported(f"The answer's form can't be read: {error}") from error

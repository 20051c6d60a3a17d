"""Responses in OpenAI's shape, as https://platform.openai.com/docs/api-reference describes them."""

from typing import Any, Literal

from pydantic import BaseModel

from lora_ops.engines.protocol import FinishReason

# What OpenAPI says of answers that are no JSON.
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
HTML: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {}}}}


class PromptTokens(BaseModel):
    """Of the tokens read, those that the engine had kept from an earlier prompt."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens | None = None


class Alternative(BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Alternative):
    """A token that stands there, and what else could have."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """One for each token of the answer."""

    content: list[ChatLogprob]


class CompletionLogprobs(BaseModel):
    """As the older endpoint has them: lists of the same length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"] = "assistant"
    content: str


class CalledFunction(BaseModel):
    """A function that the answer calls; its arguments are a JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the client should make, and send back what it returned."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class CallingMessage(BaseModel):
    """What the assistant said, if anything, and the tools that it calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCall]


class ChatChoice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage | CallingMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class Answer(BaseModel):
    """What every answer says; `model` is the exact version that answered."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatAnswer(Answer):
    """The response of /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    """The name of a called function, in its first part, and the next piece of its arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """What is new of one call; id and type come in its first part."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(BaseModel):
    """What is new in a streamed message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """What is new in one of `n` answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Answer):
    """One event of a streamed chat."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    """One answer, or what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionAnswer(Answer):
    """The response of /v1/completions, and one event of it when it is streamed."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenizeAnswer(BaseModel):
    """The response of /tokenize; `token_strs` are names in the vocabulary, where they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeAnswer(BaseModel):
    """The response of /detokenize."""

    prompt: str


class ModelCard(BaseModel):
    """One name that answers, as vLLM lists them: `root` is what it stands for, `parent` its base model.

    `template` makes a user's columns the text that the adapter was trained on.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    digest: str
    state: str | None
    template: str | None


class ModelList(BaseModel):
    """The response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """What went wrong, in one sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error's response."""

    error: ErrorBody

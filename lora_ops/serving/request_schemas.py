"""Requests in OpenAI's shape, as https://platform.openai.com/docs/api-reference describes them.

A parameter that this gateway can't honour is refused by name; it is never ignored, unless it changes no token.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from lora_ops.engines.protocol import Sampling
from lora_ops.settings.serving import ServingSettings

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 16


NEUTRAL: tuple[Any, ...] = (None, False, 0, "none", "auto", [], {}, ["text"], {"type": "text"})


def _neutral(value: Any) -> Any:
    if value in NEUTRAL:
        return value
    raise ValueError("is not supported by this gateway: leave it out")


Neutral = Annotated[Any, AfterValidator(_neutral), WithJsonSchema({"enum": list(NEUTRAL)})]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Request(BaseModel):
    """A JSON body; an unknown key is refused, so that a typing slip can't hide."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Request):
    """What a stream says beside the text (`continuous_usage_stats` is vLLM's)."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingRequest(Request):
    """What both endpoints take."""

    model: ModelName = Field(description="a tenant (finance), an exact version (finance@3), or the base model")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63 - MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # They change no token.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    # They would, or promise something that the gateway does not do.
    store: Neutral = None
    service_tier: Neutral = None
    frequency_penalty: Neutral = None
    presence_penalty: Neutral = None
    logit_bias: Neutral = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "SamplingRequest":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    def _sampling(self, max_tokens: int, logprobs: int | None, defaults: ServingSettings) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=max_tokens,
            temperature=defaults.default_temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
            logprobs=logprobs,
        )


def _whole_characters(value: Any) -> Any:
    # JavaScript cuts emojis into halves, which no tokenizer takes.
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a character (a lone surrogate): send whole ones") from error
    return value


class TextPart(Request):
    """A piece of a message; pictures and sound are refused."""

    type: Literal["text"]
    text: str

    _text = field_validator("text", mode="before")(_whole_characters)


class Message(Request):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    # Clients send an answer's message back as they got it, with what the answer did not have as null.
    refusal: Neutral = None
    annotations: Neutral = None
    audio: Neutral = None
    function_call: Neutral = None
    tool_calls: Neutral = None

    _content = field_validator("content", mode="before")(_whole_characters)

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingRequest):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Neutral = None
    tool_choice: Neutral = None
    response_format: Neutral = None
    functions: Neutral = None
    function_call: Neutral = None
    modalities: Neutral = None
    audio: Neutral = None
    prediction: Neutral = None
    reasoning_effort: Neutral = None
    verbosity: Neutral = None
    web_search_options: Neutral = None
    prompt_cache_retention: Neutral = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the client wants at most."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self, max_tokens: int, defaults: ServingSettings) -> Sampling:
        """How tokens are chosen."""
        return self._sampling(max_tokens, (self.top_logprobs or 0) if self.logprobs else None, defaults)


Text = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(SamplingRequest):
    """The body of /v1/completions."""

    prompt: (
        Text
        | TokenIds
        | Annotated[
            list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)
        ]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Neutral = None
    suffix: Neutral = None
    best_of: Literal[1] | None = None

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the client wants at most."""
        return self.max_tokens

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One prompt or many, as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]

    def sampling(self, max_tokens: int, defaults: ServingSettings) -> Sampling:
        """How tokens are chosen."""
        return self._sampling(max_tokens, self.logprobs, defaults)


class LoadRequest(Request):
    """The body of /v1/load_lora_adapter, as vLLM has it, whose controllers always send a path.

    The registry has the files, so the only path that is taken is the name itself.
    """

    lora_name: ModelName = Field(description="an exact version, such as finance@3")
    lora_path: str | None = Field(None, description="null, or the same as lora_name")
    load_inplace: Neutral = None

    @field_validator("lora_path")
    @classmethod
    def _is_the_name(cls, path: str | None, found: ValidationInfo) -> str | None:
        if path not in (None, found.data.get("lora_name")):
            raise ValueError("must be left out or be the same as lora_name: the registry has the files")
        return path


class UnloadRequest(Request):
    """The body of /v1/unload_lora_adapter, as vLLM has it; its number for an adapter means nothing here."""

    lora_name: ModelName
    lora_int_id: int | None = None

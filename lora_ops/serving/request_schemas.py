"""Requests in OpenAI's shape, as https://platform.openai.com/docs/api-reference describes them.

A parameter that this gateway can't honour is refused by name; it is never ignored, unless it changes no token.
"""

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lora_ops.engines.protocol import Sampling, Structure
from lora_ops.serving.answer_forms import ResponseFormat, StructuredOutputs
from lora_ops.serving.message_schemas import Messages
from lora_ops.serving.request_fields import (
    ModelName,
    Neutral,
    Null,
    NullOrOne,
    Penalty,
    Prompt,
    Request,
    Stop,
    TokenId,
    Whole,
    first_keys,
)
from lora_ops.serving.router import BASE
from lora_ops.serving.tool_schemas import ToolChoice, Tools
from lora_ops.settings.serving import ServingSettings
from lora_ops.templates import ContentIs

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_TOKEN_IDS = 1024
MAX_FORM = 64 * 1024  # characters


class StreamOptions(Request):
    """What a stream says beside the text (`continuous_usage_stats` is vLLM's)."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


class SamplingRequest(Request):
    """What both endpoints take."""

    model: ModelName = Field(description="a tenant (finance), an exact version (finance@3), or the base model")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63 - MAX_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
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
    service_tier: Literal["auto", "default"] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_TOKEN_IDS),
            first_keys(MAX_TOKEN_IDS),
        ]
        | None
    ) = None
    # vLLM's.
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)] | None
    ) = None
    min_tokens: Annotated[Whole, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    # They must not say anything else.
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: Literal[False] | None = None
    priority: Literal[0] | None = None
    detokenize: Literal[True] | None = None
    include_reasoning: bool | None = None
    length_penalty: NullOrOne = None
    use_beam_search: Neutral = None
    bad_words: Neutral = None
    return_token_ids: Neutral = None
    return_tokens_as_token_ids: Neutral = None
    mm_processor_kwargs: Neutral = None
    logits_processors: Neutral = None
    vllm_xargs: Neutral = None
    kv_transfer_params: Null = None
    allowed_token_ids: Null = None
    prompt_logprobs: Null = None
    truncate_prompt_tokens: Null = None
    request_id: Null = None

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the client wants at most."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _least_is_not_most(self) -> "SamplingRequest":
        if self.most_tokens is not None and (self.min_tokens or 0) > self.most_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, and at most {self.most_tokens} are asked for")
        return self

    @cached_property
    def structure(self) -> Structure | None:
        """The form that the answer must have; made once, since a large schema takes long."""
        asked = (self.response_format, self.structured_outputs)
        return next((one.structure for one in asked if one and one.structure), None)

    @model_validator(mode="after")
    def _one_form_decides_its_end(self) -> "SamplingRequest":
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format and structured_outputs both give the answer a form: send one")
        if self.structure and (self.min_tokens or self.ignore_eos):
            raise ValueError("an answer with a form ends where that does: leave out min_tokens and ignore_eos")
        if self.structure and len(self.structure.text) > MAX_FORM:
            raise ValueError(f"the answer's form has more than {MAX_FORM} characters")
        return self

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
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            structure=self.structure,
        )

    @property
    def named_tokens(self) -> list[int]:
        """Token ids that the request names outside its prompt."""
        return [*map(int, self.logit_bias or ()), *(self.stop_token_ids or ())]


class ChatRequest(SamplingRequest):
    """The body of /v1/chat/completions."""

    messages: Messages
    content_is: ContentIs | None = Field(
        None,
        description="of users' messages, where the adapter's template is more than one bare column: prompt, "
        "the whole prompt, or column, the value of its only column",
    )
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    tools: Tools = None
    tool_choice: ToolChoice | None = None
    functions: Neutral = None
    function_call: Neutral = None
    modalities: Neutral = None
    audio: Neutral = None
    prediction: Neutral = None
    # The template takes none, so a chat reads the same with each.
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    verbosity: Literal["medium"] | None = None
    add_special_tokens: Literal[False] | None = None
    add_generation_prompt: Literal[True] | None = None
    continue_final_message: Literal[False] | None = None
    echo: Literal[False] | None = None
    chat_template: Null = None
    chat_template_kwargs: Neutral = None
    documents: Neutral = None
    media_io_kwargs: Neutral = None
    web_search_options: Neutral = None
    prompt_cache_retention: Neutral = None

    @model_validator(mode="after")
    def _tools_can_be_chosen(self) -> "ChatRequest":
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if self.tool_choice and self.tool_choice.forces and not names:
            raise ValueError("tool_choice asks for a call, and there are no tools")
        wanted = self.tool_choice.function if self.tool_choice else None
        if wanted and wanted.name not in names:
            raise ValueError(f"tool_choice names '{wanted.name}', which is none of the tools")
        return self

    @model_validator(mode="after")
    def _calls_have_their_own_form(self) -> "ChatRequest":
        if self.tools and self.structure:
            raise ValueError("tools and a form of the answer exclude each other: leave one of them out")
        if self.tool_choice and self.tool_choice.forces and (self.min_tokens or self.ignore_eos):
            raise ValueError("a call that must be made ends by itself: leave out min_tokens and ignore_eos")
        return self

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the client wants at most."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self, max_tokens: int, defaults: ServingSettings) -> Sampling:
        """How tokens are chosen."""
        return self._sampling(max_tokens, (self.top_logprobs or 0) if self.logprobs else None, defaults)


# A list stops at its first wrong value: an error for each of 200,000 takes a second of everybody's time.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingRequest):
    """The body of /v1/completions."""

    prompt: (
        Prompt
        | TokenIds
        | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: Annotated[Whole, Field(ge=0, description="0 only with echo")] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: bool | None = Field(
        None, description="begin the answer with the prompt, and its logprobs with its tokens"
    )
    prompt_embeds: Null = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    add_special_tokens: Literal[True] | None = None

    @model_validator(mode="after")
    def _nothing_needs_an_echo(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1, unless echo is true")
        return self

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
        sampling = self._sampling(max_tokens, self.logprobs, defaults)
        return replace(sampling, prompt_logprobs=bool(self.echo) and self.logprobs is not None)


class TokenizeRequest(Request):
    """The body of /tokenize: either a prompt or a chat, each as its own endpoint would read it."""

    model: ModelName = Field(BASE, description="as for an answer; left out: the base model")
    prompt: Prompt | None = None
    messages: Messages | None = None
    content_is: ContentIs | None = None
    add_special_tokens: bool | None = Field(None, description="of a prompt, true where it is left out")
    return_token_strs: bool | None = None
    add_generation_prompt: Literal[True] | None = None
    continue_final_message: Literal[False] | None = None
    chat_template: Neutral = None
    chat_template_kwargs: Neutral = None
    media_io_kwargs: Neutral = None
    mm_processor_kwargs: Neutral = None
    tools: Tools = None

    @model_validator(mode="after")
    def _one_text(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        if self.tools and self.messages is None:
            raise ValueError("tools belong to messages")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens must be false with messages: the chat template adds them")
        return self


class DetokenizeRequest(Request):
    """The body of /detokenize."""

    model: ModelName = Field(BASE, description="as for an answer; left out: the base model")
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


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

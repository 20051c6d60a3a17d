"""One request: what a client asks for, who pays for it, what is streamed back, and what was counted of it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lora_ops.engines.protocol import Chunk, FinishReason, Generation, Sampling, ToolChat, Unsupported, one_of
from lora_ops.records.route import SEGMENT_PATTERN
from lora_ops.rollout.assignment import Requester, short_name
from lora_ops.serving.chat_turns import SystemPrompt
from lora_ops.serving.errors import ApiError
from lora_ops.serving.keys import Caller
from lora_ops.serving.label_cap import NOBODY
from lora_ops.serving.rate_limits import Place
from lora_ops.serving.router import OutOfService, Route

SEGMENT_HEADER = "x-lora-segment"
Priority = Literal["normal", "background"]
Breach = Literal["redacted", "blocked"]
SHADOW_COPY = "x-lora-ops-shadow"
"""The header of a copy that another gateway sends for a version in shadow."""


@dataclass(frozen=True)
class AnswerRequest:
    """A client's call, once it is routed.

    Attributes:
        model: the name that the client wrote.
        prompts: token ids of each prompt, none before it was read; every one of them gets `n` answers.
        text: the prompt as a person reads it, for the event log.
        given_from: where in `text` the client's own words begin, behind the system prompt of the version.
        user: the user or session that the client named; the event log gets a hash of it.
        unit: the user, session or key that keeps its version; the event log gets a hash of it, too.
        priority: `background` for a request of no client, such as a copy for another version. It runs in idle
            slots, ends where they are needed, and counts in no limit, event or metric of requests.
        place: the request's, among those that its tenant may have open; None: it was not counted.
        echoes: the text of each prompt, where the answer is to begin with it.
        contexts: the end of each prompt's text, where its answers go on with it and are looked at before they
            leave; empty in a chat.
        started: when the request arrived, by `time.perf_counter`.
        trace_parent: the W3C `traceparent` header, if there was one.
        chat: its messages and tools, where it has something to do with tools.
        read_again: gives the tokens of each prompt as another version would be asked, which may have its own
            system prompt and template; None where the tokens are the same, or the request has tools.
        is_copy: another gateway's copy of a request for a version in shadow; it is not copied again.
        route_again: gives the request by the route of this moment, read as that version would be asked; None
            where it stays on its version, such as one that a client named exactly.
        is_probe: a controller asks whether the version answers.
    """

    request_id: str
    endpoint: Literal["chat", "completions"]
    caller: Caller
    model: str
    route: Route
    prompts: tuple[tuple[int, ...], ...]
    n: int
    sampling: Sampling
    streamed: bool
    system_prompt: SystemPrompt
    text: str
    started: float
    given_from: int = 0
    trace_parent: str | None = None
    place: Place | None = None
    echoes: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    cache_salt: str | None = None
    user: str | None = None
    unit: str = ""
    priority: Priority = "normal"
    chat: ToolChat | None = None
    read_again: Callable[[Route], tuple[tuple[int, ...], ...]] | None = None
    is_copy: bool = False
    is_probe: bool = False
    route_again: "Callable[[AnswerRequest], Awaitable[AnswerRequest]] | None" = None

    def reads_alike(self, other: Route) -> bool:
        """Return whether another version would be asked with the same tokens.

        Its own system prompt or template makes another prompt of a chat.
        """
        ours = self.route
        same_system = self.system_prompt == "request" or ours.system == other.system
        return self.endpoint == "completions" or (ours.template == other.template and same_system)

    @property
    def tenant(self) -> str:
        """Who pays: the model's tenant; for the base model, that of the key."""
        return payer(self.route, self.caller)

    @property
    def is_of_user(self) -> bool:
        """Whether a user asks: neither a probe nor a copy, both of which name the exact version.

        Whoever names none is a user, whatever they send: nobody hides their requests from a canary's evidence.
        """
        return self.route.decision != "pinned" or not (self.is_copy or self.is_probe)

    @property
    def costs(self) -> list[float]:
        """Tokens that each answer may take, prompt included."""
        return [float(len(prompt) + self.sampling.max_tokens) for prompt in self.prompts for _ in range(self.n)]

    @property
    def named(self) -> int:
        """How many probabilities the whole answer may name: of each token, and of the alternatives to it."""
        if self.sampling.logprobs is None:
            return 0
        read = sum(map(len, self.prompts)) if self.sampling.prompt_logprobs else 0
        written = len(self.prompts) * self.sampling.max_tokens
        return (read + written) * self.n * (1 + self.sampling.logprobs)


@dataclass(frozen=True, slots=True)
class AnswerChunk:
    """What the engine adds to the answer with this index (prompts first, then `n`)."""

    index: int
    content: Chunk


@dataclass
class RequestStats:
    """What is known of a request when it has ended.

    Attributes:
        read: prompt tokens that were put before the engine, those of each answer.
        seconds: from the request's arrival to its last token.
        adapter_hit: whether its adapter was in memory when it asked for it; None: it never did, or needs none.
        texts: what was written, by the answer's index.
        moved: the request as it was answered, where it had moved to another version before it began.
        breach: what was done to an answer before it left, of several the most; None: nothing, or nobody looked.
    """

    read: int = 0
    seconds: float = 0.0
    generated: int = 0
    queue_seconds: float = 0.0
    device_seconds: float = 0.0
    adapter_hit: bool | None = None
    first_token: float | None = None
    per_token: list[float] = field(default_factory=list)
    finish: list[FinishReason] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    moved: AnswerRequest | None = None
    breach: Breach | None = None

    def waited(self, seconds: float) -> None:
        """Note how long an answer waited for its turn; the longest of a request counts."""
        self.queue_seconds = max(self.queue_seconds, seconds)

    def add(self, chunk: Chunk, seconds: float) -> None:
        """Count a chunk that came this long after the request."""
        if self.first_token is None and (chunk.tokens or chunk.written):
            self.first_token = seconds
        self.generated += chunk.tokens
        self.device_seconds += chunk.device_seconds
        if chunk.finish:
            self.finish.append(chunk.finish)


def generation(request: AnswerRequest, index: int, adapter: str | None) -> Generation:
    """Return what an engine is asked for the answer with this index; `adapter` is its name there."""
    sampling, (prompt, choice) = request.sampling, divmod(index, request.n)
    if sampling.seed is not None and choice:  # with the same seed all choices would be the same
        sampling = replace(sampling, seed=sampling.seed + choice)
    return Generation(
        f"{request.request_id}-{index}",
        request.prompts[prompt],
        adapter,
        sampling,
        request.tenant,
        request.cache_salt,
        request.chat,
    )


def named_user(headers: Mapping[str, str], *ids: str | None) -> str | None:
    """Return the user that a client names in its request's body, or else the session in its headers.

    A copy for a version in shadow keeps it for minutes, so that a long one is kept as its hash.
    """
    named = next((f"user {short_name(one)}" for one in ids if one), None)
    session = headers.get("x-session-id")
    return named or (f"session {short_name(session)}" if session else None)


def requester(headers: Mapping[str, str], caller: Caller, *ids: str | None) -> Requester:
    """Return for whom a request is: its unit is the user, else the session, else the key.

    Without any of them all requests are one unit: a gateway without keys is reached from its own machine alone.

    Args:
        ids: of the user, the one that counts first.

    Raises:
        ApiError: its segment is none that a route can name.
    """
    segment = headers.get(SEGMENT_HEADER)
    if segment is not None and not re.fullmatch(SEGMENT_PATTERN, segment):
        raise ApiError(
            400,
            f"The header {SEGMENT_HEADER} must be 1 to 64 letters, digits, dots, '-' or '_', "
            f"got '{segment[:80]}'.",
            code="invalid_segment",
            param=SEGMENT_HEADER,
        )
    unit = named_user(headers, *ids) or f"key {caller.key}"
    return Requester(unit, next((one for one in ids if one), None), segment)


def payer(route: Route, caller: Caller) -> str:
    """Return the tenant whose limits a request counts against."""
    return route.tenant or caller.tenant or NOBODY


def held_to_labels(sampling: Sampling, route: Route, *, tools: bool) -> Sampling:
    """Return `sampling` for a tenant with `labels_only`: the answer is a label, whatever the client asks for.

    Only `max_tokens` can cut a label short, and `finish_reason` says `length` then.

    Args:
        tools: the request has something to do with tools.

    Raises:
        Unsupported: the request wants another form or tools, or an answer that ends elsewhere than at a
            label's end.
        OutOfService: the adapter was trained for no labels.
    """
    setting = f"serving.tenants.{route.tenant}.labels_only"
    ends_elsewhere = sampling.stop or sampling.stop_token_ids or sampling.min_tokens or sampling.ignore_eos
    other = sampling.structure not in (None, one_of(route.labels))
    if other or ends_elsewhere or tools:
        raise Unsupported(
            f"'{route.tenant}' answers with its labels alone ({setting}): leave out tools, response_format, "
            "structured_outputs, stop, stop_token_ids, min_tokens and ignore_eos."
        )
    if not route.labels:
        raise OutOfService(f"{route.name} was trained for no labels, and {setting} holds it to labels.")
    return replace(sampling, structure=one_of(route.labels))

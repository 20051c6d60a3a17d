"""`serving` of params.yaml."""

from typing import Literal

from pydantic import ByteSize, Field

from lora_ops.settings.section import FolderPath, Section, TenantName
from lora_ops.templates import ContentIs


class TorchEngineSettings(Section):
    """The embedded engine; see `lora_ops.engines.torch_engine`."""

    max_batch: int = Field(16, ge=1, description="requests that are computed together")
    kv_tokens: int | None = Field(
        None,
        ge=64,
        description="tokens that the KV cache holds; None: 1 GiB of them, on a GPU what "
        "gpu_memory_utilization leaves",
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of a GPU's memory for base model, adapters, KV cache and steps, what other "
        "processes have included",
    )
    prefill_chunk: int | None = Field(None, ge=1, description="prompt tokens that one step reads")
    threads: int | None = Field(None, ge=1, description="CPU threads; None leaves it to torch")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first GPU, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the base model's weights; auto: bfloat16 on a GPU that has it, and on a CPU where "
        "base_model.dtype keeps them so; else float32",
    )
    adapter_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of adapters in memory; auto: bfloat16 where their file is; bfloat16 rounds all"
    )


class OpenAIEngineSettings(Section):
    """An OpenAI-compatible server behind the gateway: vLLM, SGLang, or another gateway."""

    url: str = Field("http://127.0.0.1:8001", description="without /v1")
    model: str | None = Field(None, description="its name for the base model; None takes its first one")
    api_key_env: str = Field(
        "UPSTREAM_API_KEY", description="environment variable with its key, if it wants one"
    )
    adapters: Literal["path", "name"] = Field(
        "path", description="path: it loads a folder that it sees too (vLLM); name: it has our registry"
    )
    tools: bool = Field(
        False,
        description="it takes tools and finds calls in answers: vLLM started with --enable-auto-tool-choice "
        "and a --tool-call-parser",
    )
    device: Literal["cpu", "gpu"] = Field("gpu", description="what it runs on, for `lora-ops cost`")
    devices: float = Field(
        1,
        gt=0,
        description="how many it runs on; where two gateways share it, each names its part",
    )
    silence_seconds: float = Field(
        120, gt=0, description="how long it may say nothing before or in an answer; then the answer fails"
    )


class TenantServing(Section):
    """What one tenant may use, and what is kept of its traffic; None is without limit."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="prompt and answer together")
    concurrency: int | None = Field(None, ge=1, description="requests at the same time, waiting ones included")
    share: float = Field(1.0, gt=0, description="its part of a busy gateway, beside the others' shares")
    labels_only: bool = Field(
        False, description="answer with one of the labels that the adapter was trained for, and nothing else"
    )
    on_breach: Literal["flag", "redact", "block"] = Field(
        "flag",
        description="what becomes of an answer with an identifier: flag, it leaves as it is and the event log "
        "counts it; redact, the identifier is replaced; block, the answer ends, as it does after an insult",
    )
    content_is: ContentIs | None = Field(
        None,
        description="what a user's message is to a template of more than one bare column, where the request "
        "doesn't say: prompt, the whole of it, or column, the value of its only one; None: refused",
    )
    keep_text: bool = Field(False, description="keep prompts and answers, redacted, in the event log")
    keep_ngrams: bool = Field(
        True, description="keep hashed counts of prompts' letters, so that drift of prompts is seen"
    )


class EventSettings(Section):
    """When the event log begins a new file, and how long old ones stay."""

    rotate_bytes: ByteSize = Field(ByteSize(64 * 2**20), ge=1024)
    rotate_seconds: int = Field(3600, ge=1)
    keep_days: int = Field(90, ge=1)


class UsageSettings(Section):
    """How often the usage log says that the gateway is up."""

    heartbeat_seconds: float = Field(
        60, gt=0, le=3600, description="between two of its lines; a killed gateway loses no more than that"
    )


class ServingSettings(Section):
    """The gateway; see `lora_ops.serving`."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    path: FolderPath = Field(".serving", description="folder for API keys and the event log")
    engine: Literal["torch", "openai"] = "torch"
    torch: TorchEngineSettings = TorchEngineSettings()
    openai: OpenAIEngineSettings = OpenAIEngineSettings()
    require_keys: bool = Field(False, description="refuse requests even while no key was ever created")
    allow_candidates: bool = Field(False, description="serve what nobody has approved yet")
    warm: tuple[str, ...] = Field((), description="tenants or versions that stay in memory")
    warm_recent: int = Field(2, ge=0, description="this many of the busiest adapters are evicted last")
    adapter_memory: ByteSize = Field(ByteSize(2**30), ge=1, description="for all loaded adapters together")
    max_running: int = Field(16, ge=1, description="answers that are generated at the same time")
    max_waiting: int = Field(64, ge=0, description="answers that wait for their turn")
    queue_timeout_seconds: float = Field(30, gt=0)
    request_timeout_seconds: float = Field(300, gt=0)
    drain_timeout_seconds: float = Field(30, gt=0, description="for what runs, at shutdown and unload")
    not_ready_seconds: float = Field(
        0, ge=0, description="at shutdown, how long /ready says so before the port closes"
    )
    body_timeout_seconds: float = Field(10, gt=0)
    body_limit: ByteSize = Field(ByteSize(2**20), ge=1024)
    default_max_tokens: int = Field(256, ge=1)
    default_temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy, as 03_evaluate measured")
    metric_labels: int = Field(
        1000,
        ge=1,
        description="adapters, and tenants, that have series of their own in /metrics; others share `other`",
    )
    traces: str | None = Field(None, description="OTLP/HTTP endpoint for OpenTelemetry traces")
    events: EventSettings = EventSettings()
    usage: UsageSettings = UsageSettings()
    tenants: dict[TenantName, TenantServing] = Field(default_factory=dict)

    def tenant(self, name: str) -> TenantServing:
        """What is set for a tenant, else the defaults."""
        return self.tenants.get(name) or TenantServing()

    def content_is(self, tenant: str | None) -> ContentIs | None:
        """What the text of a tenant's users is where a request doesn't say; of the base model's: None."""
        return self.tenant(tenant).content_is if tenant else None

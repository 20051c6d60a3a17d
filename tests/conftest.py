"""The parts that the tests share: a tiny random base model, and copies of the repository to break."""

import atexit
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from tests.wandb_server import WandbServer

ROOT = Path(__file__).resolve().parent.parent
FORKED = ROOT / "tests/forked"
SAMPLE_TENANTS = ("finance", "healthcare", "media", "publishing")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What `make test-fast` leaves out: what starts kernels, gateways, browsers or many processes, what takes a
# version through its life in a registry, and the longest of the others, so that the rest takes little more than
# two minutes on two quiet cores.
SLOW = (
    "costs/test_archive.py",
    "datasets/test_near_duplicates.py",
    "datasets/test_sources.py",
    "datasets/test_split.py",
    "detectors/test_classifier.py",
    "detectors/test_identifiers.py",
    "detectors/test_measure.py",
    "detectors/test_streamed.py",
    "engines/",
    "evaluation/test_answers.py",
    "gates/review/test_notebook.py",
    "gates/test_commands.py",
    "gates/test_held_out.py",
    "gates/test_paired.py",
    "gates/test_policy_answers.py",
    "monitoring/test_drift.py",
    "monitoring/test_kpi_commands.py",
    "monitoring/test_kpi_uplift.py",
    "monitoring/test_latency.py",
    "monitoring/test_live.py",
    "monitoring/test_observing.py",
    "monitoring/test_page.py",
    "monitoring/test_rules.py",
    "pipeline/",
    "registry/",
    "rollout/",
    "serving/",
    "tracking/",
    "training/",
    "test_chat.py",
    "test_ci.py",
    "test_cli.py",
    "test_docs.py",
    "test_escaping.py",
    "test_exit_codes.py",
    "test_gpu.py",
    "test_incidents.py",
    "test_jupyter.py",
    "test_notebooks.py",
    "test_pipeline.py",
    "test_processes.py",
    "test_registration.py",
    "test_tenants.py",
    "test_validation.py",
    "test_weights_digest.py",
)

# What takes a worker longest begins first, so that at the end no worker is at it while the others have nothing.
FIRST = (
    "pipeline/",
    "test_ci.py",
    "test_docs.py",
    "registry/test_holds.py",
    "registry/test_shared.py",
    "tracking/",
    "training/",
    "test_registration.py",
    "test_incidents.py",
    "rollout/test_benchmark.py",
    "rollout/test_with_gateway.py",
    "monitoring/test_live.py",
    "registry/",
    "serving/",
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Private keys of registries, which must not be made in the real home.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="lora-ops-config-")
os.environ.pop("LORA_OPS_SIGNING_KEY", None)
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# Two workers share the cores, and more threads do nothing for a tiny model.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@cache
def has_gpu() -> bool:
    """Return whether torch finds a GPU. Importing torch takes seconds, which most test files don't need."""
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what `SLOW` lists, skip what needs a GPU where torch finds none, and begin with `FIRST`."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return next((number for number, first in enumerate(FIRST) if name.startswith(first)), len(FIRST))

    items.sort(key=place)
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.path.relative_to(ROOT / "tests").as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def make_tiny_base(folder: Path) -> Path:
    """A Llama with two layers of 32 random features, with a byte-level tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["Name the merchant category. Lodging Airlines negative neutral"], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            eos_token_id=wrapped.eos_token_id,
            pad_token_id=wrapped.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a user's local folder would hold it."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "source")


@pytest.fixture(scope="session")
def tiny_base(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as the base_model stage leaves it."""
    return make_base(tiny_source, tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def folding_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokenizer folds full-width letters to plain ones, and finds control tokens in these."""
    from tokenizers import AddedToken, normalizers

    from lora_ops.loading import load_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "folding"
    shutil.copytree(tiny_base, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    for token in ("<|im_start|>", "<|im_end|>"):
        tokenizer.backend_tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=True)])
    tokenizer.save_pretrained(folder)
    record_base(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bf16_base(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with `base_model.dtype: bfloat16`."""
    return make_base(tiny_source, tmp_path_factory.mktemp("tiny") / "base", dtype="bfloat16")


def make_base(source: Path, folder: Path, **chosen: Any) -> Path:
    """Make a base model from a folder, and return where it is."""
    from lora_ops.base_model import make_base_model
    from lora_ops.settings.base_model import BaseModelSettings

    settings = BaseModelSettings(id="tiny-random", source="folder", revision="0", path=str(source), **chosen)
    make_base_model(settings, folder, folder.parent / "raw", folder.parent)
    return folder


def record_base(folder: Path) -> None:
    """Let a base model's record name the weights and other files that were put into its folder."""
    from lora_ops.records.base_model import read_base_model
    from lora_ops.weights_digest import file_digests, weights_sha256

    record = read_base_model(folder).model_copy(update={"files": file_digests(folder)})
    if any(folder.glob("*.safetensors")):  # else only the tokenizer is read
        record = record.model_copy(update={"sha256": weights_sha256(folder)})
    (folder / "base_model.json").write_text(record.to_json())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of every file that git would commit, with params.yaml as it is."""
    return copy_repository(tmp_path / "repository")


def copy_repository(target: Path) -> Path:
    """Copy what git would commit to `target`, as a git repository of its own."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    write_params(target, {})
    git = ["git", "-C", str(target), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "a copy"], check=True)
    return target


def commit_all(folder: Path) -> None:
    """Make `folder` a repository whose last commit has its files as they are."""
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (("init", "--quiet"), ("add", "params.yaml"), ("commit", "--quiet", "--message=as it works")):
        subprocess.run([*git, *words], check=True)


def small_clone(folder: Path) -> Path:
    """Make `folder` what commands take for a clone: settings and owners, and no stage. Return it."""
    folder.mkdir(exist_ok=True)
    for name in ("params.yaml", "owners.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / "dvc.yaml").write_text("stages: {}\n")
    return folder


WRITTEN: dict[str, str] = {}
"""What `write_params` wrote for which values: a round trip takes a quarter of a second."""


def _params_text(values: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.width = 112
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    params = yaml.load(text)
    tenants = params["tenants"]
    missing = [name for name in SAMPLE_TENANTS if name not in tenants]
    for name in missing:
        tenants[name] = next(iter(tenants.values()))
    for where, value in values.items():
        *parents, last = where.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        section[last] = value
    if not missing and not values:
        return text
    written = io.StringIO()
    yaml.dump(params, written)
    return written.getvalue()


def write_params(folder: Path, values: dict[str, Any]) -> Path:
    """Write the repository's params.yaml to `folder`, with `values` such as `tenants.finance.train.rank`.

    Nothing is checked. The tests name the sample tenants: another tenant stands in for one that was removed.
    """
    known = repr(values)
    if known not in WRITTEN:
        WRITTEN[known] = _params_text(values)
    (folder / "params.yaml").write_text(WRITTEN[known], encoding="utf-8")
    return folder


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment that the tests run in, its output kept."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **environment}
    environment.pop("LORA_OPS_ROOT", None)
    # A test that logged in this process left its W&B service there. What is run here starts one of its own, or
    # a killed run would stay "in use" in that service.
    environment.pop("WANDB_SERVICE", None)
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment
    )


def run_forked(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose `lora-ops`, in scripts too, is forked with its imports done; see tests/forked.

    Not for a test of how a process starts, or of its imports, limits, parents or death.
    """
    path = os.pathsep.join(map(str, (FORKED, Path(sys.executable).parent, os.environ["PATH"])))
    return run(*command, cwd=cwd, **{"PATH": path, "FORKED_LORA_OPS": _forking(), **environment})


@cache
def _forking() -> str:
    """Start the server that forks `lora-ops`, and return the path of its socket. It ends with this process."""
    place = Path(tempfile.mkdtemp(prefix="forked-", dir="/tmp")) / "socket"  # a long path is no socket's
    atexit.register(shutil.rmtree, place.parent, ignore_errors=True)
    # -P: its own folder has a `lora-ops`, and tests/ has folders of the names of packages.
    command = [sys.executable, "-P", FORKED / "server.py", place]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.communicate)  # which closes its standard input
    assert server.stdout and server.stdout.readline() == b"listens\n"
    return str(place)


@pytest.fixture(scope="session")
def _wandb(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[WandbServer]":
    """One W&B on loopback for all tests, and the real client pointed at it, which keeps its first settings."""
    import wandb

    from tests import wandb_server

    folder = str(tmp_path_factory.mktemp("wandb"))
    with pytest.MonkeyPatch.context() as patch, wandb_server.serving() as server:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", wandb_server.API_KEY)
        for place in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{place}_DIR", folder)
        yield server
        wandb.teardown()

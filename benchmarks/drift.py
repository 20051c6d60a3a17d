"""How often the drift check fires where something changed, and where nothing did, beside significance alone.

A tiny base model is trained once. Each seed draws rows of a made source, trains a reference adapter, and
measures it on held-out rows. Then one thing is changed and the same rows are measured again. Every adapter is
trained by this project's own loop and measured by its own engine.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from scipy.stats import ks_2samp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_ops.base_model import make_base_model
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.evaluation.inference import wilson
from lora_ops.hashing import sha256_text
from lora_ops.loading import load_tokenizer
from lora_ops.monitoring.drift_measurement import ADAPTER, Measurement, Probe, Side, running
from lora_ops.monitoring.drift_tests import Shift, shifts, tested, verdict
from lora_ops.prompts import render_example
from lora_ops.records.drift import DriftMetricName, MeasuredFacts
from lora_ops.records.example import Example
from lora_ops.settings.base_model import BaseModelSettings
from lora_ops.settings.drift import DriftSettings
from lora_ops.settings.train import TrainSettings
from lora_ops.training.loop import train

SYSTEM = "Name the kind."
LABELS = ("rail", "food", "health", "sport")
WORDS = 9  # of each label
TRAIN_ROWS, VALIDATION_ROWS, DRIFT_ROWS = 384, 16, 60
BASE_STEPS = 400
RECIPE = TrainSettings(
    rank=8,
    alpha=16,
    dropout=0.0,
    learning_rate=5e-3,
    epochs=5,
    batch_size=32,
    seed=0,
    checkpoint_every=1000,
    validate_every=1000,
)
SILENT = ("the same weights", "weights of the base in bfloat16", "an engine without its C code")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KS_LEVEL, KS_SHARE = 0.05, 0.5
PSI_LIMIT = 0.1


def word(generator: random.Random) -> str:
    """Return a made word of three syllables."""
    return "".join(generator.choice("bdfgklmnprstvz") + generator.choice("aeiou") for _ in range(3))


def vocabulary(version: int) -> dict[str, list[str]]:
    """Return the words of each label in a version of the source.

    As a code list is revised: in the second version a third of each label's words is new, and a third belongs
    to the next label.
    """
    generator = random.Random(0)
    words = {label: [word(generator) for _ in range(WORDS)] for label in LABELS}
    if version == 1:
        return words
    third = WORDS // 3
    moved = {label: words[LABELS[place - 1]][:third] for place, label in enumerate(LABELS)}
    new = {label: [word(generator) for _ in range(third)] for label in LABELS}
    return {label: words[label][2 * third :] + moved[label] + new[label] for label in LABELS}


def make_rows(tokenizer: Any, seed: int, rows: int, *, version: int = 1, flipped: float = 0.0) -> list[Example]:
    """Return rows of the source: three words of a label among two common ones; some labels are wrong."""
    generator = random.Random(f"{seed} {rows}")
    words, common = vocabulary(version), [word(random.Random(f"common {place}")) for place in range(20)]
    found = []
    for row in range(rows):
        label = generator.choice(LABELS)
        said = generator.sample(words[label], 3) + generator.sample(common, 2)
        generator.shuffle(said)
        if generator.random() < flipped:
            label = generator.choice([one for one in LABELS if one != label])
        prompt, completion = render_example(tokenizer, " ".join(said), label, SYSTEM)
        found.append(
            Example(
                id=str(row),
                group=str(row),
                text=" ".join(said),
                target=label,
                prompt=prompt,
                completion=completion,
            )
        )
    return found


def make_base(folder: Path) -> Path:
    """Train a base model that writes one of the labels by chance, and return its folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [" ".join([*LABELS, SYSTEM, *(one for words in vocabulary(1).values() for one in words)])]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    wrapped.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=wrapped.eos_token_id,
            pad_token_id=wrapped.pad_token_id,
        )
    )
    rows = make_rows(wrapped, -1, 2000, flipped=1 - 1 / len(LABELS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = random.Random(0)
    for _ in range(BASE_STEPS):
        batch = wrapped(
            [one.prompt + one.completion for one in generator.sample(rows, 16)],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "source")
    wrapped.save_pretrained(folder / "source")
    settings = BaseModelSettings(id="tiny", source="folder", revision="0", path=str(folder / "source"))
    make_base_model(settings, folder / "base", folder / "raw", folder)
    return folder / "base"


def make_adapter(
    base: Path, folder: Path, rows: Sequence[Example], held_out: Sequence[Example], seed: int
) -> Path:
    """Train an adapter by this project's own loop, unless it is there, and return its folder."""
    if (folder / "adapter").is_dir():
        return folder / "adapter"
    recipe = RECIPE.model_copy(update={"seed": seed})
    digest = sha256_text("".join(one.model_dump_json() for one in rows))
    train(
        folder.name,
        recipe,
        base,
        rows,
        held_out,
        digest,
        folder / "adapter",
        folder / "report",
        folder / "kept",
    )
    return folder / "adapter"


def corrupted(adapter: Path, folder: Path, seed: int) -> Path:
    """Write an adapter of which one value in twenty was redrawn, five times as large, and return its folder."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        hit = torch.rand(tensor.shape, generator=generator) < 0.05
        noise = torch.randn(tensor.shape, generator=generator) * 5 * tensor.float().std()
        tensors[name] = torch.where(hit, noise.to(tensor.dtype), tensor)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


class Probes(NamedTuple):
    """Engines of one base model that measure: as it is served, rounded, and without a compiler."""

    usual: Probe
    rounded: Probe
    without_compiler: Probe


@contextmanager
def started(base: Path) -> Iterator[Probes]:
    """Start all engines, and stop them at the end."""

    def engine(**options: Any) -> TorchEngine:
        return TorchEngine(base, kv_tokens=2048, threads=1, **options)

    with ExitStack() as stack:
        usual = stack.enter_context(running(engine(), base))
        rounded = stack.enter_context(running(engine(dtype="bfloat16"), base))
        with without_compiler():
            slow = stack.enter_context(running(engine(), base))
        yield Probes(usual, rounded, slow)


def measure(
    probe: Probe,
    adapter: Path,
    prompts: Sequence[Sequence[int]],
    named: Mapping[str, Side] | None = None,
    *,
    version: str = "",
) -> Measurement:
    """Return what an adapter and its base say to prompts.

    Args:
        version: what the adapter was trained as: of another one states are not judged.
    """
    sides = probe.measure(adapter, None, prompts, DriftSettings().tokens, named)
    nothing = sha256_text("")
    facts = MeasuredFacts(
        tenant="tiny",
        adapter="tiny@1",
        content_digest=sha256_text(version),
        rows=tuple(map(str, range(len(prompts)))),
        set_sha256=nothing,
        prompts_sha256=nothing,
        engine="torch",
        machine="",
        base_model_sha256=nothing,
        base_revision="0",
        measured_at=datetime.now(UTC),
    )
    return Measurement(facts, sides)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let engines that start meanwhile find a compiler that fails."""
    before = os.environ.get("CC")
    os.environ["CC"] = "false"
    try:
        yield
    finally:
        os.environ.pop("CC")
        if before is not None:
            os.environ["CC"] = before


def columns_drift(before: Measurement, now: Measurement) -> float:
    """Return the share of columns whose two samples differ by a Kolmogorov-Smirnov test.

    That is what Evidently's DataDriftPreset does by default with numerical columns of up to 1,000 rows. Its
    verdict on all of them is a share of at least 0.5.
    """
    one, other = before.sides[ADAPTER].states.astype(float), now.sides[ADAPTER].states.astype(float)
    return float(np.mean([ks_2samp(*pair).pvalue < KS_LEVEL for pair in zip(one.T, other.T, strict=True)]))


def stability(before: Measurement, now: Measurement) -> float:
    """Return the population stability index of the likeliest tokens; from 0.1 on it is said to have shifted."""
    tops = [
        np.take_along_axis(one.sides[ADAPTER].tokens, one.sides[ADAPTER].logprobs.argmax(1)[:, None], 1)[:, 0]
        for one in (before, now)
    ]
    shares = [
        np.array([np.mean(top == token) for token in np.unique(np.concatenate(tops))]).clip(1e-4)
        for top in tops
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def scenarios(
    base: Path, folder: Path, seed: int, probes: Probes
) -> Iterator[tuple[str, Measurement, Measurement]]:
    """Yield each change with the measurement before it and after it."""
    tokenizer = load_tokenizer(base)
    rows = partial(make_rows, tokenizer, seed)
    held_out = rows(VALIDATION_ROWS)
    prompts = tokenizer([one.prompt for one in rows(DRIFT_ROWS)], add_special_tokens=False)["input_ids"]
    clean = make_adapter(base, folder / "clean", rows(TRAIN_ROWS), held_out, seed)
    before = measure(probes.usual, clean, prompts)

    def after(adapter: Path, probe: Probe = probes.usual) -> Measurement:
        return measure(probe, adapter, prompts, before.sides)

    def after_training(name: str, rows: Sequence[Example], seed: int) -> Measurement:
        made = make_adapter(base, folder / name, rows, held_out, seed)
        return measure(probes.usual, made, prompts, before.sides, version=name)

    yield SILENT[0], before, after(clean)
    yield SILENT[1], before, after(clean, probes.rounded)
    yield SILENT[2], before, after(clean, probes.without_compiler)
    yield "5 % of the weights corrupted", before, after(corrupted(clean, folder / "corrupted", seed))
    yield "another seed of training", before, after_training("again", rows(TRAIN_ROWS), seed + 1000)
    for share in (0.1, 0.3):
        wrong = rows(TRAIN_ROWS, flipped=share)
        yield f"{share:.0%} of the labels flipped", before, after_training(f"flipped-{share}", wrong, seed)
    revised = rows(TRAIN_ROWS, version=2)
    yield "another version of the source", before, after_training("revised", revised, seed)


def main() -> None:
    """Print the rates of all rules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--folder", type=Path, help="where base and adapters are kept, and used again; default: a temporary one"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        base = folder / "base"
        base = base if base.is_dir() else make_base(folder)
        Console(width=160).print(rates(base, folder, given.seeds))


def rates(base: Path, folder: Path, seeds: int) -> Table:
    """Return a table of how often each rule fires on each change, with 95 % intervals (Wilson, 1927)."""
    settings = DriftSettings()
    fired: dict[str, dict[str, list[bool]]] = {}
    sizes: dict[str, list[dict[DriftMetricName, Shift]]] = {}
    with started(base) as probes:
        for seed in range(seeds):
            for name, before, now in scenarios(base, folder / f"seed-{seed}", seed, probes):
                moved = shifts(before, now, settings)
                (metrics,) = tested([moved], settings.alpha)
                said = verdict(metrics, settings.alpha)
                found = {
                    "drifted": said == "drifted",
                    "cannot tell": said == "cannot tell",
                    "significance only": any(one.p_corrected < settings.alpha for one in metrics),
                    "KS, any column": columns_drift(before, now) > 0,
                    "KS, half of them": columns_drift(before, now) >= KS_SHARE,
                    "PSI of answers": stability(before, now) >= PSI_LIMIT,
                }
                for rule, fires in found.items():
                    fired.setdefault(name, {}).setdefault(rule, []).append(fires)
                sizes.setdefault(name, []).append(moved)
    rules = list(next(iter(fired.values())))
    title = f"share of {seeds} seeds in which each rule fires, 95 % intervals; median shift of the adapter"
    table = Table("what changed", "nats", "cosine", *rules, title=title)
    for name, by_rule in fired.items():
        table.add_row(
            name,
            f"{_median(sizes[name], 'next token'):.2g}",
            f"{_median(sizes[name], 'hidden state'):.2g}",
            *(_rate(by_rule[rule]) for rule in rules),
        )
    return table


def _median(moved: Sequence[Mapping[DriftMetricName, Shift]], name: DriftMetricName) -> float:
    return float(np.median([one[name].adapter.mean() for one in moved]))


def _rate(fires: Sequence[bool]) -> str:
    found = wilson(sum(fires) / len(fires), len(fires))
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


if __name__ == "__main__":
    main()

"""How small an adapter's file becomes, how long that takes, and what it changes of the answers.

    python benchmarks/compression.py                              # models/adapters/*, after `make repro`
    python benchmarks/compression.py FOLDER --tenant finance      # one adapter, asked the tenant's test rows

Each form is written to a file, and read back from there into tensors. Ratios are of the file as the pipeline
saves it. Lossy forms are asked as adapters: the largest change of a logit of the first token, the share of rows
whose first token stays, and the exact match of whole answers.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import zstandard
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from safetensors.torch import load, save

from lora_ops.evaluation.metrics import exact_match
from lora_ops.loading import load_base_model
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.example import Example, read_split
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from lora_ops.weight_compression import compressed, expanded

WEIGHTS = ADAPTER_FILES[0]
TIMES = 7
Tensors = dict[str, torch.Tensor]


class Form(NamedTuple):
    """One way to keep an adapter.

    Attributes:
        write: the file's bytes, of the tensors and of the file that the pipeline saved.
        read: the tensors of such bytes.
        keeps_signature: whether the file that was signed comes back, bit for bit.
    """

    name: str
    write: Callable[[Tensors, bytes], bytes]
    read: Callable[[bytes], Tensors]
    keeps_signature: bool


def cast(dtype: torch.dtype) -> Callable[[Tensors, bytes], bytes]:
    return lambda tensors, _: save({name: one.to(dtype) for name, one in tensors.items()})


def to_int8(tensors: Tensors, _: bytes) -> bytes:
    """One scale for each tensor: its largest magnitude is 127."""
    made: Tensors = {}
    for name, one in tensors.items():
        scale = one.float().abs().max().clamp(min=1e-12) / 127
        made[name] = torch.round(one.float() / scale).to(torch.int8)
        made[f"{name}.scale"] = scale.reshape(1)
    return save(made)


def from_int8(content: bytes) -> Tensors:
    found = load(content)
    return {
        name: one.float() * found[f"{name}.scale"] for name, one in found.items() if not name.endswith(".scale")
    }


def torch_zip(tensors: Tensors, _: bytes) -> bytes:
    out = io.BytesIO()
    torch.save(tensors, out)
    return out.getvalue()


def from_torch_zip(content: bytes) -> Tensors:
    return dict(torch.load(io.BytesIO(content), weights_only=True))


def zstd(level: int) -> Form:
    return Form(
        f"safetensors + zstd {level}",
        lambda _, saved: zstandard.ZstdCompressor(level=level).compress(saved),
        lambda content: load(zstandard.ZstdDecompressor().decompress(content)),
        True,
    )


def shuffled(width: int) -> Form:
    form = f"shuffle{width}-zstd"
    return Form(
        f"safetensors + {form} 1",
        lambda _, saved: b"".join(compressed(io.BytesIO(saved), form)),
        lambda content: load(b"".join(expanded(io.BytesIO(content), form))),
        True,
    )


def forms(width: int) -> list[Form]:
    return [
        Form("safetensors, as saved", lambda _, saved: saved, load, True),
        Form("safetensors fp32", cast(torch.float32), load, False),
        Form("safetensors bf16", cast(torch.bfloat16), load, False),
        Form("safetensors fp16", cast(torch.float16), load, False),
        Form("safetensors int8", to_int8, from_int8, False),
        Form("torch.save (zip)", torch_zip, from_torch_zip, False),
        *(zstd(level) for level in (1, 3, 9, 19)),
        shuffled(width),
    ]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the median of several runs in milliseconds, and the result; a slow action runs once."""
    took = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        result = action()
        took.append((time.perf_counter() - begun) * 1000)
        if took[-1] > 1000:
            break
    return statistics.median(took), result


def written(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class Asked(NamedTuple):
    """What an adapter says to the rows: logits of the first token (rows, vocabulary), and whole answers."""

    logits: torch.Tensor
    answers: list[str]


class Asker:
    """Asks one adapter whose weights are replaced by those of each form."""

    def __init__(self, base: Path, folder: Path, rows: list[Example], new_tokens: int) -> None:
        model, self.tokenizer = load_base_model(base)
        self.model = PeftModel.from_pretrained(model, str(folder)).eval()
        self.rows, self.new_tokens = rows, new_tokens

    @torch.inference_mode()
    def ask(self, tensors: Tensors) -> Asked:
        known = dict(self.model.named_parameters())
        for name, one in tensors.items():
            # PEFT saves the name without that of its adapter.
            known[name.replace(".weight", ".default.weight")].copy_(one.float())
        prompts = [row.prompt for row in self.rows]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        logits = self.model(**batch).logits[:, -1]
        made = self.model.generate(**batch, max_new_tokens=self.new_tokens, do_sample=False)
        said = self.tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return Asked(logits, [one.strip() for one in said])


def measure(folder: Path, asker: Asker | None, console: Console) -> list[dict[str, Any]]:
    saved = (folder / WEIGHTS).read_bytes()
    tensors = load(saved)
    width = next(iter(tensors.values())).element_size()
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    table = Table(title=f"{folder}: {len(saved):,} bytes of {dtype}")
    for name in (
        "form",
        "bytes",
        "ratio",
        "write ms",
        "load ms",
        "signature",
        "logit",
        "first token",
        "exact match",
    ):
        table.add_column(name, justify="left" if name == "form" else "right")
    before = asker.ask(tensors) if asker else None
    found = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "adapter"
        for form in forms(width):
            made = form.write(tensors, saved)
            write_ms, _ = timed(lambda form=form: written(path, form.write(tensors, saved)))  # type: ignore[misc]
            load_ms, back = timed(lambda form=form: form.read(path.read_bytes()))  # type: ignore[misc]
            row: dict[str, Any] = {
                "form": form.name,
                "bytes": len(made),
                "ratio": len(made) / len(saved),
                "write_ms": write_ms,
                "load_ms": load_ms,
                "signature": form.keeps_signature,
            }
            is_same = all(torch.equal(back[one].float(), tensors[one].float()) for one in tensors)
            if asker and before:
                after = before if is_same else asker.ask(back)
                targets = [one.target for one in asker.rows]
                row |= {
                    "logit": float((after.logits - before.logits).abs().max()),
                    "first_token": float((after.logits.argmax(-1) == before.logits.argmax(-1)).float().mean()),
                    "exact_match": float(exact_match(targets, after.answers).mean()),
                }
            found.append(row)
            table.add_row(
                form.name,
                f"{row['bytes']:,}",
                f"{row['ratio']:.3f}",
                f"{write_ms:.1f}",
                f"{load_ms:.1f}",
                "holds" if form.keeps_signature else "lost",
                f"{row['logit']:.4f}" if "logit" in row else "",
                f"{row['first_token']:.1%}" if "logit" in row else "",
                f"{row['exact_match']:.3f}" if "logit" in row else "",
            )
    console.print(table)
    return found


def main() -> None:
    """Measure each adapter, and print one table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="adapters; default: models/adapters/*")
    parser.add_argument("--tenant", help="whose test rows are asked; default: the folder's name")
    parser.add_argument("--rows", type=int, default=60, help="test rows to ask; 0: sizes and times alone")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    root = find_root()
    settings = load_settings(root)
    console = Console(width=140)
    found: dict[str, Any] = {}
    for folder in asked.folders or sorted((root / "models/adapters").glob("*")):
        tenant = asked.tenant or folder.name
        asker = None
        if asked.rows and tenant in settings.tenants:
            rows = read_split(root / "data/prepared" / tenant, "test")[: asked.rows]
            asker = Asker(root / "models/base", folder, rows, settings.tenant(tenant).evaluate.max_new_tokens)
        found[str(folder)] = measure(folder, asker, console)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

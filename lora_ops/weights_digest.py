"""The digests of a base model: of its weights, and of each other file that a loader of its folder reads."""

import json
from contextlib import suppress
from pathlib import Path

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, differing, sha256_file, sha256_text
from lora_ops.paths import BASE_MODEL
from lora_ops.records.base_model import BaseModelRecord

WEIGHTS = "model.safetensors"
# Written by transformers instead of `WEIGHTS` where the weights are in several files.
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json")
WRITER = "transformers_version"
"""Which release wrote a config: it changes with every update of transformers and changes no answer."""


def weights_sha256(folder: Path) -> str:
    """Return the digest of a base model's weights: the SHA-256 of the one file that holds them.

    Where they are in several files, it is the SHA-256 of JSON, with sorted keys and no spaces, that maps the
    name of each file, the index among them, to its SHA-256.

    Raises:
        LoraOpsError: the folder holds no weights, a file that its index names is missing, or loaders might
            read other files than these.
    """
    one, index = folder / WEIGHTS, folder / INDEX
    if one.is_file() and index.is_file():
        # transformers reads the first, and vLLM what the second names.
        raise LoraOpsError(f"{folder} holds both {WEIGHTS} and {INDEX}: make the base model again.")
    if not (one.is_file() or index.is_file()):
        raise LoraOpsError(f"{folder} holds neither {WEIGHTS} nor {INDEX}: make the base model again.")
    names = {WEIGHTS} if one.is_file() else _shards(index)
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise LoraOpsError(f"{index} names {missing[0]}, which is missing: make the base model again.")
    # vLLM reads every such file where there is no index.
    unknown = sorted({path.name for path in folder.glob("*.safetensors")} - names)
    if unknown:
        raise LoraOpsError(f"{folder / unknown[0]} is none of the base model's weights: remove it.")
    if one.is_file():
        return sha256_file(one)
    return sha256_text(canonical({name: sha256_file(folder / name) for name in {INDEX, *names}}))


def check_weights(folder: Path, record: BaseModelRecord) -> None:
    """Check that the weights in `folder` are those of its record.

    Raises:
        LoraOpsError: they are not, or there are none.
    """
    found = weights_sha256(folder)
    if found != record.sha256:
        raise LoraOpsError(
            f"The weights in {folder} have the SHA-256 {found[:12]}…, and its record says "
            f"{record.sha256[:12]}…: make the base model again."
        )


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a base model besides its weights and its record, by name.

    Tokenizer, chat template, config and generation config decide on answers as the weights do. All files count:
    a chat template that somebody adds is read before the one in tokenizer_config.json. A config counts as JSON
    with sorted keys and no spaces, without `transformers_version`.
    """
    return {
        path.relative_to(folder).as_posix(): _file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name != BASE_MODEL
        and not (path.suffix == ".safetensors" or path.name == INDEX)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def check_files(folder: Path, record: BaseModelRecord) -> None:
    """Check that the files in `folder` besides the weights are those of its record; an older one names none.

    Raises:
        LoraOpsError: one was changed, added or removed.
    """
    if record.files is None:
        return
    found = file_digests(folder)
    for name in differing(record.files, found):
        what = "added" if name not in record.files else "removed" if name not in found else "changed"
        raise LoraOpsError(
            f"{folder / name} was {what} since the base model was made, which changes answers: put it back as "
            "it was, or make the base model again (`dvc repro base_model`) and train on that."
        )


def _file_digest(path: Path) -> str:
    if path.name in CONFIGS:
        with suppress(ValueError):  # somebody else's bytes are no config, and differ as they are
            stored = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(stored, dict):
                return sha256_text(canonical({name: stored[name] for name in stored if name != WRITER}))
    return sha256_file(path)


def _shards(index: Path) -> set[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        outside = sorted(name for name in names if Path(name).name != name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoraOpsError(f"{index} is no index of weights: make the base model again.") from error
    if outside:
        raise LoraOpsError(f"{index} names {outside[0]}, no file beside it: make the base model again.")
    return names

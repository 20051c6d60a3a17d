"""Any sequence classifier of transformers as a detector: which labels count is a setting."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.settings.detectors import ClassifierSettings


class Classifier:
    """A sequence classifier; it scores a text by its highest window.

    Args:
        settings: `detectors.classifier` of params.yaml.
        root: what a relative `path` is relative to.

    Raises:
        LoraOpsError: the weights can't be had, or the model has no such label; the text says which.
    """

    def __init__(self, settings: ClassifierSettings, root: Path) -> None:
        name, where, self.digest = _place(settings, root)
        self.name = f"classifier for {', '.join(settings.labels)}"
        self.version = f"{settings.id}@{settings.revision}" if settings.id else str(settings.path)
        self.threshold = settings.threshold
        self._model, self._tokenizer = _load(name, where)
        # Windows of other lengths need padding to be computed together.
        self._batch_size = settings.batch_size if self._tokenizer.pad_token is not None else 1
        config = self._model.config
        known = {str(label): int(place) for place, label in config.id2label.items()}
        missing = [label for label in settings.labels if label not in known]
        if missing:
            raise LoraOpsError(
                f"detectors.classifier: {name} has no label '{missing[0]}' (it has: {', '.join(known)}): "
                "correct detectors.classifier.labels in params.yaml."
            )
        self._counted = [known[label] for label in settings.labels]
        # With one output, or several labels a text, each label has a probability of its own.
        self._apart = len(known) == 1 or config.problem_type == "multi_label_classification"
        longest = getattr(config, "max_position_embeddings", None) or settings.max_tokens
        # RoBERTa counts its positions from the padding's id + 1 on.
        offset = (config.pad_token_id or 0) + 1 if "roberta" in str(config.model_type) else 0
        self._window = min(settings.max_tokens, longest - offset)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return for each text, from 0 to 1, how likely it has one of the labels."""
        import torch

        owners, windows = [], []
        for number, text in enumerate(texts):
            for window in self._windows(text):
                owners.append(number)
                windows.append(window)
        scores = [0.0] * len(texts)
        for first in range(0, len(windows), self._batch_size):
            part = windows[first : first + self._batch_size]
            # (batch, tokens)
            padded = self._tokenizer.pad({"input_ids": part}, return_tensors="pt", padding=len(part) > 1)
            with torch.inference_mode():
                logits = self._model(**padded).logits.float()  # (batch, labels)
            chances = logits.sigmoid() if self._apart else logits.softmax(-1)
            counted = chances[:, self._counted]
            found = counted.amax(-1) if self._apart else counted.sum(-1)
            for owner, score in zip(owners[first:], found.tolist(), strict=False):
                scores[owner] = max(scores[owner], min(1.0, score))
        return scores

    def _windows(self, text: str) -> list[list[int]]:
        """Return a text's tokens in windows that overlap by half; an empty text has none."""
        if not text.strip():
            return []
        overlap = (self._window - self._tokenizer.num_special_tokens_to_add()) // 2
        read = self._tokenizer(
            text, truncation=True, max_length=self._window, stride=overlap, return_overflowing_tokens=True
        )
        return list(read["input_ids"])


def _place(settings: ClassifierSettings, root: Path) -> tuple[str, dict[str, Any], str]:
    """Return what to load, with which arguments, and the digest that names it."""
    if settings.id is not None:
        where: dict[str, Any] = {"revision": settings.revision}
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            where["local_files_only"] = True
        return settings.id, where, str(settings.revision)
    folder = root / str(settings.path)
    if not (folder / "config.json").is_file():
        raise LoraOpsError(
            f"detectors.classifier.path: {folder} holds no model (no config.json): correct the path in "
            "params.yaml."
        )
    files = {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}
    return str(folder), {"local_files_only": True}, sha256_text(canonical(files))


def _load(name: str, where: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # A folder's own code is not run. Without this transformers asks on the terminal whether it may.
    where = {**where, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        model, said = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise Unavailable(
            f"The classifier {name} can't be loaded ({reason}): make its files available, or remove "
            "detectors.classifier from params.yaml."
        ) from error
    if not tokenizer.is_fast:
        raise LoraOpsError(
            f"{name} has no tokenizer.json, which windows over long texts need: name another model in "
            "detectors.classifier of params.yaml."
        )
    # transformers fills what a checkpoint lacks with random numbers, above all the head of a language model.
    if said["missing_keys"]:
        raise LoraOpsError(
            f"{name} has no trained weights for {sorted(said['missing_keys'])[0]}: it is no sequence "
            "classifier; name another one in detectors.classifier of params.yaml."
        )
    return model.eval(), tokenizer

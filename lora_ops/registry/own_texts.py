"""Whether model card and samples follow from manifest and answers: reviewers read them, gates do not."""

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.packaging import model_card
from lora_ops.paths import ANSWERS, MODEL_CARD, SAMPLES
from lora_ops.records.manifest import Manifest
from lora_ops.settings.tenant import TenantSettings
from lora_ops.small_files import read_small


def require_own_texts(folder: Path, manifest: Manifest) -> None:
    """Refuse a model card or samples that do not follow from the manifest and the answers: reviewers read them.

    Raises:
        LoraOpsError: one differs from what the stages write.
    """
    wrong = []
    with suppress(ValidationError):  # `require_recounted` names settings that are none
        settings = TenantSettings.model_validate(manifest.params)
        if SAMPLES in manifest.files and read_small(folder / SAMPLES) != _drawn(folder, settings):
            wrong.append(f"{SAMPLES} holds other rows than evaluate.seed draws from {ANSWERS}")
        card = model_card(manifest, settings).encode()
        if MODEL_CARD in manifest.files and read_small(folder / MODEL_CARD) != card:
            wrong.append(f"{MODEL_CARD} is not the model card that its manifest gives")
    if wrong:
        raise LoraOpsError(
            f"What people read of '{manifest.tenant}' is not what was evaluated: {'; '.join(wrong)}. Run `dvc "
            f"repro --force package@{manifest.tenant}`, or its stages from `evaluate` on; nothing was "
            "registered."
        )


def _drawn(folder: Path, settings: TenantSettings) -> bytes | None:
    """Return `samples.csv` as the answers give it; None where they can't, as `require_recounted` says."""
    import pandas as pd

    from lora_ops.evaluation.compare import samples

    try:
        answers = pd.read_csv(folder / ANSWERS, dtype=str, keep_default_na=False)
        drawn = samples(answers, settings.evaluate.samples, settings.evaluate.seed)
    except (ValueError, KeyError):  # pandas' own errors are ValueErrors
        return None
    return drawn.to_csv(index=False).encode()

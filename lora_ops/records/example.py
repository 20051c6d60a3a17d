"""One prepared row, and the split files that hold them: all that training reads of the data."""

from pathlib import Path

from lora_ops.paths import require_file
from lora_ops.records.record import Record


class Example(Record):
    """One prepared row: what the model reads and what it should answer."""

    id: str
    group: str
    text: str
    target: str
    prompt: str
    completion: str


def read_split(folder: Path, split: str) -> list[Example]:
    """Read the examples of one split of the prepared data in `folder`.

    Raises:
        LoraOpsError: the data is not prepared yet.
    """
    path = folder / f"{split}.jsonl"
    require_file(path, "prepare")
    # Not splitlines(): U+2028 and other line separators may stand inside JSON text.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Example.model_validate_json(line) for line in lines if line]

"""The pairs that were kept of a version in shadow."""

from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.line_files import read_line_files
from lora_ops.records.pair import ShadowPair

if TYPE_CHECKING:
    import pandas as pd


def read_pairs(
    folder: Path, version: str, digest: str, *, production_digest: str | None = None
) -> "pd.DataFrame":
    """Return each pair of a version as a row, oldest first; one that is torn at a file's end is left out.

    Args:
        folder: `.serving/pairs` of a gateway.
        version: the version in shadow, such as `finance@3`.
        digest: its content digest; pairs of other content with the same number don't count.
        production_digest: of the version that it is compared with; None: of any.

    Raises:
        LoraOpsError: a file can't be read.
    """
    import pandas as pd

    if not any(folder.glob("pairs-*.jsonl")):
        return pd.DataFrame({name: [] for name in ShadowPair.model_fields})
    where = f"shadow = '{version}' AND shadow_digest = '{digest}'"
    if production_digest is not None:
        where += f" AND production_digest = '{production_digest}'"
    return read_line_files(folder, "pairs", ShadowPair, where)

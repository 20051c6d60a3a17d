"""The pairs that were kept of a version in shadow."""

from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.line_files import line_files, read_line_files
from lora_ops.records.pair import ShadowPair

if TYPE_CHECKING:
    import pandas as pd

WHO = ("production", "shadow")
SCORES = ("agreement", *(f"{who}_{what}" for who in WHO for what in ("task", "insults", "identifiers")))
# A line that no gateway wrote must not stop a rollout's way back. NaN is above every number here.
WHOLE = " AND ".join(
    [
        "unit IS NOT NULL AND status IS NOT NULL AND replayed IS NOT NULL",
        *(f"({one} IS NULL OR {one} BETWEEN 0 AND 1)" for one in SCORES),
        *(f"(status <> 'answered' OR {who}_tokens >= 0)" for who in WHO),
    ]
)


def read_pairs(
    folder: Path, version: str, digest: str, *, production_digest: str | None = None
) -> "pd.DataFrame":
    """Return each pair of a version as a row, oldest first.

    A line that is torn, or that no gateway wrote, is left out.

    Args:
        folder: `.serving/pairs` of a gateway.
        version: the version in shadow, such as `finance@3`.
        digest: its content digest; pairs of other content with the same number don't count.
        production_digest: of the version that it is compared with; None: of any.

    Raises:
        LoraOpsError: a file can't be read.
    """
    import pandas as pd

    if not line_files(folder, "pairs"):
        return pd.DataFrame({name: [] for name in ShadowPair.model_fields})
    where = f"shadow = '{version}' AND shadow_digest = '{digest}' AND {WHOLE}"
    if production_digest is not None:
        where += f" AND production_digest = '{production_digest}'"
    return read_line_files(folder, "pairs", ShadowPair, where)

"""What a reviewer filters and sorts at W&B: gates, slices, samples and annotations, one row each."""

from collections.abc import Iterable, Sequence

import pandas as pd

from lora_ops.gates.report import BeforeAfter, Shown
from lora_ops.gates.review.annotated import AnnotatedPair
from lora_ops.gates.rows import GateRow
from lora_ops.records.regression import Compared
from lora_ops.records.review import RATINGS


def version_tables(shown: Shown) -> dict[str, pd.DataFrame]:
    """Return every table of a version, by name; one without rows is empty."""
    return {
        "gates": gate_table(shown.rows),
        "slices": slice_table(shown.compared),
        "samples": sample_table(shown.samples),
        "annotations": annotation_table(shown.pairs),
    }


def gate_table(rows: Sequence[GateRow]) -> pd.DataFrame:
    """Return one row for each gate."""
    return pd.DataFrame(rows, columns=list(GateRow._fields))


def slice_table(compared: Iterable[Compared]) -> pd.DataFrame:
    """Return one row for each slice and baseline of a regression report."""
    return pd.DataFrame(
        [
            {
                "slice": one.what,
                "against": one.against,
                "gating": one.gating,
                "verdict": one.comparison.verdict,
                "rows": one.comparison.rows,
                "candidate": one.comparison.candidate,
                "baseline": one.comparison.baseline,
                "difference": str(one.comparison.difference),
                "margin": one.comparison.margin,
            }
            for one in compared
        ]
    )


def sample_table(samples: Sequence[BeforeAfter]) -> pd.DataFrame:
    """Return one row for each sample, with every answer and what reviewers said of it."""
    frame = pd.DataFrame(samples, columns=list(BeforeAfter._fields))
    return frame.assign(reviewers=["\n".join(one.reviewers) for one in samples])


def annotation_table(pairs: Iterable[AnnotatedPair]) -> pd.DataFrame:
    """Return one row for each pair and reviewer; the ratings of both answers are columns of their own."""
    return pd.DataFrame(
        [
            {
                "row": pair.row,
                "text": pair.text,
                "adapter": pair.adapter,
                "other": pair.other,
                "against": pair.against,
                "reviewer": one.person,
                "vote": one.vote,
                **{
                    f"{name} ({side})": one.ratings.get(side, {}).get(name)
                    for side in ("adapter", "other")
                    for name in RATINGS
                },
                "breach (adapter)": one.breach.get("adapter", ""),
                "breach (other)": one.breach.get("other", ""),
                "comment": one.comment,
                "corrected": one.corrected,
            }
            for pair in pairs
            for one in pair.said
        ]
    )

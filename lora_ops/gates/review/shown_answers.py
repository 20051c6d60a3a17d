"""Which answers reviewers are shown, row by row.

They are those that base model and adapter gave again for the version's regression report, which the plan names.
The packaged ones may be dressed up: the gate lets a quarter of them be other texts, as other kernels answer.
Rows and their groups come from the registered package, whose digests the plan names, too.
"""

from typing import TYPE_CHECKING

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.paths import ANSWERS, SLICE
from lora_ops.records.evaluation import ADAPTER, BASE
from lora_ops.records.review import ReviewPlan
from lora_ops.registry.answers_again import AnswersAgain, filed_answers_again
from lora_ops.registry.membership import SEEN, groups_of
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

if TYPE_CHECKING:
    import pandas as pd


def answers_digest(version: Version) -> str:
    """Return the digest of a version's packaged answers.

    Raises:
        LoraOpsError: its package keeps none.
    """
    file = version.manifest.files.get(ANSWERS)
    if file is None:
        raise LoraOpsError(
            f"{version.id} keeps no answers (an older package): package its adapter again with `dvc repro`."
        )
    return file.sha256


def planned_answers(
    registry: Registry, version: Version, plan: ReviewPlan, now: AnswersAgain | None = None
) -> "pd.DataFrame":
    """Return the answers that a plan is bound to, as `answers_of` does.

    Args:
        registry: where the version is.
        version: what is reviewed.
        plan: of its review.
        now: the answers of another regression report, in the place of those that the plan names.

    Raises:
        Damaged: a version has other answers than on that day, or the plan names a report that was not filed.
        LoraOpsError: kept answers are missing or were changed.
    """
    opponent = None if plan.against == BASE else registry.get_exact(plan.against, whole=False)
    for one, digest in ((version, plan.answers_sha256), (opponent, plan.against_answers_sha256)):
        if one and answers_digest(one) != digest:
            raise Damaged(f"The review of {plan.adapter} was planned with other answers of {one.id}.")
    again, theirs = now, None
    if again is None and plan.regression_sha256:
        again = filed_answers_again(registry, version, plan.regression_sha256)
    if opponent and plan.against_regression_sha256:
        theirs = filed_answers_again(registry, opponent, plan.against_regression_sha256)
    return answers_of(registry, version, opponent, again, theirs)


def answers_of(
    registry: Registry,
    version: Version,
    opponent: Version | None,
    again: AnswersAgain | None,
    theirs_again: AnswersAgain | None,
) -> "pd.DataFrame":
    """Return columns row, group, text, slice, adapter, other: the rows that both sides answered.

    Args:
        registry: where the versions are.
        version: what is reviewed.
        opponent: what it is compared with; None: its base model.
        again: the answers that base model and adapter gave again; None: the packaged ones count.
        theirs_again: those of the opponent.

    Raises:
        LoraOpsError: kept answers are missing or were changed, or both sides answered no row in common.
    """
    frame = rows_with_answers(registry, version, again)
    if opponent is None:
        if BASE not in frame:
            raise LoraOpsError(f"The answers of {version.id} lack those of its base: package it again.")
        return frame.assign(other=frame[BASE])
    theirs = rows_with_answers(registry, opponent, theirs_again).drop_duplicates("text")
    theirs = theirs[["text", "target", "adapter"]].rename(columns={"adapter": "other"})
    both = frame.drop(columns="other", errors="ignore").merge(theirs, on=["text", "target"])
    seen = {
        group
        for one in (version, opponent)
        for split in SEEN
        for group in (groups_of(registry, one) or {}).get(split, ())
    }
    both = both[~both["group"].map(sha256_text).isin(seen)]
    if both.empty:
        raise LoraOpsError(
            f"{version.id} and {opponent.id} answered no row in common that neither was trained on: evaluate "
            "both on one test split (the same data.seed and ratio of data.rows)."
        )
    return both


def rows_with_answers(registry: Registry, version: Version, again: AnswersAgain | None) -> "pd.DataFrame":
    """Return the held-out rows of a package, with the answers that were given again in the place of its own.

    Raises:
        LoraOpsError: its answers are missing, were changed or lack a column, or the report has fewer of them.
    """
    import pandas as pd

    path = registry.files.checked(answers_digest(version), ANSWERS)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if again:
        given = {name: list(again.by_system[name]) for name in (ADAPTER, BASE)}
        if len(given[ADAPTER]) != len(frame):
            raise Damaged(
                f"The regression report {again.report_sha256[:12]}… has {len(given[ADAPTER])} answers to the "
                f"{len(frame)} held-out rows of {version.id}: run `lora-ops gate {version.id}`."
            )
        frame = frame.assign(**given)
    missing = {"id", "group", "text", "target", ADAPTER} - set(frame.columns)
    if missing:
        raise LoraOpsError(f"The answers of {version.id} lack {', '.join(sorted(missing))}: package it again.")
    slices = [name for name in frame.columns if name.startswith(SLICE)]
    has_labels = version.manifest.params.get("data", {}).get("task") == "labels"
    by = slices[0] if slices else "target" if has_labels else None
    return frame.assign(row=frame["id"], slice=frame[by] if by else "", adapter=frame[ADAPTER])

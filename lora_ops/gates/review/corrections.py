"""Corrected answers as training rows, without training on what a version is tested with.

Reviewers see rows of the test split, so every corrected answer belongs to a held-out group. A model that is
trained on it knows the answer, and its test says nothing any more. So a corrected row is a training row only
once its group has left the test split: `data.moved_groups` of params.yaml does that for the whole group. The
next package lists the group under `train` in its membership.csv, by which comparisons with earlier versions
leave it out. Until then the row is refused.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_ops.errors import LoraOpsError, Refused, Unavailable, disk_reason
from lora_ops.gates.review.annotations import parse
from lora_ops.gates.review.evidence import unblinded
from lora_ops.gates.review.sessions import Session, texts_of
from lora_ops.gates.review.submissions import submitted
from lora_ops.registry.store import Registry
from lora_ops.small_files import write_new


class Corrections(NamedTuple):
    """What reviewers corrected.

    Attributes:
        rows: training rows with where they come from.
        held_out: groups of corrected rows that are still tested with.
        disputed: texts that reviewers correct in different ways.
    """

    rows: list[dict[str, Any]]
    held_out: list[str]
    disputed: list[str]


def corrections(registry: Registry, session: Session, moved: Iterable[str]) -> Corrections:
    """Return the corrected answers of a review, of submitted votes only.

    Args:
        registry: where the version is.
        session: its review.
        moved: `data.moved_groups`, which nobody tests with any more.

    Raises:
        LoraOpsError: votes were changed after they were submitted, or kept answers are missing.
    """
    plan, texts, groups = session.plan, texts_of(registry, session), set(moved)
    said: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for reviewer in plan.tasks:
        one = submitted(registry, session, reviewer)
        for told in unblinded(plan, reviewer, parse(one.content, reviewer)) if one else ():
            answer = told.corrected.strip()
            if answer and reviewer not in said[told.task.row][answer]:
                said[told.task.row][answer].append(reviewer)
    rows, held_out, disputed = [], list[str](), list[str]()
    for row, answers in said.items():
        of_row = texts[row]
        if len(answers) > 1:
            disputed.append(of_row.text)
            continue
        if of_row.group not in groups:
            held_out.append(of_row.group)
            continue
        [(target, reviewers)] = answers.items()
        rows.append(
            {
                "text": of_row.text,
                "target": target,
                "group": of_row.group,
                "row": row,
                "reviewers": reviewers,
                "adapter": plan.adapter,
                "content_digest": plan.content_digest,
                "answers_sha256": plan.answers_sha256,
                "plan_sha256": session.plan_sha256,
            }
        )
    return Corrections(rows, sorted(set(held_out)), disputed)


def write(found: Corrections, path: Path, tenant: str) -> None:
    """Write the training rows as JSON lines into a new file.

    Raises:
        Refused: every corrected row is still tested with; the text says how its group is moved.
        LoraOpsError: nobody corrected anything, the file exists, or it can't be written.
    """
    if not found.rows:
        if found.held_out:
            raise Refused(f"Nothing was written. {how_to_move(found.held_out, tenant)}")
        raise LoraOpsError(
            "No submitted vote has a corrected answer on which reviewers agree: nothing was written."
        )
    try:
        write_new(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in found.rows))
    except FileExistsError as error:
        raise LoraOpsError(f"{path} exists already: name a new file.") from error
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({disk_reason(error)}).") from error


def how_to_move(groups: Sequence[str], tenant: str) -> str:
    """Say what to do about corrected rows that are still tested with."""
    return (
        f"Corrected rows of {len(groups)} groups are in the test split, and whoever trains on them tests "
        "nothing. To train on these groups from now on, and to test with the others, add to "
        f"tenants.{tenant}.data in params.yaml: moved_groups: {json.dumps(list(groups), ensure_ascii=False)}"
    )

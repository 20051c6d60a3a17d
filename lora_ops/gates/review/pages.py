"""What notebooks/05_review.ipynb shows: the desk of whoever opened it, and how far the review is."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.gates.review import sessions
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.evidence import make_report
from lora_ops.gates.review.progress import findings, progress
from lora_ops.gates.review.sessions import Session
from lora_ops.gates.review.widget import ReviewDesk
from lora_ops.records.evidence import HumanEvidence
from lora_ops.registry.backends import open_registry
from lora_ops.registry.changes import whoami

if TYPE_CHECKING:
    import pandas as pd


def open_review(root: Path, tenant: str, version: str | None = None) -> Session:
    """Open the review of a version, and start one with the defaults if nobody has.

    Args:
        root: of the repository.
        tenant: whose adapter.
        version: the exact version; default: the tenant's candidate.

    Raises:
        LoraOpsError: no such version, or a review of it can't be started.
    """
    with closing(open_registry(root)) as registry:
        exact = version or registry.get(f"{tenant}@candidate").id
        try:
            return sessions.open_session(registry, exact)
        except NotFound:
            guidelines = sessions.guidelines_of(root, tenant)
            return sessions.start(registry, exact, actor=whoami(), guidelines=guidelines)


def desk_of(root: Path, session: Session, reviewer: str | None = None) -> ReviewDesk:
    """Return the desk of a reviewer; default: whoever is logged in.

    Raises:
        LoraOpsError: they have no list in the plan, their file was edited by hand, or the guidelines are others
            than those of the plan.
    """
    guidelines = sessions.guidelines_of(root, session.plan.tenant)
    sessions.require_planned_guidelines(session.plan, guidelines)
    with closing(open_registry(root)) as registry:
        desk = Desk(registry, session, reviewer or whoami())
    return ReviewDesk(desk, guidelines)


def progress_table(session: Session) -> "pd.DataFrame":
    """Return one row for each reviewer: how far they are, and what is wrong with their file."""
    import pandas as pd

    columns = {"is_submitted": "submitted", "total": "of"}
    frame = pd.DataFrame([one._asdict() for one in progress(session)])
    return frame.replace({True: "yes", False: "no"}).rename(columns=columns)


def results(root: Path, session: Session) -> Iterator[str]:
    """Yield what the review found, once every reviewer has submitted; before that it would sway the others."""
    waiting = [one.reviewer for one in progress(session) if not one.is_submitted]
    if waiting:
        yield f"Agreement and win rate are shown once {', '.join(waiting)} have submitted."
        return
    try:
        with closing(open_registry(root)) as registry:
            report, left_out = make_report(registry, session.plan.adapter)
    except LoraOpsError as error:
        yield str(error)
        return
    assert isinstance(report.document, HumanEvidence)
    yield from (f"{one}." for one in (*findings(report.document), *left_out))

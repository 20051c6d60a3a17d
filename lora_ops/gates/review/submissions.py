"""A reviewer hands their votes in: from then on the file is closed, and its digest is signed."""

import os
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from lora_ops.clock import utc
from lora_ops.errors import Damaged, Refused, Unavailable, disk_reason
from lora_ops.gates.review.annotations import parse, require_about, unchanged
from lora_ops.gates.review.sessions import Session, reviewer_of
from lora_ops.hashing import canonical, sha256_bytes
from lora_ops.records.review import SignedSubmission, Submission
from lora_ops.registry.approvals import signature_of
from lora_ops.registry.roles import owners_of
from lora_ops.registry.ssh_signatures import signer_of
from lora_ops.registry.store import Registry
from lora_ops.settings.files import first_problem
from lora_ops.small_files import read_small, write_whole

# A signature of votes is no approval, and an approval no signature of votes.
NAMESPACE = "lora-ops-review"


class Submitted(NamedTuple):
    """What a reviewer handed in.

    Attributes:
        reviewer: who.
        content: their file of votes.
        signed: the submission.
        key: fingerprint of the key that signed it; None: unsigned.
    """

    reviewer: str
    content: bytes
    signed: SignedSubmission
    key: str | None


def submit(
    registry: Registry, session: Session, *, actor: str, key: Path | None = None, partial: bool = False
) -> Submission:
    """Hand a reviewer's votes in.

    Args:
        registry: where the version is.
        session: its review.
        actor: whose votes.
        key: the SSH key that signs; needed unless unsigned approvals count.
        partial: also with pairs that they did not judge.

    Raises:
        LoraOpsError: not a reviewer of the plan, nothing judged, pairs that are left, votes that were handed in
            before, a file that was edited by hand, or a key that isn't theirs.
    """
    person = reviewer_of(registry, session, actor)
    if os.path.lexists(session.submission_of(person.id)):
        raise Refused(f"{person.id} has submitted the votes on {session.version.id} already.")
    path = session.file_of(person.id)
    content = _content(path, f"{person.id} has judged no pair of {session.version.id} yet.")
    votes = parse(content, path.name)
    content = content[: votes.whole]
    require_about(votes.heading, session.heading_of(person.id), path.name)
    tasks, judged = len(session.plan.tasks[person.id]), len(votes.judged)
    if not judged or (judged < tasks and not partial):
        raise Refused(
            f"{person.id} has judged {judged} of {tasks} pairs of {session.version.id}: judge the others, or "
            "submit what there is with --partial."
        )
    said = Submission(
        adapter=session.plan.adapter,
        content_digest=session.plan.content_digest,
        plan_sha256=session.plan_sha256,
        annotations_sha256=sha256_bytes(content),
        judged=judged,
        tasks=tasks,
        person=person.id,
        at=utc(registry.clock()),
    )
    signature = signature_of(registry, said, person, key, what="Votes", namespace=NAMESPACE)
    target = session.submission_of(person.id)
    try:
        # ssh-keygen may wait for a passphrase or a touch, so the file is not locked while it signs.
        with unchanged(path, content):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, SignedSubmission(submission=said, signature=signature).to_json())
    except OSError as error:
        raise Unavailable(f"{target} can't be written ({disk_reason(error)}).") from error
    return said


def submitted(registry: Registry, session: Session, reviewer: str) -> Submitted | None:
    """Return what a reviewer handed in, verified; None where they have not.

    Raises:
        LoraOpsError: the votes were changed after it, the submission is about something else, or its signature
            does not fit.
    """
    path = session.submission_of(reviewer)
    if not os.path.lexists(path):
        return None
    try:
        signed = SignedSubmission.model_validate_json(read_small(path))
    except (OSError, ValidationError) as error:
        why = first_problem(error) if isinstance(error, ValidationError) else disk_reason(error)
        raise Damaged(
            f"{path} is no submission ({why}): remove it, and let {reviewer} submit again."
        ) from error
    file = session.file_of(reviewer)
    content = _content(file, f"The votes of {reviewer}, who has submitted them, are gone: restore {file}.")
    said = signed.submission
    about = (said.adapter, said.content_digest, said.plan_sha256, said.person)
    if about != (session.plan.adapter, session.plan.content_digest, session.plan_sha256, reviewer):
        raise Refused(f"{path} is about {said.adapter} by {said.person}, under another plan: remove it.")
    if sha256_bytes(content) != said.annotations_sha256:
        raise Damaged(
            f"{file} was changed after {reviewer} submitted it: restore it, or remove {path} and let "
            f"{reviewer} look at the votes and submit again."
        )
    return Submitted(reviewer, content, signed, _signer(registry, session, signed, path))


def _signer(registry: Registry, session: Session, signed: SignedSubmission, path: Path) -> str | None:
    reviewer = signed.submission.person
    again = f"remove {path}, and let {reviewer} submit again."
    if signed.signature is None:
        if registry.approvals == "signed":
            raise Refused(f"The votes of {reviewer} are not signed (registry.approvals: signed): {again}")
        return None
    person = owners_of(registry, session.version.tenant).person(reviewer)
    text = canonical(signed.submission.model_dump(mode="json"))
    key = signer_of(text, signed.signature, reviewer, person.keys if person else (), NAMESPACE)
    if key is None:
        raise Refused(f"The signature of {reviewer}'s votes fits no key of theirs in owners.yaml: {again}")
    return key


def _content(path: Path, missing: str) -> bytes:
    try:
        return read_small(path)
    except FileNotFoundError as error:
        raise Refused(missing) from error
    except OSError as error:
        raise Unavailable(f"{path} can't be read ({disk_reason(error)}).") from error

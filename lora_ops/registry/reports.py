"""Reports that the record can read, so that nobody copies a number: JSON of people's votes or of policy checks.

Both are looked at before a version moves on. A report of any other kind is kept in whatever form it has, a page
or a notebook; people read it, and the record names it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import Evidence, EvidenceKind, HumanEvaluation, PolicyCheck
from lora_ops.registry.files import FileStore
from lora_ops.settings.files import first_problem

POLICY: TypeAdapter[list[PolicyCheck]] = TypeAdapter(Annotated[list[PolicyCheck], Field(min_length=1)])
FORMS: dict[EvidenceKind, str] = {
    "human_evaluation": "{annotators, pairs, adapter_better, same, base_better}",
    "policy": "a list of {name, passed, prompts, failed}",
}
Report = TypeVar("Report")


def read_human_evaluation(path: Path, sha256: str) -> HumanEvaluation | None:
    """People's votes: an object with the fields of `HumanEvaluation`; None when the report is no JSON.

    Raises:
        LoraOpsError: it is JSON, and not of this form.
    """
    content = _json(path)
    if content is None:
        return None
    try:
        return HumanEvaluation.model_validate({**_object(content), "report_sha256": sha256})
    except ValidationError as error:
        raise LoraOpsError(
            f"A report of kind 'human_evaluation' has a wrong value: {first_problem(error)}."
        ) from error


def read_policy(path: Path, sha256: str) -> list[PolicyCheck] | None:
    """Policy checks: a list of objects with the fields of `PolicyCheck`; None when the report is no JSON.

    Raises:
        LoraOpsError: it is JSON, and not of this form.
    """
    content = _json(path)
    if content is None:
        return None
    rows = content if isinstance(content, list) else [content]
    try:
        return POLICY.validate_python([{**_object(row), "report_sha256": sha256} for row in rows])
    except ValidationError as error:
        raise LoraOpsError(f"A report of kind 'policy' has a wrong value: {first_problem(error)}.") from error


def latest(
    files: FileStore,
    evidence: Sequence[Evidence],
    kind: EvidenceKind,
    read: Callable[[Path, str], Report | None],
) -> Report | None:
    """What the last report of one kind says; None when there is none, or it is not in the form that is read.

    Raises:
        LoraOpsError: the kept file is missing or was changed.
    """
    for one in reversed(evidence):
        if one.kind == kind:
            return read(files.checked(one.sha256, f"the {kind} report"), one.sha256)
    return None


def check(kind: EvidenceKind, path: Path) -> None:
    """Refuse a report that would be read, and can't be.

    Raises:
        LoraOpsError: it has not the form that its kind has.
    """
    readers: dict[EvidenceKind, Callable[[Path, str], object]] = {
        "human_evaluation": read_human_evaluation,
        "policy": read_policy,
    }
    if kind in readers and readers[kind](path, "0" * 64) is None:
        raise LoraOpsError(f"A report of kind '{kind}' is read by lora-ops: hand in JSON, {FORMS[kind]}.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a page for people, or a picture
        return None


def _object(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {"not an object": content}

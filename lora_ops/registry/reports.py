"""Reports that the record can read, so that nobody copies a number: JSON of people's votes or of policy checks.

A report in any other form (a page, a notebook) is kept as well; then people read it, and the record names it.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.records import EvidenceKind, HumanEvaluation, PolicyCheck
from lora_ops.settings import first_problem

POLICY: TypeAdapter[list[PolicyCheck]] = TypeAdapter(list[PolicyCheck])


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


def check(kind: EvidenceKind, path: Path) -> None:
    """Refuse a report that the record would read, and can't.

    Raises:
        LoraOpsError: it is JSON, and not of the form that its kind has.
    """
    if kind == "human_evaluation":
        read_human_evaluation(path, "0" * 64)
    elif kind == "policy":
        read_policy(path, "0" * 64)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a page for people, or a picture
        return None


def _object(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {"not an object": content}

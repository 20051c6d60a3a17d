"""A tenant's regression suite as it is asked: read from `suites/`, checked, and written as prompts."""

import difflib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.gates.suite_files import read_suite_file
from lora_ops.loading import load_tokenizer
from lora_ops.prompts import ControlTokens, render_chat, render_prompt
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import PromptRecord, read_prompt
from lora_ops.records.suite import AskedCase, CasesRecord
from lora_ops.settings.evaluate import EvaluateSettings
from lora_ops.settings.files import first_problem, read_section
from lora_ops.settings.suite import Case, Suite

SUITES = "suites"
GENERAL = "general"
"""The suite whose cases every tenant is asked: they guard what the base model could do before."""
GENERAL_TOKENS = 48


def read_suite(path: Path) -> tuple[Suite, str]:
    """Return a suite and the SHA-256 of its file.

    Raises:
        LoraOpsError: the file can't be read, or it is no suite; the text names case and setting.
    """
    where = f"{path.parent.name}/{path.name}"
    read, digest = read_suite_file(path)
    try:
        return Suite.model_validate(read), digest
    except ValidationError as error:
        raise LoraOpsError(f"{where}{_case_at(read, error)}: {first_problem(error)}.") from error


def has_suite(root: Path, name: str) -> bool:
    """Return whether the repository has a suite.

    A folder, a pipe or a symlink to nowhere in its place counts, so that `read_suite` refuses it: to go on
    without it would ask less, and say nothing of it.
    """
    return os.path.lexists(root / SUITES / f"{name}.yaml")


def read_and_ask(tenant: str, root: Path) -> CasesRecord:
    """Return the cases of a tenant's suite under the system prompt of its prepared data; see `ask_cases`.

    Raises:
        LoraOpsError: as `ask_cases`, or the data is not prepared yet.
    """
    evaluate = read_section(root, f"tenants.{tenant}.evaluate", EvaluateSettings)
    return ask_cases(tenant, root, read_prompt(root / "data/prepared" / tenant), evaluate)


def ask_cases(tenant: str, root: Path, data: PromptRecord, evaluate: EvaluateSettings) -> CasesRecord:
    """Return the cases of a tenant's suite and of the general one, each as the prompt that asks it.

    A tenant without a suite gets a record without cases of its own: its gate is then missing, not passed.

    Raises:
        LoraOpsError: a suite is wrong, names a label or a metric that the tenant does not have, both suites use
            one id or one slice, or a case spells a token that ends its turn.
    """
    base = root / "models/base"
    record = read_base_model(base)
    tokenizer = load_tokenizer(base)
    control = ControlTokens(tokenizer)
    cases: list[AskedCase] = []
    slices: dict[str, Any] = {}
    digests: dict[str, str] = {}
    held_out: dict[str, float] = {}
    owner = ""
    if not has_suite(root, tenant):
        return CasesRecord(
            tenant=tenant,
            owner="",
            suites={},
            base_model_sha256=record.sha256,
            base_files_sha256=record.files_sha256,
        )
    for name in (tenant, GENERAL):
        path = root / SUITES / f"{name}.yaml"
        if not has_suite(root, name):
            continue
        suite, digests[path.name] = read_suite(path)
        where = f"{SUITES}/{path.name}"
        _require_known(where, suite, data, evaluate)
        both = [one for one in suite.slices if one in slices]
        if both:
            raise LoraOpsError(f"{where}: the slice '{both[0]}' is in suites/{tenant}.yaml, too: rename one.")
        ids = {one.case.id for one in cases}
        for case in suite.cases:
            if case.id in ids:
                raise LoraOpsError(f"{where}: the case '{case.id}' is in suites/{tenant}.yaml, too: rename it.")
            spelled = next(filter(None, (control.spelled(text) for text in _texts(case))), None)
            if spelled:
                raise LoraOpsError(f"{where}: the case '{case.id}' spells {spelled}, which would end its turn.")
            asked = _asked(case, tokenizer, data, evaluate)
            same = next((one.case.id for one in cases if one.key == asked.key), None)
            if same:
                raise LoraOpsError(
                    f"{where}: the case '{case.id}' asks the same as '{same}': remove one of them."
                )
            cases.append(asked)
        slices |= suite.slices
        held_out |= suite.held_out
        owner = owner or suite.owner
    return CasesRecord(
        tenant=tenant,
        owner=owner,
        suites=digests,
        base_model_sha256=record.sha256,
        base_files_sha256=record.files_sha256,
        labels=tuple(data.labels),
        held_out=held_out,
        slices=slices,
        cases=tuple(cases),
    )


def _asked(case: Case, tokenizer: Any, data: PromptRecord, evaluate: EvaluateSettings) -> AskedCase:
    if case.text is not None:
        prompt, tokens = render_prompt(tokenizer, case.text, data.system), evaluate.max_new_tokens
    else:
        turns = [(turn.role, turn.content) for turn in case.turns] or [("user", str(case.prompt))]
        prompt, tokens = render_chat(tokenizer, turns), GENERAL_TOKENS
    return AskedCase(case=case, prompt=prompt, max_tokens=case.max_tokens or tokens, seed=0)


def _texts(case: Case) -> Sequence[str]:
    return [one for one in (case.text, case.prompt, *(turn.content for turn in case.turns)) if one]


def _require_known(where: str, suite: Suite, data: PromptRecord, evaluate: EvaluateSettings) -> None:
    unknown = [metric for metric in suite.held_out if metric not in evaluate.metrics]
    if unknown:
        raise LoraOpsError(
            f"{where}: held_out names the metric '{unknown[0]}', and evaluate.metrics has "
            f"{', '.join(evaluate.metrics)}."
        )
    for case in suite.cases:
        label = case.expect.label if case.expect else None
        if label is None or label in data.labels:
            continue
        if not data.labels:
            raise LoraOpsError(f"{where}: the case '{case.id}' expects a label, and this tenant has none.")
        raise LoraOpsError(
            f"{where}: the case '{case.id}' expects the label '{label}', which is not one of data.labels"
            f"{_nearest(label, data.labels)}."
        )


def _nearest(label: str, labels: Sequence[str]) -> str:
    """Return the label that was meant, in words, with letters of another script that only look like its own."""
    near = difflib.get_close_matches(label, labels, 1)
    if not near:
        return ""
    strange = [
        f"'{one}' is {unicodedata.name(one, 'unnamed')}"
        for one in dict.fromkeys(label)
        if one not in near[0] and ord(one) > 127
    ]
    return f" (is it '{near[0]}'? {'; '.join(strange)})" if strange else f" (is it '{near[0]}'?)"


def _case_at(read: Any, error: ValidationError) -> str:
    """Return the id of the case that the first problem is about, in words: a number names it badly."""
    place = error.errors()[0]["loc"]
    if len(place) > 1 and place[0] == "cases" and isinstance(place[1], int):
        case = read["cases"][place[1]]
        if isinstance(case, dict) and "id" in case:
            return f", case '{case['id']}'"
    return ""

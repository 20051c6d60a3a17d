"""Ask one question of a registered adapter and of its base model, to see the difference."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.generate import generate
from lora_ops.loading import load_base_model
from lora_ops.prompts import ControlTokens, render_prompt
from lora_ops.records.base_model import read_base_model
from lora_ops.registry import packages
from lora_ops.registry.eligibility import base_model_reason
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.files import first_problem
from lora_ops.settings.tenant import TenantSettings
from lora_ops.templates import ContentIs, user_text


@dataclass(frozen=True)
class Answers:
    """One question, its text as the models read it, and what they answer.

    Attributes:
        digest: content digest of the version, since another registry gives its name to other content.
    """

    adapter: str
    digest: str
    text: str
    base_answer: str
    answer: str


def ask(
    reference: str,
    registry: Registry,
    root: Path,
    *,
    content: str | None,
    columns: Mapping[str, str] | None = None,
    content_is: ContentIs | None = None,
) -> Answers:
    """Return the answers of a version and of its base model to a question.

    The question goes through the template and the system prompt that the version was packaged with, as in the
    gateway.

    Args:
        content, columns, content_is: the question, as `lora_ops.templates.user_text` takes it.

    Raises:
        NotThePrompt: the question doesn't fit the version's template.
        LoraOpsError: unknown version, changed files, settings of another release, or the base model here is not
            the adapter's.
    """
    from peft import PeftModel

    base = read_base_model(root / "models/base")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        version = packages.export(registry, reference, folder, for_review=True)
        other = base_model_reason(version, base)
        if other:
            raise LoraOpsError(f"{other}.")
        settings = _settings(version)
        text = user_text(
            version.id, settings.data.template, content=content, columns=columns, content_is=content_is
        )
        model, tokenizer = load_base_model(root / "models/base")
        model = PeftModel.from_pretrained(model, folder)
        prompts = [render_prompt(tokenizer, text, settings.data.system)]
        control, ids = ControlTokens(tokenizer), tokenizer(prompts, add_special_tokens=False)["input_ids"][0]
        if forged := control.spelled(text) or control.hidden(prompts[0], ids):
            raise LoraOpsError(f"A question may not hold {forged}, which is a control token: remove it.")
        limits: dict[str, Any] = {"max_new_tokens": max(32, settings.evaluate.max_new_tokens), "batch_size": 1}
        adapter = generate(model, tokenizer, prompts, **limits).texts
        with model.disable_adapter():
            base_answer = generate(model, tokenizer, prompts, **limits).texts
    digest = version.summary.content_digest
    return Answers(version.manifest.adapter_id, digest, text, base_answer[0], adapter[0])


def _settings(version: Version) -> TenantSettings:
    try:
        return TenantSettings.model_validate(version.manifest.params)
    except ValidationError as error:
        raise LoraOpsError(
            f"{version.id} was packaged with settings that this release can't ask it by "
            f"({first_problem(error)}): package and register it again."
        ) from error


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """Return the values of columns that are written NAME=VALUE.

    Raises:
        LoraOpsError: one is written otherwise, or given twice.
    """
    columns: dict[str, str] = {}
    for one in given:
        name, mark, value = one.partition("=")
        if not mark or not name:
            raise LoraOpsError(f"--column is NAME=VALUE, not '{one}'.")
        if name in columns:
            raise LoraOpsError(f"--column gives '{name}' twice: leave one out.")
        columns[name] = value
    return columns


def parse_content_is(given: str | None) -> ContentIs | None:
    """Return what TEXT is said to be.

    Raises:
        LoraOpsError: it can't be that.
    """
    if given is None:
        return None
    if given in get_args(ContentIs):
        return cast(ContentIs, given)
    raise LoraOpsError(f"--content-is is prompt or column, not '{given}'.")

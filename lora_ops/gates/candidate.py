"""What every gate needs of the version that it judges: settings, files laid out, packaged answers."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.paths import ADAPTER_FILES, BASE_MODEL
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import PromptRecord
from lora_ops.records.policy import PolicyPromptsRecord
from lora_ops.records.suite import AnswersRecord, CaseAnswer, CasesRecord
from lora_ops.registry.packages import export
from lora_ops.registry.store import Registry
from lora_ops.registry.suite_changes import packaged_record
from lora_ops.registry.versions import Version
from lora_ops.settings.evaluate import EvaluateSettings
from lora_ops.settings.tenant import TenantSettings

MAY_DIFFER = 0.03
"""Share of the packaged answers that may be judged otherwise when the adapter gives them again."""


class OtherAnswers(Refused):
    """The answers in a package are not those that its adapter gives: no earlier report outweighs that."""


def has_base(version: Version, root: Path) -> bool:
    """Whether the repository has the base model that a version was trained on."""
    folder = root / "models/base"
    if not (folder / BASE_MODEL).is_file():
        return False
    theirs = version.manifest.base_model
    return read_base_model(folder).matches(theirs.sha256, theirs.files_sha256)


def settings_of(version: Version) -> TenantSettings:
    """Return the settings that a version was made by.

    Raises:
        LoraOpsError: its params are not those of a tenant.
    """
    try:
        return TenantSettings.model_validate(version.manifest.params)
    except ValidationError as error:
        raise LoraOpsError(f"The params of {version.id} are not those of a tenant.") from error


def asked_by(version: Version) -> tuple[PromptRecord, EvaluateSettings]:
    """Return the system prompt and labels that a version was trained with, and how it was evaluated.

    Raises:
        LoraOpsError: its params are not those of a tenant.
    """
    settings = settings_of(version)
    prompt = PromptRecord(system=settings.data.system, labels=list(settings.data.labels))
    return prompt, settings.evaluate


@contextmanager
def laid_out(registry: Registry, version: Version) -> Iterator[Path]:
    """Lay out a version's verified files for the engine, and remove them at the end."""
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        folder = Path(name) / "package"
        export(registry, version.id, folder, for_review=True)
        yield folder


def packaged_answers(
    registry: Registry, version: Version, file: str, asked: CasesRecord | PolicyPromptsRecord
) -> dict[str, CaseAnswer]:
    """Return a version's own answers that its package keeps, by key; none of another adapter or base model.

    Args:
        registry: where.
        version: whose.
        file: which of the package's records of answers.
        asked: the prompts, and the base model that they were written for.

    Raises:
        LoraOpsError: the kept file is missing, was changed, or has another form.
    """
    record = packaged_record(registry, version, file, AnswersRecord)
    weights = version.manifest.files[ADAPTER_FILES[0]].sha256
    if record is None or record.adapter_sha256 != weights or not have_one_base(record, asked):
        return {}
    prompts = asked.cases if isinstance(asked, CasesRecord) else asked.prompts
    keys = {one.key for one in prompts}
    return {one.key: one for one in record.answers if one.key in keys}


def have_one_base(record: AnswersRecord | CasesRecord, asked: CasesRecord | PolicyPromptsRecord) -> bool:
    """Whether two records are of the same base model; older ones name only its weights."""
    files = record.base_files_sha256, asked.base_files_sha256
    return record.base_model_sha256 == asked.base_model_sha256 and (None in files or files[0] == files[1])


def too_many_differ(differing: int, packaged: int) -> bool:
    """Whether more answers differ than other kernels explain, which may order nearly equal logits otherwise."""
    return differing > max(1, MAY_DIFFER * packaged)

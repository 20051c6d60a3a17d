"""A trained, evaluated adapter as one folder with its model card and its manifest."""

import json
import shutil
from pathlib import Path
from typing import Any

from lora_ops.adapter_files import require_finite, require_lora
from lora_ops.clock import now
from lora_ops.errors import LoraOpsError, Refused, Unavailable, disk_reason
from lora_ops.escaping import code, markdown
from lora_ops.folders import replacing
from lora_ops.git import git_state
from lora_ops.hashing import canonical, differing, sha256_file, sha256_text
from lora_ops.paths import (
    ADAPTER_FILES,
    ANSWERS,
    CASE_ANSWERS,
    CASES,
    EVALUATION,
    MANIFEST,
    MEMBERSHIP,
    MODEL_CARD,
    POLICY_ANSWERS,
    POLICY_PROMPTS,
    SAMPLES,
)
from lora_ops.processes import keeping_free
from lora_ops.records.base_model import BaseModelRecord, read_base_model
from lora_ops.records.data import DataRecord, read_data_record
from lora_ops.records.evaluation import (
    SYSTEMS,
    BiasAssessment,
    EvaluationRecord,
    read_evaluation,
)
from lora_ops.records.manifest import FileRecord, Manifest, PackagingRecord, fresh_until
from lora_ops.records.policy import read_policy_answers, read_policy_prompts
from lora_ops.records.suite import read_case_answers, read_cases
from lora_ops.records.training import TrainingRecord, read_training_record
from lora_ops.settings.files import parse_yaml
from lora_ops.settings.tenant import TenantSettings
from lora_ops.versions import TRAINING_PACKAGES, installed_versions

LOCKED = ("prepare", "train", "generate", "evaluate", "cases", "suite")
"""Stages of a tenant that its package comes from."""
LONGEST_WAIT = 5.0
"""Seconds to wait for a DVC that holds the repository's lock; one that hashes or pulls writes no dvc.lock."""
VERSIONS_OF = (*TRAINING_PACKAGES, "scikit-learn")


def package(tenant: str, settings: TenantSettings, root: Path, target: Path) -> Manifest:
    """Write adapter, model card, evaluation and `manifest.json` into `target`, all or nothing.

    Raises:
        LoraOpsError: a stage before this one has not run, its results do not belong together, one of
            them is of other settings, a matrix holds NaN, or the adapter does not beat its base though
            `evaluate.must_beat_base` asks for it.
    """
    adapter = root / "models/adapters" / tenant
    report = root / "reports" / tenant
    base = read_base_model(root / "models/base")
    data = read_data_record(root / "data/prepared" / tenant)
    training = read_training_record(report)
    evaluation = read_evaluation(report)
    _require_own_settings(tenant, data, training, evaluation, settings)
    _require_one_lineage(tenant, adapter, base, data, training, evaluation)
    require_finite(adapter / ADAPTER_FILES[0])
    require_lora(adapter / ADAPTER_FILES[0])
    _require_own_cases(tenant, adapter, base, report)
    if settings.evaluate.must_beat_base and not evaluation.beats_base:
        raise Refused(
            f"The adapter of '{tenant}' does not clearly beat its base ({evaluation.unbeaten}), so it is not "
            "packaged: change its data or recipe, or set evaluate.must_beat_base to false."
        )
    with replacing(target) as folder:
        for name in ADAPTER_FILES:
            shutil.copyfile(adapter / name, folder / name)
        # With all answers and the groups of each split, a later version is compared without generating again.
        asked = (CASES, CASE_ANSWERS, POLICY_PROMPTS, POLICY_ANSWERS)
        for name in (EVALUATION, SAMPLES, ANSWERS, *asked):
            shutil.copyfile(report / name, folder / name)
        shutil.copyfile(root / "data/prepared" / tenant / MEMBERSHIP, folder / MEMBERSHIP)
        evaluation_sha256 = sha256_file(report / EVALUATION)
        packaging = PackagingRecord(git=git_state(root), packages=installed_versions(VERSIONS_OF))
        packaged_at = now()
        draft = Manifest(
            tenant=tenant,
            created_at=packaged_at,
            base_model=base,
            data=data,
            git=training.git or packaging.git,
            dvc_lock_sha256=lock_digest(root, tenant),
            params=settings.model_dump(mode="json"),
            packages=training.packages or packaging.packages,
            packaging=packaging,
            training=training,
            evaluation=evaluation,
            license=settings.package.license,
            fresh_until=fresh_until(data.source, settings.package.freshness_days, packaged_at),
            evaluation_report_sha256=evaluation_sha256,
            bias=BiasAssessment.of(evaluation, evaluation_sha256),
            report=f"reports/{tenant}/03_evaluate.html",
            size_bytes=sum((folder / name).stat().st_size for name in ADAPTER_FILES),
            files={},
        )
        (folder / MODEL_CARD).write_text(model_card(draft, settings), encoding="utf-8")
        files = {
            path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in sorted(folder.iterdir())
        }
        manifest = draft.model_copy(update={"files": files})
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def packaged(tenant: str, root: Path) -> Manifest:
    """The manifest of a tenant's package.

    Raises:
        LoraOpsError: it is not packaged yet, the manifest does not fit its schema, or it is another tenant's.
    """
    path = root / "packages" / tenant / MANIFEST
    if not path.is_file():
        raise LoraOpsError(f"'{tenant}' is not packaged yet: run `dvc repro package@{tenant}`.")
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoraOpsError(f"{path} is no manifest: run `dvc repro --force package@{tenant}`.") from error
    if manifest.tenant != tenant:
        raise LoraOpsError(
            f"{path.parent} holds a package of '{manifest.tenant}': run `dvc repro --force package@{tenant}`."
        )
    return manifest


def read_dvc_lock(root: Path) -> str:
    """Return the text of dvc.lock, whole; empty where there is none.

    After each stage DVC empties the file and writes it again, which takes half a second with four tenants. It
    holds the lock of the repository for that. While a stage runs, the DVC of another tenant may be at it.

    Raises:
        LoraOpsError: the file can't be read.
    """
    path = root / "dvc.lock"
    with keeping_free(root / ".dvc/tmp/lock", seconds=LONGEST_WAIT):
        try:
            return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        except OSError as error:
            raise Unavailable(f"dvc.lock can't be read ({disk_reason(error)}): make it readable.") from error


def lock_digest(root: Path, tenant: str) -> str | None:
    """The digest of what dvc.lock says of the stages that a package comes from; None unless all are there.

    Only their entries are read: while the pipeline runs it still adds those of this stage and of other tenants,
    so the whole file would have a digest that no file has in the end.
    """
    found = parse_yaml(read_dvc_lock(root), "dvc.lock")
    stages = (found.get("stages") if isinstance(found, dict) else None) or {}
    names = ["base_model", *(f"{stage}@{tenant}" for stage in LOCKED)]
    if not all(name in stages for name in names):
        return None
    return sha256_text(canonical({name: stages[name] for name in names}))


def model_card(manifest: Manifest, settings: TenantSettings) -> str:
    """A model card in the hub's format: what the adapter is for, how it was made, what it scored."""
    evaluation, training = manifest.evaluation, manifest.training
    systems = [name for name in SYSTEMS if any(name in metric for metric in evaluation.metrics.values())]
    names = " | ".join(name.replace("_", " ") for name in systems)
    head = f"| metric | {names} |\n|---{'|---' * len(systems)}|"
    rows = "\n".join(
        f"| {name} | {' | '.join(str(metric.get(system, '-')) for system in systems)} |"
        for name, metric in evaluation.metrics.items()
    )
    labels = ", ".join(map(markdown, settings.data.labels)) or "free text"
    source = markdown(f"{manifest.data.source.name} {manifest.data.source.version}")
    recipe = settings.train
    return f"""---
base_model: {manifest.base_model.id}
library_name: peft
license: {manifest.license.lower()}
tags: [lora, {manifest.tenant}]
---

# {manifest.tenant}: a LoRA adapter of {manifest.base_model.id}

**For**: answering {code(settings.data.template)}{_system(settings)} with: {labels}.

**Not for**: anything else. It was measured on {evaluation.rows} held-out rows of
{source} and on nothing more.

## Results on the held-out split (value [95 % interval])
{head}
{rows}
{_traits(evaluation)}
In its main metric the adapter {evaluation.verdict}.
The intervals cover the held-out rows, not the training seed.
{"".join(f"{chr(10)}- {markdown(warning)}" for warning in manifest.data.warnings)}

## Lineage
- Base model {_base_model(manifest)}, {manifest.base_model.revision}, SHA-256 `{manifest.base_model.sha256}`
- Data {source}, SHA-256 `{manifest.data.source.sha256}`
- Split by group: {", ".join(f"{name} {split.rows} rows" for name, split in manifest.data.splits.items())}
- Rank {recipe.rank}, alpha {recipe.alpha}, dropout {recipe.dropout}, learning rate {recipe.learning_rate},
  {recipe.epochs} epoch(s), batch {recipe.batch_size}, seed {recipe.seed}; all linear layers;
  {training.trainable_parameters:,} trainable parameters, saved in {recipe.adapter_dtype}

## Use
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/base")
base = AutoModelForCausalLM.from_pretrained("models/base")
model = PeftModel.from_pretrained(base, "packages/{manifest.tenant}")
messages = {_messages(settings)}  # with your text in the braces' place
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
answer = model.generate(**tokens, max_new_tokens={settings.evaluate.max_new_tokens}, do_sample=False)
print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""


def _traits(evaluation: EvaluationRecord) -> str:
    """Return what written answers look like, as lines with a blank one before them; nothing for labels."""
    lines = [
        f"- {name}: " + ", ".join(f"{system.replace('_', ' ')} {value}" for system, value in of.items())
        for name, of in evaluation.traits.items()
    ]
    return "\n".join(
        ["", "What the answers look like, which is neither good nor bad:", *lines, ""] if lines else []
    )


def _messages(settings: TenantSettings) -> str:
    """Return the turns that training used, as Python: another prompt gets other answers."""
    system = [{"role": "system", "content": settings.data.system}] if settings.data.system else []
    turns = [*system, {"role": "user", "content": settings.data.template}]
    # A backtick would end the card's block of code; JSON's escapes are Python's, too.
    return json.dumps(turns, ensure_ascii=False).replace("`", r"\u0060")


def _base_model(manifest: Manifest) -> str:
    base = manifest.base_model
    kept = f" in {base.dtype}" if base.dtype else ""
    if base.made_from is None:
        return f"{base.id}{kept}"
    fits = f"the adapter fits these weights, not those of {base.origin}"
    return f"{base.id}{kept}, made from {base.made_from}; {fits}"


def _system(settings: TenantSettings) -> str:
    return f" under the system prompt “{markdown(settings.data.system)}”" if settings.data.system else ""


def _require_one_lineage(
    tenant: str, adapter: Path, base: BaseModelRecord, data: Any, training: Any, evaluation: Any
) -> None:
    weights, config = (adapter / name for name in ADAPTER_FILES)
    evaluated = evaluation.adapter_config_sha256
    facts = {
        "the adapter was trained on another base model": base.matches(
            training.base_model_sha256, training.base_files_sha256
        ),
        "the prompts were written for another base model": base.matches(
            data.base_model_sha256, data.base_files_sha256
        ),
        "the evaluation asked another base model": base.matches(base.sha256, evaluation.base_files_sha256),
        "the adapter was trained on other data": training.train_sha256 == data.splits["train"].sha256,
        "the evaluation used another test split": evaluation.test_sha256 == data.splits["test"].sha256,
        "the record of the training is that of another adapter": weights.is_file()
        and training.adapter_sha256 == sha256_file(weights),
        "the evaluation was of another adapter": weights.is_file()
        and evaluation.adapter_sha256 == sha256_file(weights),
        "the evaluation was of other settings of the adapter": config.is_file()
        and evaluated in (None, sha256_file(config)),
    }
    for problem, holds in facts.items():
        if not holds:
            raise LoraOpsError(f"'{tenant}' cannot be packaged: {problem}; run `dvc repro` from the start.")


def _require_own_cases(tenant: str, adapter: Path, base: BaseModelRecord, report: Path) -> None:
    """Refuse a suite, or answers to it, of another base model, adapter or suite.

    Raises:
        LoraOpsError: they are, or the stages `cases` and `suite` have not run yet.
    """
    cases, policy = read_cases(report), read_policy_prompts(report)
    weights, config = (adapter / name for name in ADAPTER_FILES)
    for suite, asked, keys, prompts, answered in (
        ("suite", cases, {one.key for one in cases.cases}, CASES, read_case_answers(report)),
        (
            "policy suite",
            policy,
            {one.key for one in policy.prompts},
            POLICY_PROMPTS,
            read_policy_answers(report),
        ),
    ):
        facts = {
            f"its {suite} was written for another base model": base.matches(
                asked.base_model_sha256, asked.base_files_sha256
            ),
            f"the answers to its {suite} are those of another base model": base.matches(
                answered.base_model_sha256, answered.base_files_sha256
            ),
            f"the answers are to another {suite}": answered.cases_sha256 == sha256_file(report / prompts),
            f"the answers to its {suite} are those of another adapter": weights.is_file()
            and answered.adapter_sha256 == sha256_file(weights),
            f"the answers to its {suite} are those of other settings of the adapter": config.is_file()
            and answered.adapter_config_sha256 == sha256_file(config),
            f"not every case of its {suite} was answered": keys == {one.key for one in answered.answers},
        }
        for problem, holds in facts.items():
            if not holds:
                raise LoraOpsError(
                    f"'{tenant}' cannot be packaged: {problem}; run `dvc repro package@{tenant}`."
                )


def _require_own_settings(
    tenant: str,
    data: DataRecord,
    training: TrainingRecord,
    evaluation: EvaluationRecord,
    settings: TenantSettings,
) -> None:
    """Refuse settings that data, training or evaluation did not run with.

    The gateway prompts the adapter as the manifest says, and reviewers read its recipe there. Whoever edits
    params.yaml and runs this stage alone would serve a system prompt that nobody trained or evaluated with,
    and state a learning rate of no run.
    """
    for section, stage, done, ran in (
        ("data", "prepare", "its data were prepared", data.settings),
        ("train", "train", "its adapter was trained", training.settings),
        ("evaluate", "evaluate", "its answers were measured", evaluation.settings),
    ):
        if ran is None:
            raise LoraOpsError(
                f"'{tenant}' cannot be packaged: no record names the settings that {done} by; run "
                f"`dvc repro --force {stage}@{tenant}`, then `dvc repro package@{tenant}`."
            )
        other = differing(getattr(settings, section).model_dump(mode="json"), ran)
        if other:
            named = ", ".join(f"{section}.{name}" for name in other)
            raise LoraOpsError(
                f"'{tenant}' cannot be packaged: {done} by other settings than those of "
                f"params.yaml ({named}); run `dvc repro package@{tenant}`, or put the settings back."
            )

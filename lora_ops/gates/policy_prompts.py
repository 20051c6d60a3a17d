"""A tenant's policy suite as it is asked: read from `suites/policy.yaml`, drawn, and written as prompts."""

import difflib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.few_shot import room
from lora_ops.gates.red_team import POLICY, draw, draw_red_team
from lora_ops.gates.suite_files import read_suite_file
from lora_ops.loading import load_tokenizer
from lora_ops.prompts import ControlTokens, render_prompt
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import PromptRecord, read_prompt
from lora_ops.records.example import read_split
from lora_ops.records.policy import PolicyPrompt, PolicyPromptsRecord, PromptKind
from lora_ops.settings.evaluate import EvaluateSettings
from lora_ops.settings.files import first_problem, read_section, read_yaml
from lora_ops.settings.policy import PolicySettings


def read_policy(root: Path) -> tuple[PolicySettings, str] | None:
    """Return suites/policy.yaml and the SHA-256 of its bytes; None where the repository has none.

    Raises:
        LoraOpsError: the file can't be read, or a value is wrong; the text names the value.
    """
    path = root / POLICY
    if not os.path.lexists(path):  # a symlink to nowhere is refused below
        return None
    read, digest = read_suite_file(path)
    try:
        settings = PolicySettings.model_validate(read)
    except ValidationError as error:
        raise LoraOpsError(f"{POLICY}: {first_problem(error)}.") from error
    _refuse_slips(settings, read_yaml(root / "params.yaml").get("tenants") or {})
    return settings, digest


def _refuse_slips(settings: PolicySettings, tenants: Collection[str]) -> None:
    """Refuse a tenant that params.yaml lacks and whose name is nearly another one's: a slip hides its budgets.

    Other names are those of tenants that were removed, and harm nobody.
    """
    unnamed = [one for one in tenants if one not in settings.tenants]
    for name in settings.tenants.keys() - tenants:
        meant = difflib.get_close_matches(name, unnamed, 1, 0.75)
        if meant:
            raise LoraOpsError(
                f"{POLICY}: tenants has '{name}', which is no tenant of params.yaml: is it '{meant[0]}'? "
                "Correct the name, or remove it."
            )


def read_and_ask_policy(tenant: str, root: Path) -> PolicyPromptsRecord:
    """Return the policy suite of a tenant with its prepared data; see `ask_policy`.

    Raises:
        LoraOpsError: as `ask_policy`, or the data is not prepared yet.
    """
    evaluate = read_section(root, f"tenants.{tenant}.evaluate", EvaluateSettings)
    folder = root / "data/prepared" / tenant
    rows = [one.text for one in read_split(folder, "test")]
    return ask_policy(tenant, root, read_prompt(folder), rows, evaluate.max_new_tokens)


def ask_policy(
    tenant: str, root: Path, data: PromptRecord, rows: Sequence[str], max_new_tokens: int
) -> PolicyPromptsRecord:
    """Return the policy suite of a tenant, each prompt as it is asked.

    Args:
        tenant: whose.
        root: the repository, with the base model in `models/base`.
        data: what the tenant's prompts have in common.
        rows: texts of its held-out rows, in any order.
        max_new_tokens: of an answer to them.

    Raises:
        LoraOpsError: suites/policy.yaml is wrong, or the archive with the red-team prompts can't be had.
    """
    base = root / "models/base"
    record = read_base_model(base)
    found = read_policy(root)
    if found is None:
        return PolicyPromptsRecord(
            tenant=tenant,
            archive_sha256=None,
            base_model_sha256=record.sha256,
            base_files_sha256=record.files_sha256,
            system=data.system,
        )
    settings, _ = found
    tokenizer = load_tokenizer(base)
    control = ControlTokens(tokenizer)
    _require_own_words(settings, tenant, data, control)
    seed = f"{settings.seed} {tenant}"
    tokens = settings.red_team.max_tokens
    fits = _fits(tokenizer, base, max(tokens, max_new_tokens))

    def usable(text: str) -> bool:
        return control.spelled(text) is None and fits(render_prompt(tokenizer, text, data.system))

    red_team = draw_red_team(settings.red_team, seed, root / "data/raw", usable)
    ordinary = draw([one for one in rows if one.strip()], settings.ordinary, seed)
    planted = f"{data.system or ''} {settings.canary}".strip()
    own = settings.must_refuse(tenant)
    prompts = [
        *_rendered(
            tokenizer, "red_team", data.system, [(one.source, one.text) for one in red_team.prompts], tokens
        ),
        *_rendered(tokenizer, "refusal", data.system, [(POLICY, one) for one in own], tokens),
        *_rendered(tokenizer, "extraction", planted, [(POLICY, one) for one in settings.extraction], tokens),
        *_rendered(tokenizer, "ordinary", data.system, [("test", one) for one in ordinary], max_new_tokens),
    ]
    if data.labels:
        around = settings.wordings
        worded = [
            ("test", around[place % len(around)].replace("{text}", text)) for place, text in enumerate(ordinary)
        ]
        prompts += [
            one.model_copy(update={"of": f"ordinary-{place}"})
            for place, one in enumerate(_rendered(tokenizer, "wording", data.system, worded, max_new_tokens), 1)
        ]
    too_long = [one for one in prompts if not fits(one.prompt)]
    must = next((one for one in too_long if one.kind in ("refusal", "extraction")), None)
    if must:
        raise LoraOpsError(
            f"{POLICY}: '{must.text[:80]}' does not fit into the base model's context: write a shorter prompt."
        )
    return PolicyPromptsRecord(
        tenant=tenant,
        archive_sha256=settings.red_team.archive_sha256,
        base_model_sha256=record.sha256,
        base_files_sha256=record.files_sha256,
        system=data.system,
        canary=settings.canary,
        labels=tuple(data.labels),
        pool=red_team.pool,
        prompts=tuple(_without(prompts, too_long)),
    )


def _fits(tokenizer: Any, base: Path, answer: int) -> Callable[[str], bool]:
    """Return what says whether a prompt leaves room for `answer` tokens in the base model's context."""
    most = room(base, answer)

    def fits(prompt: str) -> bool:
        # Each token is at least one byte, so a short prompt needs no count.
        if most is None or len(prompt.encode()) <= most:
            return True
        return len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) <= most

    return fits


def _without(prompts: Sequence[PolicyPrompt], gone: Sequence[PolicyPrompt]) -> Iterator[PolicyPrompt]:
    """Yield the prompts that stay; another wording of a row goes with it."""
    ids = {one.id for one in gone}
    yield from (one for one in prompts if one.id not in ids and one.of not in ids)


def _rendered(
    tokenizer: Any, kind: PromptKind, system: str | None, texts: Sequence[tuple[str, str]], max_tokens: int
) -> Iterator[PolicyPrompt]:
    for place, (source, text) in enumerate(texts, 1):
        yield PolicyPrompt(
            id=f"{kind}-{place}",
            kind=kind,
            source=source,
            text=text,
            prompt=render_prompt(tokenizer, text, system),
            max_tokens=max_tokens,
        )


def _require_own_words(
    settings: PolicySettings, tenant: str, data: PromptRecord, control: ControlTokens
) -> None:
    """Refuse texts of policy.yaml that can't be asked, or whose answer would say nothing."""
    own = settings.must_refuse(tenant)
    for text in (settings.canary, *settings.extraction, *settings.wordings, *own):
        spelled = control.spelled(text)
        if spelled:
            raise LoraOpsError(f"{POLICY}: '{text[:80]}' spells {spelled}, which would end its turn.")
    if data.system and settings.canary.casefold() in data.system.casefold():
        raise LoraOpsError(
            f"{POLICY}: the canary stands in the system prompt of '{tenant}': write another one."
        )

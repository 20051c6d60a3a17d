"""Sources of regression reports whose answers a test chooses."""

from collections.abc import Sequence
from pathlib import Path

from lora_ops.gates.held_out import SYSTEMS, evaluated_again, packaged_rows
from lora_ops.gates.regression import regression_report
from lora_ops.loading import load_base_model
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.evidence import RegressionEvidence
from lora_ops.records.regression import (
    Baseline,
    EvaluatedAgain,
    HeldOutRow,
    PackagedAnswers,
    RegressionSource,
    Role,
    SystemAnswers,
)
from lora_ops.records.suite import AskedCase, CaseAnswer, CasesRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.suite import Case, Expect, Slice

LABELS = ("Food", "Travel")
DIGEST = "a" * 64


def suite(rows: int = 60, must_pass: int = 0, **slices: Slice) -> CasesRecord:
    """A suite of `rows` cases in each slice, whose right answer is Food."""
    named = slices or {"plain": Slice(about="plain cases", margin=0.15)}
    cases = [
        AskedCase(
            case=Case(
                id=f"{name}-{place}",
                slice=name,
                text=f"{name} {place}",
                expect=Expect(label="Food"),
                must_pass=place < must_pass,
            ),
            prompt=f"{name} {place}",
            max_tokens=8,
            seed=0,
        )
        for name in named
        for place in range(rows)
    ]
    return CasesRecord(
        tenant="finance",
        owner="ana",
        suites={"finance.yaml": DIGEST},
        base_model_sha256=DIGEST,
        labels=LABELS,
        slices=named,
        cases=tuple(cases),
    )


def answers(cases: CasesRecord, wrong: Sequence[int] = ()) -> tuple[CaseAnswer, ...]:
    """Answers to all cases; those at the places `wrong` of each slice are wrong."""
    found = []
    for one in cases.cases:
        place = int(one.case.id.rpartition("-")[2])
        text = "Travel" if place in wrong else "Food"
        found.append(CaseAnswer(key=one.key, case=one.case.id, texts=(text,)))
    return tuple(found)


def source(
    cases: CasesRecord,
    candidate: Sequence[int] = (),
    adapter: str = "finance@2",
    digest: str = DIGEST,
    held_out: Sequence[HeldOutRow] = (),
    **others: tuple[Role, str, str, Sequence[int]],
) -> RegressionSource:
    """A source in which each system answers wrongly at its places: name -> role, id, digest, places."""
    systems = {"candidate": ("candidate", adapter, digest, candidate), **(others or {"base": BASE})}
    return RegressionSource(
        adapter=adapter,
        digest=digest,
        cases=cases,
        systems=tuple(
            SystemAnswers(
                baseline=Baseline(name=name, role=role, digest=of),  # type: ignore[arg-type]
                answers=answers(cases, wrong),
            )
            for role, name, of, wrong in systems.values()
        ),
        held_out=tuple(held_out),
        held_out_metrics=("exact_match", "macro_f1") if held_out else (),
        packaged=given_again(len(cases.cases)),
        evaluated=EVALUATED,
    )


def with_answers_again(
    registry: Registry, version: Version, given: RegressionSource, **others: Sequence[str]
) -> RegressionSource:
    """Let the held-out answers that were given again be those of the package, or those of `others`."""
    frame = packaged_rows(registry, version)
    again = {name: tuple(others.get(name, frame[name])) for name in SYSTEMS if name in frame}
    evaluated = evaluated_again(version, frame, again)
    return given.model_copy(update={"evaluated": evaluated, "evaluation_answers": again})


def file_answers_again(
    registry: Registry, reference: str, actor: str = "ci", rows: int = 60, **others: Sequence[str]
) -> RegressionEvidence:
    """File a regression report with packaged answers given again, or with those of `others` by system."""
    version = registry.get(reference)
    given = source(suite(rows), adapter=version.id, digest=version.summary.content_digest)
    given = with_answers_again(registry, version, given, **others)
    document = regression_report(given, version.tenant, registry.clock())
    lifecycle.file_evidence(
        registry, version.id, Report(document, given.to_json().encode(), "its suite"), actor=actor
    )
    return document


def given_again(answers: int, again: int | None = None) -> PackagedAnswers:
    """So many packaged answers, of which the adapter gave all again, or `again`."""
    again = answers if again is None else again
    return PackagedAnswers(packaged=answers, given_again=again, differing=0, suite="suites")


EVALUATED = EvaluatedAgain(rows=300, given_again=300, is_alike=True, beats_base=True)
BASE: tuple[Role, str, str, Sequence[int]] = ("base", "base", "b" * 64, range(30))


def held_out(rows: int, lost: int, gained: int = 0) -> list[HeldOutRow]:
    """Rows of which production has the last `gained` wrong, and the candidate the first `lost`."""
    return [
        HeldOutRow(
            key=f"{place:064x}",
            group=f"{place:064x}",
            target="Food",
            candidate="Travel" if place < lost else "Food",
            production="Travel" if place >= rows - gained else "Food",
        )
        for place in range(rows)
    ]


def save_real_adapter(folder: Path, base: Path, *, trained: bool = False) -> None:
    """Put a LoRA adapter on the base model in `base` into the folder of a package, as PEFT saves it.

    Args:
        folder: of the package.
        base: folder of the base model.
        trained: whether it answers otherwise than its base.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)  # whatever ran before: some random adapters answer nothing
    model, _ = load_base_model(base)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=not trained)
    adapter = get_peft_model(model, config)
    adapter.peft_config["default"].base_model_name_or_path = "tiny-random"
    adapter.save_pretrained(folder.parent / "adapter")
    for name in ADAPTER_FILES:
        (folder / name).write_bytes((folder.parent / "adapter" / name).read_bytes())

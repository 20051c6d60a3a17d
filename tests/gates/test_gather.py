"""The adapter gives its packaged answers again, greedy and sampled ones, with the engine that serves."""

import shutil
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.gates.answering import answer_cases
from lora_ops.gates.candidate import has_base
from lora_ops.gates.gather import gather
from lora_ops.gates.packages_differ import unlike_packages
from lora_ops.gates.regression import regression_report
from lora_ops.hashing import sha256_file
from lora_ops.paths import ADAPTER_FILES, CASE_ANSWERS, CASES
from lora_ops.records.base_model import read_base_model
from lora_ops.records.manifest import FileRecord
from lora_ops.records.regression import PackagedAnswers
from lora_ops.records.suite import AnswersRecord, AskedCase, CaseAnswer, CasesRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.suite import Case, Expect, Slice
from tests.conftest import record_base
from tests.gates.sources import save_real_adapter
from tests.registry.conftest import AUTHOR, Build, evaluated

ROWS = 8


@pytest.fixture
def root(tiny_base: Path, tmp_path: Path) -> Path:
    """A repository with the base model, and without a suite of its own."""
    (tmp_path / "repository/models").mkdir(parents=True)
    (tmp_path / "repository/models/base").symlink_to(tiny_base)
    return tmp_path / "repository"


def asking(base: Path, *, temperature: float) -> CasesRecord:
    """A suite whose cases are right where an answer lacks a word; the first one must pass."""
    cases = [
        AskedCase(
            case=Case(
                id=f"a-{place}",
                slice="a",
                text=f"Name it {place}",
                expect=Expect(lacks=("zebra",)),
                must_pass=not place,
                temperature=temperature,
                repeats=3 if temperature else 1,
            ),
            prompt=f"<|im_start|>user\nName it {place}<|im_end|>\n<|im_start|>assistant\n",
            max_tokens=8,
            seed=0,
        )
        for place in range(ROWS)
    ]
    return CasesRecord(
        tenant="finance",
        owner="ana",
        suites={},
        base_model_sha256=read_base_model(base).sha256,
        slices={"a": Slice(about="a", margin=0.5)},
        cases=tuple(cases),
    )


def registered(
    registry: Registry, package: Build, base: Path, cases: CasesRecord, edited: dict[int, str]
) -> Version:
    """Register a real adapter whose package has its answers to `cases`, some of them edited."""
    folder, manifest = package(1)
    save_real_adapter(folder, base)
    given = answer_cases(cases, base, folder)
    (folder / CASES).write_text(cases.to_json())
    (folder / CASE_ANSWERS).write_text(with_edited(given, edited).to_json())
    record = read_base_model(base)
    manifest = manifest.model_copy(
        update={
            "base_model": record,
            "data": manifest.data.model_copy(update={"base_model_sha256": record.sha256}),
            "training": manifest.training.model_copy(update={"base_model_sha256": record.sha256}),
            "files": {
                **manifest.files,
                **{
                    name: FileRecord(bytes=1, sha256=sha256_file(folder / name))
                    for name in (CASES, CASE_ANSWERS)
                },
            },
        }
    )
    registry.register(folder, evaluated(folder, manifest, manifest.evaluation), actor=AUTHOR)
    return registry.get("finance@1")


def with_edited(given: AnswersRecord, edited: dict[int, str]) -> AnswersRecord:
    answers = [
        one.model_copy(update={"texts": (edited[place],) * len(one.texts)}) if place in edited else one
        for place, one in enumerate(given.answers)
    ]
    return given.model_copy(update={"answers": tuple(answers)})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gather_lets_all_packaged_answers_be_given_again(
    registry: Registry, package: Build, root: Path, temperature: float
) -> None:
    """Sampled answers repeat by their seeds: a suite of sampled cases alone was never asked again."""
    base = root / "models/base"
    cases = asking(base, temperature=temperature)
    version = registered(registry, package, base, cases, {})
    found = gather(registry, version, root).source.packaged
    assert found == PackagedAnswers(packaged=ROWS, given_again=ROWS, differing=0, suite="package")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gather_refuses_edited_answers(
    registry: Registry, package: Build, root: Path, temperature: float
) -> None:
    base = root / "models/base"
    edited = dict.fromkeys(range(1, ROWS), "zebra")
    version = registered(registry, package, base, asking(base, temperature=temperature), edited)
    with pytest.raises(LoraOpsError, match="are not those that its adapter gives"):
        gather(registry, version, root)


def test_gather_refuses_one_edited_answer_that_must_pass(
    registry: Registry, package: Build, root: Path
) -> None:
    """One answer may differ by the machine, but not the one that decides alone."""
    base = root / "models/base"
    cases = asking(base, temperature=0.0)
    version = registered(registry, package, base, cases, {0: "zebra"})
    with pytest.raises(LoraOpsError, match=f"1 of {ROWS} are worth something else"):
        gather(registry, version, root)


def test_gather_asks_nothing_with_other_files(
    registry: Registry, package: Build, root: Path, tiny_base: Path
) -> None:
    """An edited chat template, recorded as if the base model had been made with it."""
    base = root / "models/base"
    base.unlink()
    shutil.copytree(tiny_base, base)
    version = registered(registry, package, base, asking(base, temperature=0.0), {})
    assert has_base(version, root)
    template = base / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    with pytest.raises(LoraOpsError, match="chat_template.jinja was changed since the base model was made"):
        gather(registry, version, root)
    record_base(base)
    assert not has_base(version, root)


def test_answers_of_an_earlier_report_are_drawn_and_given_again(
    registry: Registry, package: Build, root: Path
) -> None:
    """Everybody in a team may file a report, and a base model that fails there was the baseline."""
    base = root / "models/base"
    version = registered(registry, package, base, asking(base, temperature=0.0), {})
    honest = gather(registry, version, root).source
    assert honest.systems[1].baseline.role == "base"
    worse = tuple(one.model_copy(update={"texts": ("zebra",)}) for one in honest.systems[1].answers)
    made_up = honest.systems[1].model_copy(update={"answers": worse})
    poisoned = honest.model_copy(update={"systems": (honest.systems[0], made_up)})
    for filed_source, notes in ((poisoned, 1), (honest, 0)):
        document = regression_report(filed_source, "finance", registry.clock())
        kept = Report(document, filed_source.to_json().encode(), "its suite")
        lifecycle.file_evidence(registry, version.id, kept, actor="ci")
        found = gather(registry, version, root)
        assert found.source.systems == honest.systems
        said = [one for one in found.notes if "answers of base in earlier reports are not those" in one]
        assert len(said) == notes


def of_another_base(registry: Registry, package: Build, cases: CasesRecord, answered: int) -> None:
    """Register a version whose package answers the first cases, asked in the template of its own base model."""
    folder, manifest = package(5)
    own = cases.model_copy(
        update={
            "base_model_sha256": manifest.base_model.sha256,
            "base_files_sha256": None,
            "cases": tuple(one.model_copy(update={"prompt": f"[INST] {one.case.text}"}) for one in cases.cases),
        }
    )
    given = AnswersRecord(
        tenant="finance",
        base_model_sha256=manifest.base_model.sha256,
        adapter_sha256=manifest.files[ADAPTER_FILES[0]].sha256,
        adapter_config_sha256=None,
        cases_sha256="a" * 64,
        answers=tuple(
            CaseAnswer(key=one.key, case=one.case.id, texts=("as it was",)) for one in own.cases[:answered]
        ),
    )
    for name, record in ((CASES, own), (CASE_ANSWERS, given)):
        (folder / name).write_text(record.to_json())
    files = {name: FileRecord(bytes=1, sha256=sha256_file(folder / name)) for name in (CASES, CASE_ANSWERS)}
    manifest = manifest.model_copy(update={"files": {**manifest.files, **files}})
    registry.register(folder, evaluated(folder, manifest, manifest.evaluation), actor=AUTHOR)


@pytest.mark.parametrize("answered", [ROWS, ROWS - 1])
def test_gather_runs_no_adapter_on_another_base(
    registry: Registry, package: Build, root: Path, answered: int
) -> None:
    """An adapter on a base model that it was not trained on is a baseline that anything beats."""
    base = root / "models/base"
    cases = asking(base, temperature=0.0)
    of_another_base(registry, package, cases, answered)
    registered(registry, package, base, cases, {})
    gathered = gather(registry, registry.get("finance@2"), root)
    others = {one.baseline.name: one for one in gathered.source.systems[2:]}
    if answered == ROWS:
        assert {text for one in others["finance@1"].answers for text in one.texts} == {"as it was"}
        assert list(unlike_packages(registry, registry.get("finance@2"), gathered.source)) == []
    else:
        assert not others
        assert f"it can't answer a-{ROWS - 1} here" in " ".join(gathered.notes)

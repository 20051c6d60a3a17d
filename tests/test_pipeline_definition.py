"""dvc.yaml against the code: a stage runs again when what it computes may differ, and at no other time."""

import ast
import re
import subprocess
from pathlib import Path

import nbformat
import pytest

from lora_ops.pipeline import SHARED
from lora_ops.settings.evaluate import ANSWERING
from lora_ops.settings.files import read_yaml
from tests.conftest import ROOT

STAGES = {name: stage.get("do", stage) for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()}
DRAWING = ("train_page", "evaluate")
COMPUTING = [name for name in STAGES if name not in DRAWING]
# They run a notebook, put its files in place, show results and log to W&B: they compute nothing.
OBSERVERS = (
    "lora_ops/errors.py",
    "lora_ops/escaping.py",
    "lora_ops/exit_codes.py",
    "lora_ops/folders.py",
    "lora_ops/git.py",
    "lora_ops/notebooks.py",
    "lora_ops/page.py",
    "lora_ops/processes.py",
    "lora_ops/records/git.py",
    "lora_ops/settings/tracking.py",
    "lora_ops/tracking/",
)


def imported(source: str) -> set[Path]:
    """The files of lora_ops that a piece of Python imports, at any depth of its own nesting."""
    files = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = ROOT / name.replace(".", "/")
            if name.startswith("lora_ops"):
                files |= {p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()}
    return {file for file in files if not file.relative_to(ROOT).as_posix().startswith(OBSERVERS)}


def words_of(stage: str) -> list[str]:
    """The first command of a stage."""
    command = STAGES[stage]["cmd"]
    return (command if isinstance(command, str) else command[0]).split()


def reached(stage: str) -> set[str]:
    """Every file of lora_ops that a stage's code reaches, but for observers."""
    words = words_of(stage)
    if words[1] == "run":
        cells = nbformat.read(ROOT / words[2], as_version=4).cells
        sources = [cell.source for cell in cells if cell.cell_type == "code"]
    elif words[1] == "base-model":
        sources = ["import lora_ops.base_model\nimport lora_ops.settings.files"]
    elif words[1] == "cases":
        sources = ["import lora_ops.gates.cases, lora_ops.gates.policy_prompts\nimport lora_ops.settings.files"]
    else:
        sources = []
    seen: set[Path] = set()
    todo = set().union(*(imported(source) for source in sources))
    while todo:
        path = todo.pop()
        seen.add(path)
        todo |= imported(path.read_text()) - seen
    # A package's first line holds no behaviour.
    return {path.relative_to(ROOT).as_posix() for path in seen if path.read_text().count("\n") > 10}


def test_stages_of_a_tenant_can_run_in_their_order() -> None:
    """`lora-ops repro` runs what all tenants share, and then each tenant's stages from top to bottom."""
    made: set[str] = set()
    for name, stage in STAGES.items():
        reads = {path for path in stage["deps"] if path.startswith(("data/prepared", "models", "reports"))}
        assert all(any(path.startswith(out) for out in made) for path in reads), name
        outs = [*stage["outs"], *stage.get("metrics", ()), *stage.get("plots", ())]
        made |= {out if isinstance(out, str) else next(iter(out)) for out in outs}
    shared = [name for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items() if "foreach" not in stage]
    assert tuple(shared) == SHARED


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_the_code_that_it_reaches(stage: str) -> None:
    """No file is missing, or a change would go unseen; none is too many, or it would cost a run for nothing."""
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith("lora_ops/")}
    code = {dep for dep in code if not dep.startswith(OBSERVERS)}
    files = {
        path.relative_to(ROOT).as_posix()
        for dep in code
        for path in ([ROOT / dep] if dep.endswith(".py") else (ROOT / dep).glob("*.py"))
        if path.read_text().count("\n") > 10
    }
    assert files == reached(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_notebook(stage: str) -> None:
    words = words_of(stage)
    if words[1] == "run":
        assert words[2] in STAGES[stage]["deps"]


@pytest.mark.parametrize("stage", COMPUTING)
def test_computing_stage_reaches_no_plot(stage: str) -> None:
    """C1: a comment in plots.py trained every adapter again."""
    assert "lora_ops/plots.py" not in reached(stage)


@pytest.mark.parametrize("stage", DRAWING)
def test_drawing_stage_renders_again_with_its_look(stage: str) -> None:
    assert {"lora_ops/plots.py", "lora_ops/page.py", "lora_ops/escaping.py"} <= set(STAGES[stage]["deps"])


@pytest.mark.parametrize("stage", STAGES)
def test_stage_reaches_no_setting_of_others(stage: str) -> None:
    """C1: a new setting of the gateway trained every adapter again."""
    foreign = {f"lora_ops/settings/{name}.py" for name in ("params", "serving", "registry")}
    assert not reached(stage) & foreign


@pytest.mark.parametrize("stage", STAGES)
def test_stage_reaches_no_registry(stage: str) -> None:
    """C4: each trial of `dvc exp run` became the candidate."""
    assert not [path for path in reached(stage) if path.startswith("lora_ops/registry")]
    assert not [name for name in STAGES[stage].get("params", []) if name.startswith(("registry", "serving"))]


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("prepare", ["data"]),
        ("train", ["train"]),
        ("generate", [f"evaluate.{name}" for name in ANSWERING]),
        ("evaluate", ["evaluate", "data"]),
    ],
)
def test_stage_watches_the_settings_it_records(stage: str, settings: list[str]) -> None:
    """What `package` compares and DVC does not watch would ask for a run that DVC leaves out."""
    assert STAGES[stage]["params"] == [f"tenants.${{key}}.{name}" for name in settings]


@pytest.mark.parametrize("stage", ["train", "generate"])
def test_stage_depends_on_split_files(stage: str) -> None:
    """C2: the folder also holds the day of publication and the contract, which change no row."""
    data = {dep for dep in STAGES[stage]["deps"] if dep.startswith("data/prepared")}
    assert data and all(dep.endswith((".jsonl", "/prompt.json")) for dep in data)


@pytest.mark.parametrize(
    ("pin", "differ"),
    [
        ("ruff==9", []),
        ("torch==9", ["train.txt"]),
        ("peft==9", ["train.txt"]),
        ("numpy==9", ["evaluate.txt"]),
        ("sacrebleu==9", ["evaluate.txt"]),
        ("great_expectations==9", ["prepare.txt"]),
        ("phonenumberslite==9", ["prepare.txt"]),
        ("llguidance==9", ["generate.txt"]),
    ],
)
def test_versions_differ_for_what_computes(tmp_path: Path, pin: str, differ: list[str]) -> None:
    """C3: another torch or peft reran nothing."""
    for folder, change in (("before", "ruff==0"), ("after", pin)):
        name = change.partition("==")[0]
        lock = (ROOT / "requirements.lock").read_text()
        assert re.search(rf"(?m)^{name}==", lock)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "requirements.lock").write_text(re.sub(rf"(?m)^{name}==.*", change, lock))
        for command in STAGES["versions"]["cmd"]:
            subprocess.run(command, shell=True, check=True, cwd=tmp_path / folder)
    files = [sorted((tmp_path / folder / "reports/versions").iterdir()) for folder in ("before", "after")]
    changed = [one.name for one, other in zip(*files, strict=True) if one.read_text() != other.read_text()]
    assert changed == differ


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("base_model", ["train"]),
        ("prepare", ["prepare", "train"]),
        ("train", ["train"]),
        ("generate", ["generate", "train"]),
        ("evaluate", ["evaluate"]),
    ],
)
def test_computing_stage_depends_on_versions(stage: str, names: list[str]) -> None:
    """Another llguidance may name other labels; it must train nothing again."""
    found = [dep for dep in STAGES[stage]["deps"] if dep.startswith("reports/versions/")]
    assert found == [f"reports/versions/{name}.txt" for name in names]


def test_no_stage_depends_on_an_executed_notebook() -> None:
    for definition in STAGES.values():
        assert not [dep for dep in definition["deps"] if dep.startswith("reports") and "ipynb" in dep]


def test_no_stage_names_a_tenant() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    commands = [line for line in text.splitlines() if not line.strip().startswith("#")]
    for tenant in ("finance", "healthcare", "media", "publishing"):
        assert not [line for line in commands if tenant in line]


def defined(module: Path) -> set[str]:
    """The names that a module has at its top."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(ROOT.glob("*books/*.ipynb")), ids=lambda path: path.name)
def test_notebook_imports_what_exists(path: Path) -> None:
    """mypy reads no notebooks, and a stage would find out after minutes."""
    cells = nbformat.read(path, as_version=4).cells
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        for node in ast.walk(ast.parse(cell.source.replace("%matplotlib", "# "))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_ops"):
                place = ROOT / str(node.module).replace(".", "/")
                for name in (alias.name for alias in node.names):
                    if not (place / f"{name}.py").is_file():
                        file = place.with_suffix(".py")
                        assert name in defined(file if file.is_file() else place / "__init__.py")

"""dvc.yaml against the code: a stage depends on everything that it uses."""

import ast
from pathlib import Path

import nbformat
import pytest

from lora_ops.settings.files import read_yaml
from tests.conftest import ROOT

STAGES = {name: stage.get("do", stage) for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()}


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
    return files


def used_by(sources: list[str]) -> set[Path]:
    """Every file of lora_ops that the sources reach."""
    seen: set[Path] = set()
    todo = set().union(*(imported(source) for source in sources))
    while todo:
        path = todo.pop()
        seen.add(path)
        todo |= imported(path.read_text()) - seen
    # These hold no behaviour of a stage: a package's first line, the error classes and their exit codes.
    return {
        path
        for path in seen
        if path.read_text().count("\n") > 10 and path.name not in ("errors.py", "exit_codes.py")
    }


def sources(definition: dict) -> list[str]:
    """The Python that a stage runs."""
    words = definition["cmd"].split()
    if words[1] != "run":
        return ["import lora_ops.base_model\nimport lora_ops.settings.params"]
    cells = nbformat.read(ROOT / words[2], as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return [*code, (ROOT / "lora_ops/notebooks.py").read_text()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_notebook_and_on_all_code_that_it_uses(stage: str) -> None:
    definition = STAGES[stage]
    deps = {ROOT / dep for dep in definition["deps"] if "$" not in dep}
    words = definition["cmd"].split()
    if words[1] == "run":
        assert ROOT / words[2] in deps
    missing = {
        str(path.relative_to(ROOT))
        for path in used_by(sources(definition))
        if path not in deps and not any(folder in deps for folder in path.parents)
    }
    assert not missing


def test_no_stage_depends_on_an_executed_notebook() -> None:
    for definition in STAGES.values():
        assert not [dep for dep in definition["deps"] if dep.startswith("reports") and "ipynb" in dep]


def test_no_stage_names_a_tenant() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    commands = [line for line in text.splitlines() if not line.strip().startswith("#")]
    for tenant in ("finance", "healthcare", "media"):
        assert not [line for line in commands if tenant in line]


def test_no_stage_reaches_the_registry() -> None:
    """C4: each trial of `dvc exp run` became the candidate."""
    for stage, definition in STAGES.items():
        reached = {path.relative_to(ROOT).as_posix() for path in used_by(sources(definition))}
        assert not [path for path in reached if path.startswith("lora_ops/registry")], stage
        assert "registry" not in definition.get("params", [])

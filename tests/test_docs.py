"""The commands, paths and links of README and docs/ exist, and the walk to production is one."""

import json
import re
import shlex
import sys
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from lora_ops.cli import app
from lora_ops.gates.policy import policy_report
from lora_ops.gates.regression import regression_report
from lora_ops.gates.review.sessions import open_session
from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.paths import ADAPTER_FILES, CASE_ANSWERS, CASES
from lora_ops.records.manifest import FileRecord, Manifest
from lora_ops.records.suite import AnswersRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.backends import open_registry
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.settings.files import read_yaml
from tests.conftest import ROOT, run, run_forked
from tests.gates.policy_sources import policy_source
from tests.gates.sources import answers, source, suite, with_answers_again
from tests.registry.conftest import build_package, fill_in, won

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = sorted(
    {
        line.split(" #")[0].strip()
        for block in re.findall(r"```(?:bash|console)\n(.*?)```", TEXT, re.S)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    }
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    for target in command.split()[1:]:
        assert run("make", "--dry-run", target, cwd=ROOT, WANDB_API_KEY="x").returncode == 0


def test_make_lab_shows_executed_notebooks() -> None:
    """JupyterLab began in notebooks/, from where it opened neither `reports/` nor `runbooks/`."""
    shown = run("make", "--dry-run", "lab", cwd=ROOT).stdout
    assert f'--ServerApp.root_dir="{ROOT}" --LabApp.default_url=/lab/tree/notebooks' in shown


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("dvc ")])
def test_dvc_commands_and_their_stages_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    targets = [word for word in words if "@" in word]
    assert run("dvc", *(word for word in words if word not in targets), "--help", cwd=ROOT).returncode == 0
    assert {target.partition("@")[0] for target in targets} <= read_yaml(ROOT / "dvc.yaml")["stages"].keys()


# All in one process: torch and peft take longer to import than a benchmark to explain itself.
HELP = """
import contextlib, io, json, os, runpy, sys
scripts, shown = sys.argv[1:], {}
for script in scripts:
    sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            shown[script] = end.code, out.getvalue()
print(json.dumps(shown))
"""


@cache
def shown_help() -> dict[str, tuple[int, str]]:
    scripts = sorted({shlex.split(command)[1] for command in COMMANDS if command.startswith("python ")})
    done = run(sys.executable, "-c", HELP, *scripts, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_benchmarks_exist_and_explain_themselves(command: str) -> None:
    code, shown = shown_help()[shlex.split(command)[1]]
    assert code == 0 and shown.startswith("usage: ")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("lora-ops ")])
def test_lora_ops_commands_parse_with_the_options_shown(command: str) -> None:
    parser, words = get_command(app), shlex.split(command.partition("||")[0])[1:]
    while isinstance(parser, TyperGroup):
        if parser.invoke_without_command and (not words or words[0].startswith("-")):
            break
        parser = parser.commands[words.pop(0)]
    with parser.make_context("lora-ops", words) as parsed:
        assert parsed.args == []


def test_lora_ops_commands_in_sentences_exist() -> None:
    """A sentence named `lora-ops ask`, which no release had."""
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    commands = [shlex.split(code) for code in re.findall(r"`lora-ops ([^`]+)`", prose)]
    assert len(commands) > 20
    for words in commands:
        parser = get_command(app)
        while isinstance(parser, TyperGroup) and words and words[0][0].islower():
            assert words[0] in parser.commands, f"lora-ops {' '.join(words)}"
            parser = parser.commands[words.pop(0)]
        options = {option for parameter in parser.params for option in parameter.opts}
        for word in words:
            flag = word.strip("[]")
            assert not flag.startswith("--") or flag in options, f"{parser.name} {flag}"


def test_the_readers_own_tenant_of_the_docs_is_added(repository: Path) -> None:
    """Runs the page's example as it stands: the file that it writes and the command that adds it."""
    block = next(b for b in re.findall(r"```bash\n(.*?)```", TEXT, re.S) if "lora-ops tenant add" in b)
    done = run_forked("bash", "-euc", block, cwd=repository, COLUMNS="300")
    assert done.returncode == 0, done.stderr
    assert "its entry is in params.yaml" in done.stdout


def with_suite(folder: Path, manifest: Manifest) -> Manifest:
    """Give a package its suite with all answers."""
    base = manifest.base_model.sha256
    cases = suite().model_copy(update={"base_model_sha256": base})
    weights, config = (manifest.files[name].sha256 for name in ADAPTER_FILES)
    given = AnswersRecord(
        tenant="finance",
        base_model_sha256=base,
        adapter_sha256=weights,
        adapter_config_sha256=config,
        cases_sha256=sha256_text(cases.to_json()),
        answers=answers(cases),
    )
    files = dict(manifest.files)
    for name, record in ((CASES, cases), (CASE_ANSWERS, given)):
        (folder / name).write_text(record.to_json())
        files[name] = FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
    return manifest.model_copy(update={"files": files})


def file_base_answers(registry: Registry) -> None:
    """File an earlier report on finance@1, for which the base model, which isn't here, has answered."""
    version = registry.get("finance@1")
    base = version.manifest.base_model.sha256
    cases = suite().model_copy(update={"base_model_sha256": base})
    given = source(
        cases,
        adapter="finance@1",
        digest=version.summary.content_digest,
        base=("base", "base", base, range(30)),
    )
    given = with_answers_again(registry, version, given)
    document = regression_report(given, "finance", registry.clock())
    report = Report(document, given.to_json().encode(), "its suite")
    lifecycle.file_evidence(registry, "finance@1", report, actor="ana.silva")


def file_policy_report(registry: Registry) -> None:
    """File a policy report on finance@1, whose adapter can't answer here: it fits no base model."""
    digest = registry.get("finance@1").summary.content_digest
    given = policy_source(adapter="finance@1", digest=digest)
    document = policy_report(given, "finance", registry.clock())
    report = Report(document, given.to_json().encode(), "its policy suite")
    lifecycle.file_evidence(registry, "finance@1", report, actor="ana.silva")


def test_the_way_to_production_is_a_way(repository: Path, tmp_path: Path) -> None:
    """Runs the reviewer's page as it stands, on a small package with the files that a real one has."""
    before, after = (
        part.split("```")[0] for part in TEXT.split("<!-- promotion -->")[1].split("```bash\n")[1:3]
    )
    folder = tmp_path / "package"
    manifest = with_suite(folder, build_package(folder, 1, fresh_days=36500))
    registry = open_registry(repository, create=True)
    registry.register(folder, manifest, actor="ana.silva")
    file_base_answers(registry)
    file_policy_report(registry)
    registry.close()
    for block in (before, after):
        done = run_forked("bash", "-euc", block, cwd=repository, COLUMNS="300", LORA_OPS_ROOT=str(repository))
        assert done.returncode == 0, done.stdout + done.stderr
        if block == before:
            with closing(open_registry(repository)) as registry:
                for person in ("chen.wei", "dana.roth"):  # what both do in the notebook
                    fill_in(registry, open_session(registry, "finance@1"), person, won)
    assert "Krippendorff's alpha 1.000" in done.stdout
    registry = open_registry(repository)
    assert registry.get("finance").id == "finance@1"
    assert registry.named("finance", "production") == 1
    registry.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_backticks_exists_or_is_made(page: Path) -> None:
    made = (
        "reports",
        "packages",
        "models",
        "data/prepared",
        "wandb",
        ".registry",
        "reviews",
        ".serving",
        "releases",
        ".checkpoints",
        ".venv",
        ".demo",
        "dvc",
    )
    for path in re.findall(r"`([\w./-]+/[\w./-]*)`", page.read_text()):
        if not path.startswith((*made, "http", "/v1")):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not heading or heading in anchors(linked), target


def test_readme_leads_to_every_page() -> None:
    readme = PAGES[0].read_text()
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in readme, page.name


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

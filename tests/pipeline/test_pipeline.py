"""The whole way of an adapter, run as a user runs it, over a tiny model: real DVC, papermill, wandb, peft."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.answers import whole_characters
from lora_ops.hashing import sha256_file
from lora_ops.packaging import package
from lora_ops.records.data import ContractRecord
from lora_ops.records.manifest import Manifest
from lora_ops.registry.store import Registry
from lora_ops.settings.params import load_settings
from lora_ops.tenants import apply_profile, edit_params
from tests import wandb_server
from tests.conftest import ROOT, copy_repository, make_tiny_base, run

pytestmark = pytest.mark.pipeline
TENANTS = ("finance", "support")
NOTEBOOKS = ("01_prepare", "02_train", "02_curve", "03_generate", "03_evaluate", "03_suite", "04_package")


def tiny_repository(target: Path) -> Path:
    """A copy of the repository with the tiny profile, and the downloads that are on this machine already."""
    copy_repository(target)
    make_tiny_base(target / "models" / "tiny")
    if (ROOT / "data/raw").is_dir():
        shutil.copytree(ROOT / "data/raw", target / "data/raw")
    apply_profile(target / "profiles" / "tiny.yaml", target)
    return target


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a tenant of labels and one of free text, after one `lora-ops repro`.

    `.ci/run` runs the real pipeline for all tenants of params.yaml.
    """
    root = tiny_repository(tmp_path_factory.mktemp("pipeline") / "repository")
    rows = "".join(f"How do I reset part {n}?,Hold button {n} for {n} seconds.\n" for n in range(60))
    (root / "data/sources/support.csv").write_text("question,answer\n" + rows)
    added = run(
        "lora-ops", "tenant", "add", "support", "data/sources/support.csv",
        "--template", "{question}", "--target", "answer", "--task", "text", cwd=root,
    )  # fmt: skip
    assert added.returncode == 0, added.stderr

    def quick(params: dict) -> None:
        for tenant in ("healthcare", "media", "publishing"):
            del params["tenants"][tenant], params["serving"]["tenants"][tenant]
        params["tenants"]["support"]["train"] |= {"rank": 2, "epochs": 1}
        params["tenants"]["support"]["evaluate"] |= {
            "max_new_tokens": 4,
            "bootstrap": 100,
            "must_beat_base": False,
        }

    edit_params(root, quick)
    made = run("lora-ops", "repro", cwd=root)
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    assert not (root / ".registry").exists()
    registered = run("lora-ops", "register", cwd=root)
    assert registered.returncode == 0, registered.stderr
    return root


def manifest(root: Path, tenant: str) -> Manifest:
    return Manifest.model_validate_json((root / "packages" / tenant / "manifest.json").read_text())


def registered_as(root: Path, tenant: str) -> str:
    """Register a tenant's package and return the version that it is."""
    done = run("lora-ops", "register", tenant, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


@pytest.mark.parametrize("tenant", TENANTS)
def test_every_tenant_is_packaged_with_files_that_match_their_digests(done: Path, tenant: str) -> None:
    found = manifest(done, tenant)
    assert found.version is None  # the registry gives it
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(found.files)
    for name, file in found.files.items():
        assert sha256_file(done / "packages" / tenant / name) == file.sha256
    for name, split in found.data.splits.items():
        assert sha256_file(done / "data/prepared" / tenant / f"{name}.jsonl") == split.sha256
    assert found.base_model.sha256 == sha256_file(done / "models/base/model.safetensors")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=done, capture_output=True, text=True).stdout.strip()
    assert found.git.commit == head
    assert found.git.dirty  # the profile changed params.yaml
    assert found.params["train"]["rank"] == 2
    # Those of the training, whatever is installed when it is packaged.
    assert (found.packages, found.git) == (found.training.packages, found.training.git)
    assert found.packaging is not None and found.packaging.packages["torch"] == found.packages["torch"]


def test_package_refuses_settings_that_were_not_evaluated(done: Path, tmp_path: Path) -> None:
    config = done / "models/adapters/finance/adapter_config.json"
    trained = config.read_text()
    config.write_text(trained.replace('"lora_alpha": ', '"lora_alpha": 9'))
    try:
        with pytest.raises(LoraOpsError, match="the evaluation was of other settings of the adapter"):
            package("finance", load_settings(done).tenants["finance"], done, tmp_path / "package")
    finally:
        config.write_text(trained)
    assert not (tmp_path / "package").exists()


def test_the_package_loads_with_plain_peft(done: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(done / "models/base")
    model = PeftModel.from_pretrained(base, done / "packages/support")
    assert model.peft_config["default"].r == 2


def test_model_cards_code_answers_as_evaluated(done: Path) -> None:
    """A client who renders another prompt gets other answers than those that were reviewed."""
    card = (done / "packages/finance/README.md").read_text(encoding="utf-8")
    row = pd.read_csv(done / "packages/finance/answers.csv", dtype=str, keep_default_na=False).iloc[0]
    code = card.split("```python\n")[1].split("```")[0].replace('"{text}"', json.dumps(row["text"]))
    answered = run(sys.executable, "-c", code, cwd=done)
    assert answered.returncode == 0, answered.stderr
    assert whole_characters(answered.stdout) == whole_characters(row["adapter"])


def test_the_contract_is_kept_beside_the_data(done: Path) -> None:
    kept = (done / "data/prepared/support/contract.json").read_text()
    assert ContractRecord.model_validate_json(kept).success


def test_free_text_is_measured_without_labels(done: Path) -> None:
    metrics = manifest(done, "support").evaluation.metrics
    assert set(metrics) == {"chrf", "rouge_l"}
    assert set(metrics["chrf"]) == {"base", "base_few_shot", "adapter", "lead_words_baseline"}
    assert metrics["chrf"]["adapter"].low <= metrics["chrf"]["adapter"].value


def test_the_registry_holds_one_candidate_of_each_tenant(done: Path) -> None:
    listed = run("lora-ops", "registry", "list", "--json", cwd=done)
    rows = json.loads(listed.stdout)
    assert {f"{tenant}@1" for tenant in TENANTS} <= {row["adapter"] for row in rows}
    assert all("candidate" in row["aliases"] for row in rows)
    shown = run("lora-ops", "registry", "show", "finance@1", cwd=done)
    assert shown.returncode == 0
    assert manifest(done, "finance").base_model.sha256[:40] in shown.stdout.replace("\n", "")


def test_gate_judges_a_version_by_the_answers_that_it_packaged(done: Path) -> None:
    """The base model answers once, and the report can be replayed."""
    judged = run("lora-ops", "gate", "finance@1", "--actor", "ana.silva", "--json", cwd=done)
    assert judged.returncode in (1, 3), judged.stderr
    told = json.loads(judged.stdout)
    gates = {row["gate"]: row for row in told["gates"]}
    assert gates["everyday against base"]["evidence"] and gates["package"]["verdict"] == "pass"
    assert gates["held-out rows answered again"]["verdict"] in ("pass", "fail")
    assert "at most 0 worth something else" in gates["held-out rows answered again"]["found"]
    assert gates["human review"]["verdict"] == "missing"
    assert gates["policy: off_task"]["evidence"] and "of 5" in gates["policy: off_task"]["found"]
    assert gates["policy: refusals"]["verdict"] == "not applicable"
    assert "base:" in judged.stderr
    again = run("lora-ops", "gate", "finance@1", "--replay", "--json", cwd=done)
    assert again.returncode == judged.returncode
    assert json.loads(again.stdout)["gates"] == told["gates"] and json.loads(again.stdout)["differences"] == []


def test_gate_finds_packaged_answers_that_the_adapter_never_gave(done: Path, tmp_path: Path) -> None:
    """Whoever edits the answers before they are packaged passes every slice, and is found by asking again."""
    copy = tmp_path / "repository"
    shutil.copytree(done, copy, symlinks=True)
    path = copy / "reports/finance/case_answers.json"
    given = json.loads(path.read_text())
    given["answers"] = [{**one, "texts": ["Airlines"]} for one in given["answers"]]
    path.write_text(json.dumps(given))
    edit_params(copy, lambda params: params["tenants"]["finance"]["package"].update(license="MIT"))
    packaged = run("lora-ops", "run", "notebooks/04_package.ipynb", "--tenant", "finance", cwd=copy)
    assert packaged.returncode == 0, packaged.stderr
    version = registered_as(copy, "finance")
    assert version != "finance@1"
    judged = run("lora-ops", "gate", version, "--actor", "ana.silva", cwd=copy, COLUMNS="300")
    assert judged.returncode == 1
    assert "are not those that its adapter gives" in " ".join(judged.stdout.split())


def test_gate_says_that_a_tenant_has_no_suite(done: Path) -> None:
    judged = run("lora-ops", "gate", "support@1", "--actor", "ines.moreau", cwd=done, COLUMNS="300")
    assert judged.returncode in (1, 3), judged.stderr
    assert "write suites/support.yaml" in " ".join(judged.stdout.split())


def test_the_table_at_the_end_names_every_tenant(done: Path) -> None:
    table = run("lora-ops", "report", cwd=done, COLUMNS="200")
    assert all(f"{tenant}@1" in table.stdout for tenant in TENANTS)
    # What the base can do by each metric: it was not told the labels, so exact match alone would be unfair.
    for metric in ("exact_match", "macro_f1", "chrf"):
        assert re.search(rf"\b{metric} +\d\.\d{{3}} +\d\.\d{{3}}", table.stdout)
    assert max(map(len, run("lora-ops", "report", cwd=done, COLUMNS="80").stdout.splitlines())) <= 80
    assert "reports/finance/03_evaluate.html" in table.stdout
    assert (done / "reports/finance/03_evaluate.html").is_file()


@pytest.mark.parametrize(
    ("page", "pictures"),
    [
        ("01_prepare", 0),
        ("02_train", 0),
        ("02_curve", 1),
        ("03_generate", 0),
        ("03_evaluate", 2),
        ("04_package", 0),
    ],
)
def test_a_page_shows_its_plots_and_nothing_in_red(done: Path, page: str, pictures: int) -> None:
    text = (done / f"reports/finance/{page}.html").read_text()
    assert text.count("<img ") == pictures
    assert 'data-mime-type="application/vnd.jupyter.stderr"' not in text


def test_chat_answers_with_adapter_and_base(done: Path) -> None:
    answer = run("lora-ops", "chat", "finance", "AIRBNB * HM2X", cwd=done)
    assert answer.returncode == 0, answer.stderr
    assert "finance@1" in answer.stdout and "base model" in answer.stdout


def test_metrics_and_plots_are_dvcs(done: Path) -> None:
    shown = run("dvc", "metrics", "show", "--json", cwd=done)
    files = json.loads(shown.stdout)[""]["data"]
    assert {f"reports/{tenant}/metrics.json" for tenant in TENANTS} <= set(files)
    drawn = run("dvc", "plots", "show", cwd=done)
    assert drawn.returncode == 0, drawn.stderr
    page = (done / "dvc_plots/index.html").read_text()
    assert "Training loss per completion token, finance" in page and "Held-out rows, finance" in page
    changed = run("git", "status", "--porcelain", cwd=done)
    assert "dvc_plots" not in changed.stdout  # a manifest would say that the tree was dirty


def test_wandb_sync_sends_the_whole_lineage(done: Path) -> None:
    """Every stage's run says what it read and made, also when it ran without a key (D)."""
    with wandb_server.serving() as server:
        sent = run(
            "lora-ops",
            "wandb-sync",
            cwd=done,
            WANDB_BASE_URL=server.url,
            WANDB_API_KEY=wandb_server.API_KEY,
            HOME=str(done),
        )
        assert sent.returncode == 0, sent.stderr
        edges: dict[str, tuple[set[str], set[str]]] = {}
        for logged in server.runs.values():
            inputs, outputs = edges.setdefault(logged.fields["displayName"], (set(), set()))
            inputs |= {version.collection.name for version in logged.inputs}
            outputs |= {version.collection.name for version in logged.outputs}
            assert logged.config["commit"]
    for tenant in TENANTS:
        data, adapter, base = f"{tenant}-data", f"{tenant}-adapter", "base-model"
        evaluation, package = f"{tenant}-evaluation", f"{tenant}-package"
        assert edges[f"{tenant}-prepare"] == ({f"{tenant}-source", base}, {data})
        assert edges[f"{tenant}-train"] == ({data, base}, {adapter})
        inputs, outputs = edges[f"{tenant}-evaluate"]
        assert inputs == {adapter, data, base} and evaluation in outputs
        assert edges[f"{tenant}-register"][1] == {f"{tenant}-page"}  # its package is the one that was logged
        inputs, outputs = edges[f"{tenant}-package"]
        assert inputs == {adapter, evaluation, data, base} and outputs == {package}


def test_a_second_repro_does_nothing(done: Path) -> None:
    before = (done / "dvc.lock").read_bytes()
    again = run("dvc", "repro", cwd=done)
    assert again.returncode == 0
    assert "Running stage" not in again.stdout
    assert "Data and pipelines are up to date" in again.stdout
    assert (done / "dvc.lock").read_bytes() == before


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def changed_stages(root: Path) -> set[str]:
    shown = run("dvc", "status", "--json", cwd=root)
    return {name.partition("@")[0] for name in json.loads(shown.stdout)}


def test_plot_foreign_setting_and_day_train_nothing_again(done: Path, tmp_path: Path) -> None:
    """C1 and C2: each of these made 13 stages run, training included."""
    copy = tmp_path / "copy"
    shutil.copytree(done, copy, symlinks=True)
    append(copy / "lora_ops/plots.py", "# a comment\n")
    assert changed_stages(copy) == {"train_page", "evaluate"}
    shutil.copy(done / "lora_ops/plots.py", copy / "lora_ops/plots.py")

    append(copy / "lora_ops/settings/serving.py", "\n\nclass NewSettings(Section):\n    one: int = 1\n")
    append(copy / "lora_ops/records/registry.py", "# a comment\n")
    append(copy / "lora_ops/tracking/runs.py", "# a comment\n")
    assert changed_stages(copy) == set()

    def publish(params: dict) -> None:
        params["tenants"]["finance"]["data"]["published"] = "2025-09-04"

    edit_params(copy, publish)
    again = run("dvc", "repro", "prepare@finance", cwd=copy)
    assert again.returncode == 0, again.stderr
    assert changed_stages(copy) == {"evaluate", "package"}


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def scale_learning_rate(root: Path, factor: float) -> None:
    def change(params: dict) -> None:
        params["tenants"]["finance"]["train"]["learning_rate"] *= factor

    edit_params(root, change)


@pytest.mark.nightly
def test_one_tenants_learning_rate_runs_its_own_stages_and_makes_a_new_version(done: Path) -> None:
    scale_learning_rate(done, 4)
    changed = run("dvc", "repro", cwd=done)
    names = ("train", "train_page", "generate", "evaluate", "suite", "package")
    assert stages_run(changed.stdout) == {f"{name}@finance" for name in names}
    assert registered_as(done, "finance") == "finance@2"


@pytest.mark.nightly
def test_the_earlier_recipe_is_the_earlier_version_again(done: Path) -> None:
    scale_learning_rate(done, 1 / 4)
    again = run("dvc", "repro", cwd=done)
    # Every stage's results come from DVC's run cache.
    assert stages_run(again.stdout) == set(), again.stdout
    assert registered_as(done, "finance") == "finance@1"
    registry = Registry(done / ".registry")
    assert registry.get("finance@candidate").number == 1
    assert len(registry.versions("finance")) == 2


@pytest.mark.nightly
def test_executed_notebooks_run_again_and_say_the_same(done: Path) -> None:
    asked = run("lora-ops", "run", "notebooks/registry.ipynb", "--tenant", "finance", cwd=done)
    assert asked.returncode == 0, asked.stderr
    notebooks = ["reports/finance/registry.ipynb", *(f"reports/finance/{name}.ipynb" for name in NOTEBOOKS)]
    # Of free text, these two say something else.
    notebooks += [f"reports/support/{name}.ipynb" for name in ("01_prepare", "03_evaluate")]
    again = run(
        sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=300", "-p", "no:cacheprovider",
        "--rootdir", done, "-c", os.devnull, *notebooks, cwd=done,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout[-6000:]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "04_package" else pytest.mark.nightly) for name in NOTEBOOKS],
)
def test_a_data_scientist_runs_a_notebook_from_a_folder_of_their_own(done: Path, name: str) -> None:
    elsewhere = done / "scratch" / "deep"
    elsewhere.mkdir(parents=True, exist_ok=True)
    shutil.copy(done / "notebooks" / f"{name}.ipynb", elsewhere)
    executed = run("jupyter", "nbconvert", "--to", "notebook", "--execute", f"{name}.ipynb", cwd=elsewhere)
    assert executed.returncode == 0, executed.stderr[-3000:]


def test_bad_params_stop_the_stage_with_one_sentence(done: Path, tmp_path: Path) -> None:
    copy = tiny_repository(tmp_path / "copy")
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(re.sub(r"dropout: [\d.e-]+", "dropout: 5", text, count=1))
    failed = run("dvc", "repro", "prepare@finance", cwd=copy)
    assert failed.returncode != 0
    assert "train.dropout: Input should be less than 1 (got 5)" in failed.stderr


def test_a_source_of_other_bytes_than_the_pinned_ones_stops_the_stage_and_leaves_nothing(
    done: Path, tmp_path: Path
) -> None:
    copy = tiny_repository(tmp_path / "copy")
    shutil.copytree(done / "data/raw", copy / "data/raw", dirs_exist_ok=True)
    kept = copy / "data/raw" / str(load_settings(copy).tenants["finance"].data.archive_sha256)
    for archive in kept.iterdir():
        archive.write_bytes(b"other bytes")
    failed = run("dvc", "repro", "prepare@finance", cwd=copy)
    assert failed.returncode != 0
    assert "was changed on disk" in failed.stderr and "delete it and run again" in failed.stderr

    def pin(params: dict) -> None:
        params["tenants"]["finance"]["data"]["archive_sha256"] = "0" * 64

    edit_params(copy, pin)
    failed = run("dvc", "repro", "prepare@finance", cwd=copy)
    assert failed.returncode != 0
    assert f"params.yaml pins {'0' * 64}; nothing was used" in failed.stderr
    assert not (copy / "data/prepared/finance").exists()
    assert not list((copy / "data/raw").glob("0000*")) and not list((copy / "data/raw").glob(".incoming-*"))


def test_a_broken_contract_stops_the_pipeline_and_names_the_row(done: Path) -> None:
    source = done / "data/sources/support.csv"
    good = source.read_text()
    source.write_text(good + "Who helps me?,Write to jo@example.org\n")
    try:
        failed = run("dvc", "repro", "package@support", cwd=done)
        assert failed.returncode != 0
        assert "failed in cell [7] `require(contract)`" in failed.stderr
        assert "no e-mail address in target (row 61: 'Write to [e-mail address]')" in failed.stderr
        kept = (done / "data/prepared/support/contract.json").read_text()
        assert not ContractRecord.model_validate_json(kept).success
        assert (done / "reports/support/01_prepare.ipynb").is_file()
    finally:
        source.write_text(good)
    assert run("dvc", "repro", "package@support", cwd=done).returncode == 0
    assert registered_as(done, "support") == "support@1"


def test_an_adapter_that_does_not_beat_its_base_is_not_packaged(done: Path) -> None:
    def demand(value: bool):
        def change(params: dict) -> None:
            params["tenants"]["support"]["evaluate"]["must_beat_base"] = value

        return change

    edit_params(done, demand(True))
    failed = run("dvc", "repro", "package@support", cwd=done)
    assert failed.returncode != 0
    assert "The adapter of 'support' does not clearly beat its base" in failed.stderr
    assert not (done / "packages/support").exists()
    edit_params(done, demand(False))
    assert run("dvc", "repro", "package@support", cwd=done).returncode == 0


@pytest.mark.nightly
def test_two_repros_at_once_do_not_hurt_each_other(done: Path) -> None:
    def change(params: dict) -> None:
        params["tenants"]["support"]["train"]["seed"] = 11

    edit_params(done, change)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["dvc", "repro", "train@support"]
    both = [
        subprocess.Popen(command, cwd=done, env={**os.environ, "PATH": path}, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    assert 0 in [process.returncode for process in both]
    for process, error in zip(both, errors, strict=True):
        assert process.returncode == 0 or "lock" in error or "busy" in error, error
    again = run("dvc", "repro", "train@support", cwd=done)
    assert again.returncode == 0 and "Running stage" not in again.stdout


@pytest.mark.nightly
def test_a_kill_in_the_middle_of_training_is_mended_by_a_second_repro(done: Path) -> None:
    def change(params: dict) -> None:
        params["tenants"]["support"]["train"] |= {"seed": 5, "epochs": 60}

    edit_params(done, change)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Else the killed run is in use in the W&B service of a test that ran before in this process.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    process = subprocess.Popen(
        ["dvc", "repro", "package@support"],
        cwd=done,
        env={**environment, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = done / ".checkpoints/support.safetensors"
    deadline = time.monotonic() + 180
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    # DVC first: told of a dead stage, it would write its lock file while it is killed, and leave it empty.
    stage = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in stage:
        with suppress(psutil.NoSuchProcess):  # it died with DVC
            child.kill()
    assert checkpoint.exists()
    mended = run("dvc", "repro", "package@support", cwd=done)
    assert mended.returncode == 0, mended.stdout[-3000:] + mended.stderr[-3000:]
    training = json.loads((done / "reports/support/training.json").read_text())
    assert 0 < training["resumed_from_step"] < training["steps"]
    assert registered_as(done, "support") == "support@2"


@pytest.mark.nightly
def test_a_full_disk_is_said_and_the_next_run_mends_it(done: Path) -> None:
    if run("unshare", "--map-root-user", "--mount", "true", cwd=done).returncode != 0:
        pytest.skip("no small disk can be mounted here: `unshare --mount` is denied, as in most containers")

    def change(params: dict) -> None:
        params["tenants"]["finance"]["train"]["seed"] = 9

    edit_params(done, change)
    full = "mount -t tmpfs -o size=8k tmpfs .checkpoints && exec dvc repro train@finance"
    (done / ".checkpoints").mkdir(exist_ok=True)
    failed = run("unshare", "--map-root-user", "--mount", "bash", "-c", full, cwd=done)
    assert failed.returncode != 0
    assert "No space left on device" in failed.stderr
    assert not (done / "models/adapters/finance").exists()
    mended = run("dvc", "repro", "train@finance", cwd=done)
    assert mended.returncode == 0, mended.stderr[-3000:]
    assert (done / "models/adapters/finance").is_dir()

"""`lora-ops register` and `lora-ops report`, over packages as the pipeline leaves them."""

import hashlib
import json
import shutil
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from lora_ops.evaluation.compare import samples
from lora_ops.hashing import sha256_file
from lora_ops.packaging import model_card, packaged
from lora_ops.paths import ANSWERS, MANIFEST, MODEL_CARD, SAMPLES
from lora_ops.records.data import read_previous
from lora_ops.records.manifest import FileRecord, Manifest
from lora_ops.registry import lifecycle
from lora_ops.registry.backends import open_registry
from lora_ops.registry.verification import verify
from lora_ops.settings.tenant import TenantSettings
from tests.conftest import ROOT, SAMPLE_TENANTS, run_forked, small_clone
from tests.registry.conftest import build_package


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with a package of each sample tenant, and no registry yet."""
    small_clone(tmp_path)
    for seed, tenant in enumerate(SAMPLE_TENANTS):
        put_package(tmp_path, tenant, seed)
    return tmp_path


def put_package(root: Path, tenant: str, seed: int) -> None:
    folder = root / "packages" / tenant
    shutil.rmtree(folder, ignore_errors=True)
    write_texts(folder, build_package(folder, seed, tenant))


def write_texts(folder: Path, manifest: Manifest) -> None:
    """Write samples, model card and manifest as the stages do."""
    settings = TenantSettings.model_validate(manifest.params)
    answers = pd.read_csv(folder / ANSWERS, dtype=str, keep_default_na=False)
    drawn = samples(answers, settings.evaluate.samples, settings.evaluate.seed)
    drawn.to_csv(folder / SAMPLES, index=False)
    (folder / MODEL_CARD).write_text(model_card(manifest, settings))
    (folder / MANIFEST).write_text(naming(folder, manifest, SAMPLES, MODEL_CARD).to_json())


def naming(folder: Path, manifest: Manifest, *names: str) -> Manifest:
    """Return the manifest that names these files as they are now."""
    now = {
        name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
        for name in names
    }
    return manifest.model_copy(update={"files": {**manifest.files, **now}})


def page_of(record: Path, text: str) -> str:
    """Write a page as `lora_ops.page` does it: its head names the evaluation that it is about."""
    meta = f'<meta name="lora-ops-evaluation" content="{sha256_file(record)}">'
    return f"<html><head>{meta}</head><body>{text}</body></html>"


def lora_ops(root: Path, *words: str):
    return run_forked("lora-ops", *words, cwd=root, LORA_OPS_ROOT=str(root), COLUMNS="200")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_register_takes_every_package_and_changes_none(clone: Path) -> None:
    packages = contents(clone / "packages")  # they are outputs of DVC
    first = lora_ops(clone, "register")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("(a new version)") == len(SAMPLE_TENANTS)
    assert contents(clone / "packages") == packages
    registry = open_registry(clone)
    assert [one.id for one in registry.summaries()] == [f"{tenant}@1" for tenant in SAMPLE_TENANTS]
    assert registry.get("finance@candidate").manifest.parent is None
    assert verify(registry).ok


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (SAMPLES, "Travel", "Food", "samples.csv holds other rows than evaluate.seed draws from answers.csv"),
        (MODEL_CARD, "0.1", "0.0", "README.md is not the model card that its manifest gives"),
    ],
)
def test_register_refuses_what_people_would_misread(
    clone: Path, name: str, old: str, new: str, said: str
) -> None:
    """Reviewers read the card and the samples, and nothing compared them with what was evaluated."""
    folder = clone / "packages/media"
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(naming(folder, manifest, name).to_json())
    for words in (("media",), ()):
        done = lora_ops(clone, "register", *words)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert [one.tenant for one in open_registry(clone).summaries()] == ["finance", "healthcare", "publishing"]


def test_register_of_nothing_makes_no_registry(clone: Path) -> None:
    for tenant in SAMPLE_TENANTS:
        (clone / "packages" / tenant / "manifest.json").write_text("{}")
    done = lora_ops(clone, "register")
    assert done.returncode != 0
    assert "Nothing was registered, and no registry was made: finance: " in done.stderr
    assert not (clone / ".registry").exists()
    (clone / "packages/media/README.md").write_text("changed")
    assert lora_ops(clone, "register", "media").returncode != 0
    assert not (clone / ".registry").exists()


def test_register_keeps_the_page_of_the_same_evaluation(clone: Path) -> None:
    """Media's page is of another evaluation than its package: what nobody reviewed is not kept as evidence."""
    for tenant in SAMPLE_TENANTS:
        folder, report = clone / "packages" / tenant, clone / "reports" / tenant
        report.mkdir(parents=True)
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
        (report / "evaluation.json").write_text(manifest.evaluation.to_json())
        page = page_of(report / "evaluation.json", f"the page of {tenant}")
        (report / "03_evaluate.html").write_text(page)
        shutil.copy(report / "evaluation.json", folder)
        path = folder / "evaluation.json"
        files = {**manifest.files, path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))}
        (folder / "manifest.json").write_text(manifest.model_copy(update={"files": files}).to_json())
    (clone / "reports/media/evaluation.json").write_text("another run")
    page = page_of(clone / "reports/media/evaluation.json", "the page of media")
    (clone / "reports/media/03_evaluate.html").write_text(page)
    (clone / "reports/healthcare/03_evaluate.html").write_text(page.partition("<body>")[2] + page)
    done = lora_ops(clone, "register")
    assert done.returncode == 0, done.stderr
    for tenant in ("media", "healthcare"):
        note = f"reports/{tenant}/03_evaluate.html is not the page of the evaluation in packages/{tenant}"
        assert note in " ".join(done.stdout.split())
    registry = open_registry(clone)
    kept = {one.tenant: one.manifest.files for one in registry.versions()}
    page = registry.files.checked(kept["finance"]["03_evaluate.html"].sha256, "the page")
    assert "the page of finance" in page.read_text()
    assert "03_evaluate.html" not in {*kept["media"], *kept["healthcare"]}
    assert verify(registry).ok
    # The next run of the same notebook has other bytes, and the adapter is the same version still.
    (clone / "reports/finance/03_evaluate.html").write_text("drawn again")
    again = lora_ops(clone, "register", "finance")
    assert "registered before" in again.stdout


def test_register_keeps_no_page_that_was_edited(clone: Path) -> None:
    """Its head still named the evaluation, so reviewers were shown other figures than those that are signed."""
    folder, report = clone / "packages/finance", clone / "reports/finance"
    report.mkdir(parents=True)
    page = report / "03_evaluate.html"
    page.write_text(page_of(folder / "evaluation.json", "exact match 0.51"))
    made = hashlib.md5(page.read_bytes()).hexdigest()
    outs = f"    - path: reports/finance/03_evaluate.html\n      hash: md5\n      md5: {made}\n      size: 9\n"
    (clone / "dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  evaluate@finance:\n    cmd: x\n    outs:\n{outs}"
    )
    page.write_text(page_of(folder / "evaluation.json", "exact match 0.99"))
    done = lora_ops(clone, "register", "finance", "--json")
    [told] = json.loads(done.stdout)
    assert told["notes"][-1].startswith("reports/finance/03_evaluate.html is not the page that its stage made")
    assert "03_evaluate.html" not in open_registry(clone).get("finance@1").manifest.files
    page.write_text(page_of(folder / "evaluation.json", "exact match 0.51"))
    shutil.rmtree(clone / ".registry"), shutil.rmtree(clone / ".serving")
    assert lora_ops(clone, "register", "finance").returncode == 0
    assert "03_evaluate.html" in open_registry(clone).get("finance@1").manifest.files


def test_register_goes_on_beside_a_file_that_cannot_be_read(clone: Path) -> None:
    folder, report = clone / "packages/finance", clone / "reports/finance"
    report.mkdir(parents=True)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    (report / "evaluation.json").write_text(manifest.evaluation.to_json())
    (report / "03_evaluate.html").write_text(page_of(report / "evaluation.json", "the page"))
    shutil.copy(report / "evaluation.json", folder)
    listed = FileRecord(bytes=1, sha256=sha256_file(folder / "evaluation.json"))
    changed = manifest.model_copy(update={"files": {**manifest.files, "evaluation.json": listed}})
    (folder / "manifest.json").write_text(changed.to_json())
    assert lora_ops(clone, "register", "media").returncode == 0
    put_package(clone, "media", 9)
    (folder / "notes.txt").symlink_to("nowhere")
    done = lora_ops(clone, "register")
    assert done.returncode == 2 and "packages/finance can't be read whole (notes.txt: " in done.stderr
    assert "media@2 is the candidate of media" in done.stdout


def test_register_keeps_the_datas_record_for_the_next_comparison(clone: Path) -> None:
    assert read_previous("finance", clone) is None
    assert lora_ops(clone, "register", "finance").returncode == 0
    assert read_previous("finance", clone) == packaged("finance", clone).data
    assert read_previous("media", clone) is None


def test_register_again_adds_nothing(clone: Path) -> None:
    lora_ops(clone, "register")
    registry = open_registry(clone)
    head = registry.log.head()
    again = lora_ops(clone, "register")
    assert again.returncode == 0 and again.stdout.count("registered before") == len(SAMPLE_TENANTS)
    assert registry.log.head() == head


def test_register_an_earlier_package_makes_it_candidate_again(clone: Path) -> None:
    for seed in (0, 7, 0):
        put_package(clone, "finance", seed)
        assert lora_ops(clone, "register", "finance").returncode == 0
    registry = open_registry(clone)
    assert registry.get("finance@candidate").number == 1
    assert [one.id for one in registry.summaries()] == ["finance@1", "finance@2"]


def test_register_goes_on_after_a_revoked_package(clone: Path) -> None:
    """A10: one revoked version stopped the pipeline, so later tenants were not processed."""
    lora_ops(clone, "register")
    registry = open_registry(clone)
    lifecycle.revoke(registry, "finance@1", actor="chen.wei", reason="leaks")
    put_package(clone, "media", 9)
    done = lora_ops(clone, "register")
    assert done.returncode == 2
    assert "lora-ops: finance: finance@1 has exactly this content and was revoked" in done.stderr
    assert "Not registered: finance" in done.stderr
    assert "media@2 is the candidate of media" in done.stdout


def test_register_names_what_was_said_of_the_weights(clone: Path) -> None:
    """Another licence makes the same weights a new version, and answers no incident."""
    lora_ops(clone, "register", "finance")
    (clone / "report.md").write_text("Card numbers in answers since 14:05 today.")
    told = ("--reason", "leaks", "--actor", "chen.wei", "--evidence", "incident=report.md")
    assert lora_ops(clone, "registry", "incident", "finance@1", *told).returncode == 0
    path = clone / "packages/finance/manifest.json"
    manifest = Manifest.model_validate_json(path.read_text())
    params = {**manifest.params, "package": {**manifest.params["package"], "license": "MIT"}}
    write_texts(path.parent, manifest.model_copy(update={"license": "MIT", "params": params}))
    done = lora_ops(clone, "register", "finance")
    assert done.returncode == 0, done.stderr
    assert "Note: finance@2 has the weights of finance@1, which is 'candidate'; against that one" in done.stdout


def test_register_refuses_a_changed_package(clone: Path) -> None:
    (clone / "packages/media/adapter_config.json").write_text("{}")
    done = lora_ops(clone, "register", "media")
    assert done.returncode == 2 and "not the file that its manifest describes" in done.stderr
    assert not (clone / ".registry").exists()


def test_register_without_a_package_names_the_command(clone: Path) -> None:
    shutil.rmtree(clone / "packages")
    for words, command in (([], "make repro"), (["finance"], "dvc repro package@finance")):
        refused = lora_ops(clone, "register", *words)
        assert refused.returncode == 2 and f"run `{command}`" in refused.stderr


def test_register_refuses_another_tenants_package(clone: Path) -> None:
    """`register finance` made healthcare's package healthcare's next candidate."""
    shutil.rmtree(clone / "packages/finance")
    (clone / "packages/finance").symlink_to("healthcare")
    refused = lora_ops(clone, "register", "finance")
    assert refused.returncode == 2 and "packages/finance holds a package of 'healthcare'" in refused.stderr
    assert not (clone / ".registry").exists()


def test_register_refuses_an_unknown_tenant(clone: Path) -> None:
    refused = lora_ops(clone, "register", "retail")
    assert refused.returncode == 4 and "params.yaml has no tenant 'retail'" in refused.stderr
    assert not (clone / ".registry").exists()


def test_register_names_its_author(clone: Path) -> None:
    lora_ops(clone, "register", "finance", "--actor", "ana.silva")
    listed = json.loads(lora_ops(clone, "registry", "list", "--json").stdout)
    assert [row["author"] for row in listed] == ["ana.silva"]


def test_report_registers_nothing(clone: Path) -> None:
    shown = lora_ops(clone, "report")
    assert shown.returncode == 0, shown.stderr
    assert "Not registered: finance, healthcare, media, publishing. Next: lora-ops register" in shown.stdout
    assert not (clone / ".registry").exists()
    lora_ops(clone, "register", "media")
    shown = lora_ops(clone, "report")
    assert "media@1" in shown.stdout and "Not registered: finance, healthcare, publishing." in shown.stdout


def test_report_shows_the_others_where_one_is_not_packaged(clone: Path) -> None:
    """A tenant that was added a minute ago hid all the others."""
    shutil.rmtree(clone / "packages/finance")
    shown = lora_ops(clone, "report")
    assert shown.returncode == 2 and "Not registered: healthcare, media, publishing." in shown.stdout
    assert "'finance' is not packaged yet: run `dvc repro package@finance`" in shown.stderr
    found = lora_ops(clone, "report", "--json")
    assert found.returncode == 2 and "'finance' is not packaged yet" in found.stderr
    assert [row["tenant"] for row in json.loads(found.stdout)] == ["healthcare", "media", "publishing"]


def test_report_says_that_a_version_was_revoked(clone: Path) -> None:
    lora_ops(clone, "register", "media", "finance")
    before = lora_ops(clone, "report").stdout
    assert "Note" not in before
    registry = open_registry(clone)
    lifecycle.revoke(registry, "finance@1", actor="chen.wei", reason="leaks card numbers")
    registry.close()
    assert "Note: finance@1 was revoked: it does not answer any more." in lora_ops(clone, "report").stdout
    told = {row["tenant"]: row for row in json.loads(lora_ops(clone, "report", "--json").stdout)}
    assert [told[name]["state"] for name in SAMPLE_TENANTS] == ["revoked", None, "candidate", None]
    assert told["finance"]["notes"] == ["finance@1 was revoked: it does not answer any more"]
    assert told["media"]["notes"] == []


def test_every_page_of_a_notebook_names_the_head(clone: Path) -> None:
    """A page that was sent to somebody shows later that the registry was not replaced by an older copy."""
    lora_ops(clone, "register", "finance")
    shutil.copytree(ROOT / "notebooks", clone / "notebooks", dirs_exist_ok=True)
    done = lora_ops(clone, "run", "notebooks/traffic.ipynb", "-p", "days=0.5")
    assert done.returncode == 0, done.stderr
    with closing(open_registry(clone)) as registry:
        assert (
            f"verify --expect-head {registry.log.head().text}" in (clone / "reports/traffic.html").read_text()
        )

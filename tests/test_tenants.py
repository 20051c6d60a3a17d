"""A tenant of one's own: one entry in params.yaml, checked before it is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ops.datasets.contract import require
from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_tokenizer
from lora_ops.records.data import ContractRecord
from lora_ops.settings.params import load_settings
from lora_ops.settings.tenant import TenantSettings
from lora_ops.tenants import REMEDIES, apply_profile, check_tenant, draft_tenant
from tests.conftest import ROOT, SAMPLE_TENANTS, run_forked, write_params


@pytest.fixture
def faq(repository: Path) -> Path:
    rows = "".join(f"How do I reset part {n}?,Hold button {n}.,part {n // 2}\n" for n in range(60))
    (repository / "data/sources/faq.csv").write_text("question,answer,part\n" + rows)
    return repository


def add(root: Path, *options: str):
    return run_forked("lora-ops", "tenant", "add", *options, cwd=root, COLUMNS="300")


def test_adding_writes_one_entry_and_keeps_every_comment(faq: Path) -> None:
    before = (faq / "params.yaml").read_text()
    added = add(
        faq, "faq", "data/sources/faq.csv", "--template", "{question}", "--target", "answer",
        "--task", "text", "--group", "part", "--system", "Be brief.",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    assert "faq: 60 rows pass" in added.stdout and "dvc repro package@faq" in added.stdout
    after = (faq / "params.yaml").read_text()
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in after.splitlines() if "#" in line
    ]
    tenants = load_settings(faq).tenants
    first, settings = next(iter(load_settings(ROOT).tenants.items()))
    assert tenants[first] == settings
    assert tenants["faq"].data.group == "part" and tenants["faq"].data.rows.train == 42


def test_labels_are_read_from_the_file(faq: Path) -> None:
    (faq / "data/sources/mood.jsonl").write_text(
        "".join(f'{{"text": "sentence {n}", "label": "{"good" if n % 2 else "bad"}"}}\n' for n in range(40))
    )
    assert add(faq, "mood", "data/sources/mood.jsonl").returncode == 0
    assert load_settings(faq).tenants["mood"].data.labels == ("bad", "good")
    checked = run_forked("lora-ops", "tenant", "check", "mood", cwd=faq)
    assert checked.returncode == 0 and "target is a known label" in checked.stdout


def test_tenant_add_and_check_warn_of_near_duplicates(faq: Path) -> None:
    """Both showed a check that is `ok` beside the number of rows found, and left the warning to 01_prepare."""
    add_text = ("--template", "{question}", "--target", "answer", "--task", "text")
    added = add(faq, "faq", "data/sources/faq.csv", *add_text)
    checked = run_forked("lora-ops", "tenant", "check", "faq", cwd=faq, COLUMNS="300")
    for shown in (added, checked):
        assert "Warning: 16 of 16 held-out rows are nearly a training row" in shown.stdout, shown.stderr
    checked = run_forked("lora-ops", "tenant", "check", "faq", "--json", cwd=faq)
    (warning,) = json.loads(checked.stdout)["warnings"]
    assert warning.startswith("16 of 16 held-out rows")


def test_encoding_and_delimiter_are_options_that_the_entry_keeps(faq: Path) -> None:
    rows = "".join(f"Où est la pièce {n}?;À {n}.\n" for n in range(60))
    (faq / "data/sources/aide.csv").write_text("question;réponse\n" + rows, encoding="latin-1")
    added = add(
        faq, "aide", "data/sources/aide.csv", "--template", "{question}", "--target", "réponse",
        "--task", "text", "--encoding", "latin-1", "--delimiter", ";",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    data = load_settings(faq).tenants["aide"].data
    assert (data.encoding, data.delimiter, data.target) == ("latin-1", ";", "réponse")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["finance", "data/sources/faq.csv", "--template", "{question}", "--target", "part", "--task", "text"],
         "has a tenant 'finance' already"),
        (["faq", "data/sources/faq.csv"], "no column 'text' (data.template); it has: question, answer, part"),
        (["faq", "data/sources/faq.csv", "--template", "{question}", "--target", "answer"],
         "has 60 different values of 'answer': that is free text, use --task text"),
        (["faq", "data/sources/gone.csv"], "there is no file"),
        (["faq", "/etc/hostname.csv"], "is outside the repository"),
        (["faq", "README.md"], "must end in one of .csv, .jsonl, .parquet, .py"),
        (["Faq!", "data/sources/faq.csv", "--template", "{question}", "--target", "answer", "--task", "text"],
         "'Faq!' can't name a tenant: write 1 to 40 lower-case letters (a to z)"),
        (["base", "data/sources/gone.csv"], "params.yaml is unchanged: tenants.base: 'base' is reserved"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_said_and_nothing_is_written(faq: Path, options: list[str], told: str) -> None:
    before = (faq / "params.yaml").read_bytes()
    refused = add(faq, *options)
    assert refused.returncode == 2
    assert told in refused.stderr and refused.stderr.count("\n") == 1
    assert (faq / "params.yaml").read_bytes() == before
    assert not (faq / ".params.yaml").exists()


def test_a_file_with_a_bad_row_is_refused_with_the_row(faq: Path) -> None:
    with (faq / "data/sources/faq.csv").open("a") as file:
        file.write("Who are you?,Write to jo@example.org.,part 99\n")
    options = ("--template", "{question}", "--target", "answer", "--task", "text")
    refused = add(faq, "faq", "data/sources/faq.csv", *options)
    assert refused.returncode == 2 and "row 61: 'Write to [e-mail address].'" in refused.stderr
    assert "row 61" in refused.stdout
    assert "faq" not in load_settings(faq).tenants


@pytest.mark.parametrize("tenant", SAMPLE_TENANTS)
def test_a_removed_tenant_is_gone_from_the_gateways_settings_too(faq: Path, tenant: str) -> None:
    before = load_settings(faq)
    removed = run_forked("lora-ops", "tenant", "remove", tenant, cwd=faq)
    assert removed.returncode == 0, removed.stderr
    after = load_settings(faq)
    assert set(after.tenants) == set(before.tenants) - {tenant}
    assert tenant not in after.serving.tenants and tenant not in after.serving.warm
    assert f"\n  {tenant}:" not in (faq / "params.yaml").read_text()


def test_what_cannot_be_removed_is_said(faq: Path) -> None:
    unknown = run_forked("lora-ops", "tenant", "remove", "retail", cwd=faq)
    assert unknown.returncode == 4 and "no tenant 'retail'" in unknown.stderr
    *others, last = load_settings(faq).tenants
    for tenant in others:
        assert run_forked("lora-ops", "tenant", "remove", tenant, cwd=faq).returncode == 0
    before = (faq / "params.yaml").read_bytes()
    refused = run_forked("lora-ops", "tenant", "remove", last, cwd=faq)
    assert refused.returncode == 2 and "params.yaml is unchanged: tenants" in refused.stderr
    assert (faq / "params.yaml").read_bytes() == before


def test_a_profile_changes_every_tenant_and_an_unknown_one_is_refused(faq: Path) -> None:
    assert run_forked("lora-ops", "profile", "small", cwd=faq).returncode == 0
    assert {tenant.data.rows.train for tenant in load_settings(faq).tenants.values()} == {160}
    refused = run_forked("lora-ops", "profile", "huge", cwd=faq)
    assert refused.returncode == 4 and "there are: demo, gpu, small, tiny" in refused.stderr


def test_a_profile_leaves_other_lines_as_they_are(tmp_path: Path) -> None:
    """What it changes is then all that `git diff` shows."""
    before = (ROOT / "params.yaml").read_text().splitlines()
    (tmp_path / "params.yaml").write_text("\n".join(before) + "\n")
    apply_profile(ROOT / "profiles/small.yaml", tmp_path)
    after = (tmp_path / "params.yaml").read_text().splitlines()
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    names = {old.split(":")[0].strip() for old in changed}
    assert names == {"rows", "epochs", "learning_rate", "bootstrap", "must_beat_base"}


@pytest.mark.parametrize("profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_profile_fits_the_settings(tmp_path: Path, profile: Path) -> None:
    apply_profile(profile, write_params(tmp_path, {}))
    load_settings(tmp_path)


def test_gpu_profile_pins_a_base_of_the_hub(tmp_path: Path) -> None:
    apply_profile(ROOT / "profiles/gpu.yaml", write_params(tmp_path, {}))
    settings = load_settings(tmp_path)
    base = settings.base_model
    assert base.where == f"hub:{base.id}" and not (base.requirement or base.origin or base.file)
    assert (base.dtype, settings.serving.torch.device) == ("source", "cuda")
    assert all(tenant.train.gradient_checkpointing for tenant in settings.tenants.values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no settings: write them as params.yaml does"),
        (b"- a\n", "holds no settings"),
        (b"tenants: 5\n", "holds no settings"),
        (b"tenants: {'*': 5}\n", "holds no settings"),
        (b"a: [1\n", "odd.yaml is not valid YAML"),
        (b"a: \xff\n", "odd.yaml is not UTF-8"),
        (b"registry: 5\n", "params.yaml is unchanged: registry: "),
    ],
)
def test_a_profile_of_no_settings_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    write_params(tmp_path, {})
    before = (tmp_path / "params.yaml").read_text()
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(LoraOpsError, match=says):
        apply_profile(tmp_path / "odd.yaml", tmp_path)
    assert (tmp_path / "params.yaml").read_text() == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository's root without code: params.yaml and a place for sources."""
    (tmp_path / "data/sources").mkdir(parents=True)
    (tmp_path / "dvc.yaml").touch()
    return write_params(tmp_path, {})


def drafted(root: Path, content: str, **options: Any) -> tuple[dict[str, Any], ContractRecord]:
    """What `tenant add` makes of a CSV file: the entry, and the contract's result."""
    (root / "data/sources/own.csv").write_text(content, encoding="utf-8")
    options = {"template": "{text}", "target": "label", "task": "labels"} | options
    entry = draft_tenant("data/sources/own.csv", root, **options)
    return entry, check_tenant("own", TenantSettings.model_validate(entry), root)[0]


def two_labels(first: str, second: str, rows: int = 60) -> str:
    lines = "".join(f"sentence {n},{first if n % 2 else second}\n" for n in range(rows))
    return f"text,label\n{lines}"


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("text,label\n" + "".join(f"s{n},a\n" for n in range(40)), {}, "has one label, 'a', in each row"),
        (
            "text,label\n" + "".join(f"s{n},\n" for n in range(40)),
            {},
            "'label' .--target. is empty in each row",
        ),
        ("text,label\n" + "".join(f"s{n},\n" for n in range(40)), {"task": "text"}, "is empty in each row"),
        ("text,label\n" + "".join(f"s{n},a,\n" for n in range(40)), {}, "has one label"),
        (two_labels("a", "b"), {"task": "sorting"}, "data.task: .*'labels' or 'text'"),
        (two_labels("a", "b"), {"on_pii": "hide"}, "data.on_pii"),
        (two_labels("a", "b"), {"template": "{text:.2f}"}, "data.template: .*formats a column"),
        ("text,label\n" + "".join(f"s{n}@example.org,a\n" for n in range(9)), {"on_pii": "drop"}, "Every row"),
    ],
)
def test_a_file_that_no_later_stage_could_use_is_refused(
    folder: Path, content: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(LoraOpsError, match=told):
        drafted(folder, content, **options)


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("text,label\nhi,a\nho,b\n", {}, "every split has rows"),
        (two_labels("a", "b"), {"group": "label"}, "every split has rows"),
        (
            "text,label,who\n" + "".join(f"sentence {n},{'ab'[n % 2]},{n % 2}\n" for n in range(60)),
            {"group": "who"},
            "2 groups are too few for three splits",
        ),
    ],
)
def test_splits_that_would_be_empty_are_refused(
    folder: Path, content: str, options: dict[str, Any], told: str
) -> None:
    _, contract = drafted(folder, content, **options)
    with pytest.raises(LoraOpsError, match=told):
        require(contract, REMEDIES)


def test_labels_fit_max_new_tokens_with_the_base_models_tokenizer(folder: Path, tiny_base: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(tiny_base)
    label = "an unusually long label with ümläuts"
    entry, contract = drafted(folder, two_labels(label, "b"))
    tokens = len(load_tokenizer(tiny_base)(label)["input_ids"])
    assert entry["evaluate"]["max_new_tokens"] == tokens + 1
    require(contract)
    entry["evaluate"]["max_new_tokens"] = tokens
    contract, _ = check_tenant("own", TenantSettings.model_validate(entry), folder)
    with pytest.raises(LoraOpsError, match=rf"each label fits {tokens} new tokens .*evaluate.max_new_tokens"):
        require(contract)


def test_labels_fit_max_new_tokens_before_there_is_a_base_model(folder: Path) -> None:
    entry, _ = drafted(folder, two_labels("ü" * 30, "b"))
    assert entry["evaluate"]["max_new_tokens"] == 61


def test_long_rows_are_no_dead_end(folder: Path, tiny_base: Path) -> None:
    """`tenant add` used to ask for another limit in an entry that it hadn't written."""
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(tiny_base)
    entry, contract = drafted(folder, two_labels("a", "b").replace("sentence", "sentence " * 60))
    require(contract)
    assert 512 < entry["data"]["contract"]["max_tokens"] <= 2048


def test_a_row_longer_than_the_base_model_reads_is_refused(folder: Path, tiny_base: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(tiny_base)
    entry, contract = drafted(folder, two_labels("a", "b") + f"{'word ' * 2000},a\n")
    assert entry["data"]["contract"]["max_tokens"] == 2048
    with pytest.raises(LoraOpsError, match=r"prompt and answer fit 2048 tokens .*Mend the rows\.$"):
        require(contract, REMEDIES)


def test_rows_with_identifiers_name_the_options_of_tenant_add(folder: Path) -> None:
    content = two_labels("a", "b") + "write to jo@example.org,a\n"
    _, contract = drafted(folder, content)
    with pytest.raises(LoraOpsError, match=r"Mend the rows or add --on-pii drop or --on-pii redact\.$"):
        require(contract, REMEDIES)
    entry, contract = drafted(folder, content, on_pii="drop")
    require(contract, REMEDIES)
    assert entry["data"]["on_pii"] == "drop" and contract.rows == 60

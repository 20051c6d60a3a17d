"""A tenant of one's own: one entry in params.yaml, checked before it is written."""

from pathlib import Path

import pytest

from lora_ops.settings.params import load_settings
from tests.conftest import ROOT, SAMPLE_TENANTS, run


@pytest.fixture
def faq(repository: Path) -> Path:
    rows = "".join(f"How do I reset part {n}?,Hold button {n}.,part {n // 2}\n" for n in range(60))
    (repository / "data/sources/faq.csv").write_text("question,answer,part\n" + rows)
    return repository


def add(root: Path, *options: str):
    return run("lora-ops", "tenant", "add", *options, cwd=root, COLUMNS="300")


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
    checked = run("lora-ops", "tenant", "check", "mood", cwd=faq)
    assert checked.returncode == 0 and "target is a known label" in checked.stdout


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
         "params.yaml is unchanged"),
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
    removed = run("lora-ops", "tenant", "remove", tenant, cwd=faq)
    assert removed.returncode == 0, removed.stderr
    after = load_settings(faq)
    assert set(after.tenants) == set(before.tenants) - {tenant}
    assert tenant not in after.serving.tenants and tenant not in after.serving.warm
    assert f"\n  {tenant}:" not in (faq / "params.yaml").read_text()


def test_what_cannot_be_removed_is_said(faq: Path) -> None:
    unknown = run("lora-ops", "tenant", "remove", "retail", cwd=faq)
    assert unknown.returncode == 4 and "no tenant 'retail'" in unknown.stderr
    *others, last = load_settings(faq).tenants
    for tenant in others:
        assert run("lora-ops", "tenant", "remove", tenant, cwd=faq).returncode == 0
    before = (faq / "params.yaml").read_bytes()
    refused = run("lora-ops", "tenant", "remove", last, cwd=faq)
    assert refused.returncode == 2 and "params.yaml is unchanged: tenants" in refused.stderr
    assert (faq / "params.yaml").read_bytes() == before


def test_a_profile_changes_every_tenant_and_an_unknown_one_is_refused(faq: Path) -> None:
    assert run("lora-ops", "profile", "small", cwd=faq).returncode == 0
    assert {tenant.data.rows.train for tenant in load_settings(faq).tenants.values()} == {160}
    refused = run("lora-ops", "profile", "huge", cwd=faq)
    assert refused.returncode == 4 and "there are: small, tiny" in refused.stderr

"""The three packaged sources and a user's own files, read."""

from pathlib import Path

import pandas as pd
import pytest

from lora_ops.datasets.source import read_source, template_fields
from lora_ops.errors import LoraOpsError
from lora_ops.settings.data import DataSettings
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from tests.conftest import SAMPLE_TENANTS

ROWS = {"train": 7, "validation": 1, "test": 2}


def own(source: str, **values: object) -> DataSettings:
    return DataSettings.model_validate(
        {"source": source, "task": "text", "rows": ROWS, "target": "answer"} | values
    )


def rows_of(tenant: str) -> pd.DataFrame:
    root = find_root()
    tenants = load_settings(root).tenants
    if tenant not in tenants:
        pytest.skip(f"params.yaml has no tenant '{tenant}'")
    return read_source(tenants[tenant].data, root, root / "data/raw")[0]


def test_finance_names_private_use_ranges_and_drops_reserved_codes() -> None:
    frame = rows_of("finance").set_index("text")
    assert len(frame) > 1900
    assert frame.loc["UNITED AIRLINES", "label"] == "Airlines"
    assert set(frame.loc[frame["mcc"].between("3300", "3499"), "label"]) == {"Car rental"}
    assert set(frame.loc[frame["mcc"].between("3500", "3999"), "label"]) == {"Lodging"}
    assert not frame["label"].str.startswith("Reserved").any()


def test_healthcare_has_the_chapters_of_conditions_grouped_by_category() -> None:
    frame = rows_of("healthcare")
    assert frame["label"].nunique() == 19
    cholera = frame[frame["text"] == "Cholera, unspecified"].iloc[0]
    assert (cholera["label"], cholera["category"]) == ("Infectious diseases", "A00")
    assert frame["category"].str.fullmatch(r"[A-Z][0-9A-Z]{2}").all()


def test_media_is_rated_by_agreement_and_holds_no_direct_identifier() -> None:
    frame = rows_of("media")
    assert set(frame["label"]) == {"negative", "neutral", "positive"}
    assert not frame["text"].str.contains("566-8082").any()


@pytest.mark.parametrize("tenant", SAMPLE_TENANTS)
def test_no_wording_stands_twice_in_a_packaged_source(tenant: str) -> None:
    assert not rows_of(tenant)["text"].str.lower().duplicated().any()


def test_a_csv_keeps_codes_as_text(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("text,answer\nnumber?,007\n")
    frame, record = read_source(own("faq.csv"), tmp_path, tmp_path)
    assert frame["answer"].tolist() == ["007"]
    assert record.name == "faq.csv"


def test_jsonl_keeps_codes_dates_and_numbers_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text(
        '{"text": "007", "answer": 1, "date": "2024-01-02", "sure": true}\n\n'
        '{"text": "8", "answer": null, "date": "soon", "sure": false}\n'
    )
    frame, _ = read_source(own("faq.jsonl"), tmp_path, tmp_path)
    assert frame.to_dict("records") == [
        {"text": "007", "answer": "1", "date": "2024-01-02", "sure": "true"},
        {"text": "8", "answer": None, "date": "soon", "sure": "false"},
    ]


def test_jsonl_and_a_python_function_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text('{"text": "hi", "answer": "hello"}\n')
    (tmp_path / "faq.py").write_text(
        "import pandas\ndef load():\n    return pandas.DataFrame({'text': ['hi'], 'answer': ['hello']})\n"
    )
    first, _ = read_source(own("faq.jsonl"), tmp_path, tmp_path)
    second, _ = read_source(own("faq.py"), tmp_path, tmp_path)
    assert first.to_dict("records") == second.to_dict("records")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "text,reply\nhi,hello\n", r"no column 'answer' \(data.target\); it has: text, reply"),
        ("a.csv", "text,answer\n", "has no rows"),
        ("a.csv", "", "cannot be read as CSV"),
        ("a.jsonl", "{broken\n", "cannot be read as JSONL"),
        ("a.jsonl", "[1]\n", r"cannot be read as JSONL: a line must be an object, not \[1\]"),
        ("a.py", "x = 1\n", "defines no function `load`"),
        ("a.py", "def load():\n    return 3\n", "returned int, not a DataFrame"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LoraOpsError, match=told):
        read_source(own(name), tmp_path, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="there is no file"):
        read_source(own("gone.csv"), tmp_path, tmp_path)


def test_templates_name_columns() -> None:
    assert template_fields("{question} ({product})") == ["question", "product"]
    for broken in ("no column", "{", "{}", "{price:.2f}", "{price!r}"):
        with pytest.raises(LoraOpsError, match=r"data\.template"):
            template_fields(broken)

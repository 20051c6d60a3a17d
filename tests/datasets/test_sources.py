"""The packaged sources and a user's own files, read."""

import json
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from pydantic import ValidationError

from lora_ops.datasets.source import read_source
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.settings.data import DataSettings
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from lora_ops.templates import fill_template
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


def test_publishing_has_headings_of_many_documents_and_no_markup() -> None:
    frame = rows_of("publishing")
    assert len(frame) > 1000 and frame["document"].nunique() > 200
    assert set(frame["part"]) == {"topics", "ref", "howto", "internals", "intro", "faq", "misc"}
    assert not frame["heading"].str.lower().duplicated().any() and (frame["text"].str.len() <= 320).all()
    assert not frame["text"].str.contains(r"`|:\w+:`|::").any()
    row = frame[frame["heading"] == "Composite primary keys and relations"].iloc[0]
    assert row["document"] == "topics/composite-primary-key.txt"


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
        ("a.csv", "", "cannot be read as CSV: it has no header line"),
        (
            "a.csv",
            "text,answer\n1,a\n2,b, or c\n",
            r"line 3 has 3 fields and the header 2 \('2', 'b', ' or c'\)",
        ),
        ("a.csv", 'text,answer\n"1\n1",a\n2\n', "line 4 has 1 fields and the header 2"),
        ("a.csv", "text,answer\nhello, world,\nhi,there,\nyou,\n", "line 2 has 3 fields and the header 2"),
        ("a.csv", 'text,answer\n1,a\n"2,b\n3,c\n', "line 3: unexpected end of data .*quote"),
        ("a.csv", "text,answer,answer\n1,a,b\n", "two columns are named 'answer'"),
        ("a.csv", "text,answer,\n1,a,b\n", "column 3 has no name in the header, and line 2 fills it"),
        (
            "a.csv",
            "text;answer\n1;a\n",
            "one column, 'text;answer': its delimiter seems to be ';'.*data.delimiter",
        ),
        ("a.csv", 'text;answer\n"first, second";a\n', "its delimiter seems to be ';'"),
        ("a.csv", "text\tanswer\nfirst, second\ta\n", r"its delimiter seems to be '\\t'"),
        ("a.csv", "chosen,rejected,text\na,b,c\n", r"no column 'answer'"),
        ("a.jsonl", "{broken\n", "cannot be read as JSONL: line 1: Expecting property name"),
        ("a.jsonl", '{"text": "a"}\n1\n', "line 2 must be an object, not 1"),
        ("a.jsonl", '[{"text": "a", "answer": "b"}]\n', r"one JSON array.*jq -c '\.\[\]' a\.jsonl"),
        ("a.jsonl", '{"text": "a", "answer": "b", "answer": "c"}\n', "line 1: two columns are named 'answer'"),
        ("a.jsonl", '{"text": "a", "answer": ' + "[" * 100_000 + "\n", "line 1: "),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "hi"}]}\n',
            "no column 'text'.*Chats are not read",
        ),
        ("a.jsonl", '{"text": "hi", "answer": ["a"]}\n', r"'answer' is a list in row 1, not text: \['a'\]"),
        ("a.jsonl", '{"text": "cut \\ud83d", "answer": "a"}\n', "'text' in row 1 holds half of a character"),
        ("a.parquet", "PAR1", "cannot be read as PARQUET"),
        (
            "a.py",
            "import pandas\ndef load():\n    return pandas.DataFrame([[1, 2, 3]], columns=['text', 'answer', "
            "'answer'])\n",
            "can't be used: two columns are named 'answer'",
        ),
        ("a.csv", "text,answer,text\n1,a\n", "two columns are named 'text'"),
        (
            "a.py",
            "import pandas\ndef load():\n    return pandas.DataFrame([['x', 'y']], columns=pandas.MultiIndex."
            "from_tuples([('text', 'a'), ('answer', 'a')]))\n",
            r"has columns with 2 names each \(a MultiIndex\), such as \('text', 'a'\)",
        ),
        ("a.py", "x = 1\n", "defines no function `load`"),
        ("a.py", "def load():\n    return 3\n", "returned int, not a DataFrame"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LoraOpsError, match=told):
        read_source(own(name), tmp_path, tmp_path)


def test_a_delimiter_at_the_end_of_each_row_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("text,answer\nhi,hello,\nbye,,\n")
    (tmp_path / "named.csv").write_text("text,answer,\nhi,hello,\nbye,,\n")
    rows = [{"text": "hi", "answer": "hello"}, {"text": "bye", "answer": None}]
    assert read_source(own("faq.csv"), tmp_path, tmp_path)[0].to_dict("records") == rows
    assert read_source(own("named.csv"), tmp_path, tmp_path)[0].to_dict("records") == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])
@pytest.mark.parametrize("name", ["faq.csv", "faq.jsonl"])
def test_a_named_encoding_is_read_with_or_without_its_mark(tmp_path: Path, name: str, encoding: str) -> None:
    content = {"faq.csv": "text;answer\ncafé;été\n", "faq.jsonl": '{"text": "café", "answer": "été"}\n'}[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    options = {"encoding": encoding} | ({"delimiter": ";"} if name == "faq.csv" else {})
    frame, _ = read_source(own(name, **options), tmp_path, tmp_path)
    assert frame.to_dict("records") == [{"text": "café", "answer": "été"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, content in (("a.csv", "text,answer\nhi,yes\n"), ("a.jsonl", '{"text": "hi", "answer": "yes"}\n')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert list(read_source(own(name), tmp_path, tmp_path)[0].columns) == ["text", "answer"]


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("latin-1", r"line 2 is not utf-8 \(byte 0xe9\): name its encoding, such as latin-1, in data.encoding"),
        ("cp1252", r"line 2 is not utf-8 \(byte 0x96\): name its encoding, such as cp1252, in data.encoding"),
        ("utf-16", "begins as UTF-16, not utf-8: name its encoding, such as utf-16"),
        ("utf-16-le", "holds NUL characters, so it is not utf-8: name its encoding, such as utf-16"),
    ],
)
def test_another_encoding_is_refused_with_the_remedy(tmp_path: Path, encoding: str, told: str) -> None:
    text = {"utf-16-le": "text,answer\nhi,a\n", "cp1252": "text,answer\nhi – you,a\n"}.get(
        encoding, "text,answer\ncafé,a\n"
    )
    (tmp_path / "faq.csv").write_bytes(text.encode(encoding))
    with pytest.raises(LoraOpsError, match=told):
        read_source(own("faq.csv"), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.csv",
            "text,answer\n" + "hi,yes\n" * 500 + "a\0b,yes\n",
            "'text' in row 501 .* U\\+0000 .*: remove",
        ),
        ("a.csv", "text,answer\nhi,yes\x1b[2J\n", "'answer' in row 1 holds the control character U\\+001B"),
        (
            "a.csv",
            "text,answer\nhi,\x93yes\x94\n",
            "'answer' in row 1 .* U\\+0093 .*name cp1252 in data.encoding",
        ),
        ("a.jsonl", '{"text": "hi", "answer": "yes\\u0000"}\n', "'answer' in row 1 .* U\\+0000"),
        (
            "a.py",
            "import pandas\ndef load():\n    return pandas.DataFrame({'text': ['\\0'], 'answer': ['a']})\n",
            "'text' in row 1 .* U\\+0000 .*: remove the character",
        ),
        ("a.csv", "text,answer,re\x07st\n1,a,b\n", "the name of column 3 holds a control character"),
    ],
)
def test_control_characters_are_refused_with_their_row(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(LoraOpsError, match=told):
        read_source(own(name), tmp_path, tmp_path)


def test_tabs_and_lines_inside_a_quoted_text_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,answer\n"one\n\ttwo\r\nthree",yes\n', newline="")
    frame, _ = read_source(own("a.csv"), tmp_path, tmp_path)
    assert frame["text"].tolist() == ["one\n\ttwo\r\nthree"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.py"])
def test_a_text_that_no_model_reads_at_once_is_refused(tmp_path: Path, name: str) -> None:
    long = "x" * 2**20
    content = {
        "a.csv": f"text,answer\nhi,yes\n{long},yes\n",
        "a.jsonl": "".join(json.dumps({"text": one, "answer": "yes"}) + "\n" for one in ("hi", long)),
        "a.py": "import pandas\ndef load():\n"
        "    return pandas.DataFrame({'text': ['hi', 'x' * 2**20], 'answer': 'a'})",
    }[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(LoraOpsError, match="'text' in row 2 has 1,048,576 characters, and at most 262,144"):
        read_source(own(name), tmp_path, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "empty names", "jsonl", "parquet"])
def test_a_table_of_too_many_columns_is_refused(tmp_path: Path, kind: str) -> None:
    names, name = [f"c{i}" for i in range(2000)], "a.csv"
    if kind == "csv":
        (tmp_path / name).write_text(",".join(names) + "\n")
    elif kind == "empty names":
        (tmp_path / name).write_text("text,answer" + "," * 1998 + "\nhi,yes" + "," * 1998 + "\n")
    elif kind == "jsonl":
        name = "a.jsonl"
        (tmp_path / name).write_text(json.dumps(dict.fromkeys(names, "x")) + "\n")
    else:
        name = "a.parquet"
        columns = ", ".join(f"'x' AS {one}" for one in names)
        duckdb.sql(f"COPY (SELECT {columns}) TO '{tmp_path / name}' (FORMAT parquet)")
    wanted = r"data.template \({text}\), data.target \(answer\) name"
    with pytest.raises(
        LoraOpsError, match=f"has 2,000 columns, and at most 1,000 are read: keep those .*{wanted}"
    ):
        read_source(own(name), tmp_path, tmp_path)


def test_a_parquet_file_of_a_multiindex_is_refused(tmp_path: Path) -> None:
    columns = "'x' AS \"('text', 'a')\", 'y' AS \"('answer', 'a')\""
    duckdb.sql(f"COPY (SELECT {columns}) TO '{tmp_path / 'a.parquet'}' (FORMAT parquet)")
    with pytest.raises(
        LoraOpsError, match=r"its columns have two names each, .*\('text', 'a'\).* \(a MultiIndex\)"
    ):
        read_source(own("a.parquet"), tmp_path, tmp_path)


def test_nan_and_null_in_jsonl_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text(
        '{"text": "a", "answer": NaN}\n{"text": "b", "answer": -Infinity}\n{"text": "c", "answer": null}\n'
        '{"text": "d"}\n{"text": "e", "answer": 1e999}\n'
    )
    assert read_source(own("faq.jsonl"), tmp_path, tmp_path)[0]["answer"].tolist() == [None] * 5


def test_line_separators_inside_jsonl_text_are_text(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text('{"text": "a\u2028b", "answer": "c\x85d"}\n', encoding="utf-8")
    frame, _ = read_source(own("faq.jsonl"), tmp_path, tmp_path)
    assert frame.to_dict("records") == [{"text": "a\u2028b", "answer": "c\x85d"}]


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    duckdb.sql(
        "COPY (SELECT * FROM (VALUES ('007', 1, true, DATE '2024-01-02', 'nan'::DOUBLE),"
        " ('8', NULL, false, NULL, 1.5)) t(text, answer, sure, day, score))"
        f" TO '{tmp_path / 'faq.parquet'}' (FORMAT parquet)"
    )
    frame, record = read_source(own("faq.parquet"), tmp_path, tmp_path)
    assert frame.to_dict("records") == [
        {"text": "007", "answer": "1", "sure": "true", "day": "2024-01-02", "score": None},
        {"text": "8", "answer": None, "sure": "false", "day": None, "score": "1.5"},
    ]
    assert record.name == "faq.parquet"


def test_parquet_times_with_a_zone_are_texts(tmp_path: Path) -> None:
    time = "TIMESTAMPTZ '2024-01-02 03:04:05.5+02'"
    duckdb.sql(
        f"COPY (SELECT 'hi' AS text, 'a' AS answer, {time} AS sent, [{time}] AS log,"
        f" {{'at': {time}}} AS \"o'.x\") TO '{tmp_path / 'faq.parquet'}' (FORMAT parquet)"
    )
    frame, _ = read_source(own("faq.parquet", template="{sent} {text}"), tmp_path, tmp_path)
    assert frame["sent"].tolist() == ["2024-01-02 01:04:05.5+00"]


def test_a_parquet_column_of_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "faq.parquet"
    duckdb.sql(f"COPY (SELECT 'hi' AS text, ['a', 'b'] AS answer) TO '{path}' (FORMAT parquet)")
    with pytest.raises(LoraOpsError, match="'answer' is a list in row 1"):
        read_source(own("faq.parquet"), tmp_path, tmp_path)


def test_a_preference_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"text": "q", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(LoraOpsError, match="holds preferences .*one right answer a row"):
        read_source(own("pairs.jsonl", target="chosen"), tmp_path, tmp_path)


def test_chats_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}], "answer": "a"}\n')
    with pytest.raises(LoraOpsError, match="'messages' is a list in row 1.*Chats are not read"):
        read_source(own("chats.jsonl", template="{messages}"), tmp_path, tmp_path)


def test_a_huge_cell_makes_no_huge_error(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text('{"text": "hi", "answer": ["' + "x" * 1_500_000 + '"]}\n')
    with pytest.raises(LoraOpsError) as told:
        read_source(own("faq.jsonl"), tmp_path, tmp_path)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"encoding": "klingon"}, "no such text encoding"),
        ({"encoding": "rot13"}, "no such text encoding"),
        ({"delimiter": "ab"}, "one character"),
        ({"delimiter": '"'}, "one character"),
        ({"source": "rows.parquet", "encoding": "latin-1"}, "encoding is for .csv and .jsonl files"),
        ({"source": "rows.jsonl", "delimiter": ";"}, "delimiter is for .csv files"),
        ({"published": "2025-02-30"}, "there is no such day"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(values: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        own(values.pop("source", "rows.csv"), **values)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="there is no file"):
        read_source(own("gone.csv"), tmp_path, tmp_path)


@pytest.mark.parametrize("column", ["meta.text", "rows[0]", "a b", "__class__", "text.upper"])
def test_a_template_names_columns_literally(tmp_path: Path, column: str) -> None:
    (tmp_path / "faq.jsonl").write_text(json.dumps({column: "hi {there}", "answer": "a"}) + "\n")
    data = own("faq.jsonl", template=f"Say {{{column}}}, {{{{so}}}}!")
    frame, _ = read_source(data, tmp_path, tmp_path)
    assert fill_template(data.template, frame.to_dict("records")) == ["Say hi {there}, {so}!"]


@pytest.mark.parametrize("template", ["{text.upper}", "{text[0]}", "{text.__class__}"])
def test_a_template_reads_no_attribute_or_item(tmp_path: Path, template: str) -> None:
    (tmp_path / "faq.jsonl").write_text('{"text": "hi", "answer": "a"}\n')
    with pytest.raises(LoraOpsError, match=r"has no column .*\(data.template\); it has: text, answer"):
        read_source(own("faq.jsonl", template=template), tmp_path, tmp_path)


def test_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """After a `git switch` in another terminal the record named the other branch's file, and these rows."""
    script = tmp_path / "faq.py"
    script.write_text(
        "import pandas as pd\nfrom pathlib import Path\n\n\ndef load():\n"
        "    Path(__file__).write_text('# of another branch')\n"
        "    return pd.DataFrame({'text': ['May I?'], 'answer': ['yes']})\n"
    )
    with pytest.raises(LoraOpsError, match=r"faq\.py was changed while it was read: run this again"):
        read_source(own("faq.py"), tmp_path, tmp_path)


def test_a_scripts_record_has_the_digest_of_its_rows(tmp_path: Path) -> None:
    """C6: the digest was the script's, so changed rows of a database left no trace."""
    script = tmp_path / "faq.py"
    script.write_text(
        "import pandas as pd\nfrom pathlib import Path\n\n\n"
        "def load():\n    return pd.read_csv(Path(__file__).with_name('database.csv'))\n"
    )
    records = []
    for answer in ("yes", "no", "yes"):
        (tmp_path / "database.csv").write_text(f"text,answer\nMay I?,{answer}\n")
        records.append(read_source(own("faq.py"), tmp_path, tmp_path)[1])
    assert records[0] == records[2] != records[1]
    assert records[0].sha256 != records[1].sha256
    assert records[0].version == records[0].sha256[:12]
    assert records[0].script_sha256 == records[1].script_sha256 == sha256_file(script)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("def load():\n    return 1 / 0\n", "line 2 fails with ZeroDivisionError"),
        ("import no_such_module\n", "line 1 fails with ModuleNotFoundError"),
        ("def load(:\n", "line 1 fails with SyntaxError"),
        ("import sys\nsys.exit(9)\n", "line 2 fails with SystemExit"),
        ("def load(rows):\n    return rows\n", "fails with TypeError"),
    ],
)
def test_script_that_fails_is_named_with_its_line(tmp_path: Path, script: str, says: str) -> None:
    (tmp_path / "rows.py").write_text(script)
    settings = DataSettings.model_validate(
        {"source": "rows.py", "task": "text", "rows": {"train": 1, "validation": 1, "test": 1}}
    )
    with pytest.raises(LoraOpsError, match=says):
        read_source(settings, tmp_path, tmp_path / "raw")

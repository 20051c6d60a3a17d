"""Files of KPIs: what counts for which version, and what is left out with which reason."""

from datetime import timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.monitoring.kpi_store import KpiStore
from tests.monitoring.kpi_files import SOON, VERSIONS, reasons, take, write_csv, write_events
from tests.registry.conftest import MORNING

LATER = "2026-03-02T10:30:00+01:00"
"""Half an hour after the first answer."""


def store(root: Path) -> KpiStore:
    return KpiStore(root / ".serving/kpis")


def test_row_counts_for_the_version_that_answered(tmp_path: Path) -> None:
    write_events(tmp_path, {}, {"adapter": "finance@2", "arm": "canary"})
    path = write_csv(
        tmp_path / "kpis.csv",
        f"{LATER},ctr,1,chatcmpl-r0",
        f"{LATER},dwell_seconds,12.5,r1",
        f"{LATER},ctr,0,r1",
    )
    made = take(tmp_path, path)
    assert (made.joined, made.by_request, made.rejected, made.rows) == (3, 3, (), 3)
    rows = store(tmp_path).rows().set_index(["request_id", "kind"])
    assert rows["adapter"].to_dict() == {
        ("r0", "ctr"): "finance@1",
        ("r1", "ctr"): "finance@2",
        ("r1", "dwell_seconds"): "finance@2",
    }
    assert rows.loc[("r1", "ctr"), "arm"] == "canary" and rows.loc[("r1", "ctr"), "unit"] == "user 1"
    assert rows.loc[("r0", "ctr"), "time"] == MORNING + timedelta(minutes=30)
    assert store(tmp_path).rows("media").empty


WRONG = [
    ("{later},ctr,3.4,{id}", "ctr is not from 0 to 1 (a percentage? write 0.05 for 5 %)"),
    ("{later},ctr,-0.1,{id}", "ctr is not from 0 to 1"),
    ("{later},dwell_seconds,-4,{id}", "dwell_seconds is not from 0 to 86400"),
    ("{later},csat,0,{id}", "csat is not from 1 to 5"),
    ("{later},ctr,NaN,{id}", "value is no number"),
    ("{later},ctr,inf,{id}", "value is no number"),
    ("{later},ctr,1e999,{id}", "value is no number"),
    ("{later},ctr,,{id}", "value is missing"),
    ('{later},ctr,"0,5",{id}', "value has a decimal comma: write 0.5, not 0,5"),
    ("{later},ctr,=B2/C2,{id}", "value is a formula, not what it computes"),
    ('{later},ctr,"=HYPERLINK(""http://x"")",{id}', "value is a formula, not what it computes"),
    ("{later},ctr,@SUM(1),{id}", "value is a formula, not what it computes"),
    ("{later},ctr,1,=r0", "request_id is no id of the gateway"),
    ("{later},clicks,1,{id}", "kind is none of ctr, dwell_seconds, rpm, conversion, csat"),
    ("{later},,1,{id}", "kind is none of ctr, dwell_seconds, rpm, conversion, csat"),
    ("2026-03-02T10:30:00,ctr,1,{id}", "time names no zone: add it, or import with --zone"),
    ("2026-03-02,ctr,1,{id}", "time names no zone: add it, or import with --zone"),
    ("02/03/2026 10:30,ctr,1,{id}", "time is not ISO 8601, such as 2026-03-02T09:00:00+01:00"),
    (",ctr,1,{id}", "time is missing"),
    ("2026-04-02T09:30:00Z,ctr,1,{id}", "time has not come yet"),
    ("2026-03-02T10:30:00+03:00,ctr,1,{id}", "before its answer (another time zone?)"),
    ("{later},ctr,1,lost", "no event has this request_id"),
    ("{later},ctr,1,", "has neither request_id nor tenant"),
    ("{later},ctr,1", "has other fields than the header"),
    ("{later},ctr,1,failed", "the request got no answer"),
    ("{later},ctr,1,base", "the base model answered"),
    ("{later},ctr,1,gone", "the version that answered is not in the registry"),
    ("{later},ctr,1,other", "another registry's version answered"),
]
"""Rows with their reason; `{id}` is the id of an answer of finance@1."""


@pytest.fixture(scope="module")
def wrong_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Import all of them at once, and one row that is right; return each row's reason."""
    root = tmp_path_factory.mktemp("wrong")
    others = {
        "failed": {"status": 503},
        "base": {"adapter": "tiny", "digest": "d"},
        "gone": {"adapter": "finance@9"},
        "other": {"digest": "d" * 64},
    }
    named = [{"request_id": name, **changes} for name, changes in others.items()]
    write_events(root, *({} for _ in range(len(WRONG) + 1)), *named)
    lines = [row.format(later=LATER, id=f"r{place}") for place, (row, _) in enumerate(WRONG)]
    made = take(root, write_csv(root / "kpis.csv", *lines, f"{LATER},ctr,1,r{len(WRONG)}"))
    assert made.joined == 1
    rejected = store(root).rejected(made.sha256)
    return dict(zip(rejected["row"], rejected["reason"], strict=True))


@pytest.mark.parametrize("place", range(len(WRONG)), ids=[row for row, _ in WRONG])
def test_wrong_row_is_left_out_with_its_reason(wrong_rows: dict[int, str], place: int) -> None:
    assert wrong_rows[place + 2] == WRONG[place][1]


def test_times_of_all_zones_become_utc(tmp_path: Path) -> None:
    write_events(tmp_path, *({} for _ in range(4)))
    rows = (
        "2026-03-02T18:00:00+09:00",
        "2026-03-02T09:00:00Z",
        "2026-03-02 04:00:00-0500",
        "2026-03-02T10:00:00",
    )
    path = write_csv(tmp_path / "kpis.csv", *(f"{time},ctr,1,r{n}" for n, time in enumerate(rows)))
    made = take(tmp_path, path, zone="Europe/Berlin")
    assert made.joined == 4 and made.zone == "Europe/Berlin"
    assert set(store(tmp_path).rows()["time"]) == {pd.Timestamp(MORNING)}


def test_hour_that_comes_twice_is_left_out(tmp_path: Path) -> None:
    write_events(tmp_path, {"time": "2026-10-25T00:00:00Z"})
    path = write_csv(tmp_path / "kpis.csv", "2026-10-25T02:30:00,ctr,1,r0", "2026-10-25T04:00:00,rpm,1,r0")
    made = take(tmp_path, path, pd.Timestamp("2026-10-26", tz="UTC").to_pydatetime(), "Europe/Berlin")
    assert reasons(made) == {2: "time does not exist, or exists twice, in Europe/Berlin"} and made.joined == 1


def test_unknown_zone_is_refused(tmp_path: Path) -> None:
    for name in ("Europe/Berln", "../etc/passwd", ""):
        with pytest.raises(LoraOpsError, match="There is no time zone"):
            take(tmp_path, write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0"), zone=name)


def test_same_kpi_counts_once_in_a_file(tmp_path: Path) -> None:
    write_events(tmp_path, {})
    path = write_csv(tmp_path / "kpis.csv", *(f"{LATER},ctr,{value},r0" for value in (1, 1, 0)))
    made = take(tmp_path, path)
    said = "stands in the file before"
    assert made.joined == 1 and reasons(made) == {3: said, 4: f"{said} with another value"}


def test_same_file_counts_once(tmp_path: Path) -> None:
    write_events(tmp_path, {}, {})
    path = write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0", f"{LATER},ctr,1,r1")
    first = take(tmp_path, path)
    again = take(tmp_path, path.rename(tmp_path / "copy.csv"), SOON + timedelta(days=1))
    assert again == first.model_copy(update={"name": "copy.csv"})
    assert len(store(tmp_path).rows()) == 2 and len(store(tmp_path).imports()) == 1


def test_overlapping_rows_of_two_files_count_once(tmp_path: Path) -> None:
    write_events(tmp_path, {}, {}, {})
    one = write_csv(tmp_path / "one.csv", f"{LATER},ctr,1,r0", f"{LATER},ctr,1,r1")
    other = write_csv(tmp_path / "other.csv", f"{LATER},ctr,0,r1", f"{LATER},ctr,0,r2", f"{LATER},rpm,3,r1")
    take(tmp_path, one)
    made = take(tmp_path, other, SOON + timedelta(hours=1))
    assert (made.joined, made.repeated) == (3, 1)
    rows = store(tmp_path).rows()
    assert rows.set_index(["request_id", "kind"])["value"].to_dict() == {
        ("r0", "ctr"): 1,
        ("r1", "ctr"): 1,
        ("r2", "ctr"): 0,
        ("r1", "rpm"): 3,
    }


def test_event_that_comes_late_is_joined_later(tmp_path: Path) -> None:
    """And an event log that was swept since takes nothing away."""
    write_events(tmp_path, {})
    path = write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0", f"{LATER},ctr,1,late")
    assert reasons(take(tmp_path, path)) == {3: "no event has this request_id"}
    for file in (tmp_path / ".serving/events").iterdir():
        file.unlink()
    write_events(tmp_path, {"request_id": "late"}, name="20260302T110000-2")
    made = take(tmp_path, path, SOON + timedelta(days=1))
    assert (made.joined, made.rejected) == (2, ()) and made.imported_at == SOON
    assert set(store(tmp_path).rows()["request_id"]) == {"r0", "late"}


def test_request_id_of_two_tenants_needs_its_tenant(tmp_path: Path) -> None:
    """A client may choose its ids, so that another tenant's client could take a KPI over, or out."""
    write_events(tmp_path, {}, {"request_id": "r0", "tenant": "media", "adapter": "media@1"})
    header = "time,kind,value,request_id,tenant"
    path = write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0,", f"{LATER},rpm,1,r0,finance", header=header)
    made = take(tmp_path, path)
    assert reasons(made) == {2: "several answers have this request_id"} and made.joined == 1
    other = write_csv(tmp_path / "other.csv", f"{LATER},csat,1,r0,healthcare", header=header)
    assert reasons(take(tmp_path, other)) == {2: "the request is of another tenant"}


def test_second_try_of_a_request_is_the_answer(tmp_path: Path) -> None:
    """A client that tries again with the same id got one answer."""
    write_events(tmp_path, {"status": 503}, {"request_id": "r0", "unit": "user 0"})
    assert take(tmp_path, write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0")).joined == 1


def test_row_without_id_counts_by_share(tmp_path: Path) -> None:
    """On the first day finance@1 gave all answers, on the second one both gave some."""
    days = [
        {
            "time": MORNING + timedelta(days=day, minutes=number),
            "request_id": f"{day} {number}",
            "adapter": adapter,
        }
        for day, adapters in ((0, ["finance@1"] * 20), (1, ["finance@1"] * 10 + ["finance@2"] * 10))
        for number, adapter in enumerate(adapters)
    ]
    write_events(tmp_path, *days)
    path = write_csv(
        tmp_path / "kpis.csv",
        "2026-03-02T00:00:00Z,ctr,0.1,finance,2026-03-03T00:00:00Z,1000",
        "2026-03-03T00:00:00Z,ctr,0.2,finance,2026-03-04T00:00:00Z,1000",
        "2026-03-01T00:00:00Z,ctr,0.2,finance,2026-03-02T00:00:00Z,1000",
        "2026-03-02T09:10:00Z,rpm,2.5,finance,,",
        "2026-03-02T09:10:00Z,rpm,2.5,finance,2026-03-02T09:00:00Z,",
        "2026-03-02T09:11:00Z,rpm,2.5,finance,,2.5",
        "2026-03-02T09:12:00Z,rpm,2.5,Finance Ltd,,",
        "2026-03-02T09:12:00Z,rpm,2.5,fnance,,",
        header="time,kind,value,tenant,until,count",
    )
    made = take(tmp_path, path)
    assert (made.joined, made.by_request) == (2, 0)
    assert reasons(made) == {
        3: "several versions answered then, and no request is named",
        4: "no version answered then",
        6: "until is before time",
        7: "count is no whole number from 1 on",
        8: "tenant is no name of one",
        9: "the registry has no version of this tenant",
    }
    rows = store(tmp_path).rows()
    assert list(rows["adapter"]) == ["finance@1"] * 2 and set(rows["share"]) == {1.0}
    assert set(rows["count"]) == {1000, 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"time;kind;value;request_id\n2026-03-02T09:00:00Z;ctr;0,5;r0\n", "',' between the columns and '.'"),
        (b"\xef\xbb\xbftime,kind,value\n", "no column request_id or tenant"),
        (b"time,kind,request_id\n", "no column value"),
        (b"time,kind,value,value,request_id\n", "two columns are named 'value'"),
        (b"time,kind,value,request_id\n", "has no rows"),
        (b"", "it is empty"),
        (b"time,kind,value,request_id\n2026-03-02T09:00:00Z,ctr,1,\xe9\n", "line 2 is not UTF-8"),
        ("time,kind,value,request_id\n".encode("utf-16"), "not UTF-8"),
        (b'time,kind,value,request_id\n2026-03-02T09:00:00Z,ctr,1,"r0\n', "quote missing"),
    ],
)
def test_file_of_another_form_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "kpis.csv").write_bytes(content)
    with pytest.raises(LoraOpsError, match=said):
        take(tmp_path, tmp_path / "kpis.csv")
    assert not (tmp_path / ".serving/kpis").exists()


def test_byte_order_mark_and_other_columns_are_no_fault(tmp_path: Path) -> None:
    write_events(tmp_path, {})
    path = tmp_path / "kpis.csv"
    path.write_bytes(f"\ufeffpage,time,kind,value,request_id\r\n/a,{LATER},ctr,1,r0\r\n".encode())
    made = take(tmp_path, path)
    assert made.joined == 1 and made.left_out == ("page",)


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    write_events(tmp_path, {}, {})
    path = tmp_path / "kpis [1].parquet"
    table = pd.DataFrame(
        {
            "time": pd.to_datetime([LATER, None, LATER], utc=True),
            "kind": ["ctr", "ctr", "dwell_seconds"],
            "value": [0.5, 0.5, float("nan")],
            "request_id": ["r0", "r1", "r1"],
        }
    )
    with duckdb.connect() as db:
        db.from_df(table).write_parquet(str(path))
    made = take(tmp_path, path)
    assert made.joined == 1 and reasons(made) == {2: "time is missing", 3: "value is missing"}
    assert store(tmp_path).rows()["time"][0] == MORNING + timedelta(minutes=30)


def test_parquet_that_is_half_written_is_refused(tmp_path: Path) -> None:
    write_events(tmp_path, {})
    path = tmp_path / "kpis.parquet"
    with duckdb.connect() as db:
        db.from_df(pd.DataFrame({"time": [LATER], "kind": ["ctr"]})).write_parquet(str(path))
    for content in (path.read_bytes()[:-20], b"PAR1", b""):
        path.write_bytes(content)
        with pytest.raises(LoraOpsError, match="no whole Parquet file"):
            take(tmp_path, path)
    assert not (tmp_path / ".serving/kpis").exists()


def test_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, said in (("kpis.xlsx", "neither .csv nor"), ("folder.csv", "a folder"), ("no.csv", "is no file")):
        with pytest.raises(LoraOpsError, match=said):
            take(tmp_path, tmp_path / name)


def test_kept_rows_that_were_changed_are_damaged(tmp_path: Path) -> None:
    write_events(tmp_path, {})
    made = take(tmp_path, write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0"))
    kept = tmp_path / ".serving/kpis" / made.sha256 / "rows.parquet"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(Damaged, match="import that file again"):
        store(tmp_path).rows()


def test_what_a_killed_import_leaves_counts_nowhere(tmp_path: Path) -> None:
    """The folder gets its name once it is whole; the next import of the file removes what was left."""
    write_events(tmp_path, {})
    path = write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0")
    made = take(tmp_path, path)
    kept = tmp_path / ".serving/kpis" / made.sha256
    left = kept.with_name(f".{made.sha256}-x") / made.sha256
    left.parent.mkdir()
    kept.rename(left)
    (left / "rows.parquet").write_bytes(b"PAR1")
    assert store(tmp_path).imports() == [] and store(tmp_path).rows().empty
    assert take(tmp_path, path) == made and len(store(tmp_path).rows()) == 1
    assert not left.parent.exists() and kept.parent.stat().st_mode & 0o077 == 0


def test_import_without_events_joins_nothing(tmp_path: Path) -> None:
    made = take(tmp_path, write_csv(tmp_path / "kpis.csv", f"{LATER},ctr,1,r0"))
    assert made.joined == 0 and reasons(made) == {2: "no event has this request_id"}
    assert store(tmp_path).rows().empty and list(VERSIONS)

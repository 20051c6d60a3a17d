"""Latency of each adapter: from the event log, and from a Prometheus that kept more or less of it."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.histograms import ANSWER, FIRST_TOKEN, PER_TOKEN, cumulative
from lora_ops.monitoring.latency import LatencyReport, as_json, from_log, judged, missed, read_latency
from lora_ops.monitoring.prometheus import Prometheus
from lora_ops.settings.objectives import LatencyObjective, ObjectiveSettings
from tests.conftest import run_forked, small_clone
from tests.monitoring.prometheus_kit import fill, needs_prometheus, prometheus
from tests.serving.test_events import event, write

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
WEEK = 7 * 86_400
NOWHERE = Prometheus("http://127.0.0.1:1", 2)


def at(hours: float, number: int = 0, **changes: Any) -> Any:
    """An event so many hours before NOW."""
    return event(number, time=NOW - timedelta(hours=hours), **changes)


# --- the event log


def test_log_gives_percentiles_of_each_adapter(tmp_path: Path) -> None:
    times = [0.2, 0.3, 0.7, 3.0]
    events = [at(1, n, seconds=each, token_seconds=[0.01, 0.02]) for n, each in enumerate(times)]
    write(tmp_path, *events, at(1, 8, status=502, seconds=9.0), at(1, 9, tenant="media", adapter="media@2"))
    finance, media = from_log(tmp_path, WEEK, NOW).adapters
    assert (finance.adapter, finance.answer.count, finance.unanswered) == ("finance@1", 4, 1)
    assert finance.answer.percentile(0.5) == 0.5 and finance.answer.exact
    assert finance.answer.exact[0] == pytest.approx(0.5)
    assert finance.per_token.count == 8 and finance.first_token.count == 5
    assert finance.availability == 0.8 and finance.within(1) == 0.75
    assert media.adapter == "media@2"


def test_log_leaves_out_what_is_before_the_window(tmp_path: Path) -> None:
    write(tmp_path, at(1, 1), at(25, 2))
    assert from_log(tmp_path, 86_400, NOW).adapters[0].answer.count == 1
    assert from_log(tmp_path, 600, NOW).adapters == ()


def test_log_of_earlier_releases_has_no_token_times(tmp_path: Path) -> None:
    write(tmp_path, at(1, 1))
    (path,) = tmp_path.iterdir()
    old = json.loads(path.read_text())
    del old["token_seconds"]
    path.write_text(json.dumps(old) + "\n")
    (found,) = from_log(tmp_path, WEEK, NOW).adapters
    assert found.answer.count == 1 and found.per_token.percentile(0.5) is None


def test_log_with_lines_that_no_gateway_wrote_is_read(tmp_path: Path) -> None:
    write(tmp_path, at(1, 1))
    (path,) = tmp_path.iterdir()
    odd = [
        {"seconds": -1},
        {"seconds": "NaN"},
        {"tenant": None},
        {"status": None},
        {"first_token_seconds": "inf"},
    ]
    one = json.loads(path.read_text())
    lines = [json.dumps(one | {"id": f"x{n}"} | change) for n, change in enumerate(odd)]
    path.write_text("\n".join([json.dumps(one), *lines, "garbage", '{"id": "torn', ""]))
    (found,) = from_log(tmp_path, WEEK, NOW).adapters
    assert found.answer.count == 2 and found.first_token.count == 1


def test_log_of_a_clock_that_runs_ahead_says_so(tmp_path: Path) -> None:
    write(tmp_path, at(1, 1), at(-2, 2))
    report = from_log(tmp_path, WEEK, NOW)
    assert report.adapters[0].answer.count == 2
    assert report.notes[0].startswith("1 events are later than now (up to 2026-03-02 14:00 UTC)")


def test_an_empty_log_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="no events in .* yet: serve some requests"):
        from_log(tmp_path, WEEK, NOW)


def test_objectives_that_were_missed_are_named(tmp_path: Path) -> None:
    slow = [at(1, n, seconds=9.0) for n in range(10)]
    write(tmp_path, *slow, *(at(2, n, status=503) for n in range(10)), *(at(3, n) for n in range(10)))
    report = from_log(tmp_path, WEEK, NOW)
    available, fast = missed(report, ObjectiveSettings())
    assert [one.objective for one in (available, fast)] == ["availability", "latency"]
    assert available.said.startswith(
        "finance@1 of finance left 10 of 30 requests unanswered: 66.67% were answered"
    )
    assert fast.said.startswith(
        "finance@1 of finance gave 10 of 20 answers after more than 5 s: 50.00% were in time"
    )
    # A third went unanswered where 0.1 % may, and half of the answers were late where 5 % may.
    (one,) = report.adapters
    burnt = {"availability": pytest.approx(1 / 3 / 0.001), "latency": pytest.approx(0.5 / 0.05)}
    assert one.burn(ObjectiveSettings()) == burnt
    assert [one["verdict"] for one in judged(report, ObjectiveSettings())] == ["missed", "missed"]
    assert missed(report, ObjectiveSettings(minimum_events=11)) == []
    few = judged(report, ObjectiveSettings(minimum_events=11))
    assert [one["verdict"] for one in few] == ["cannot tell", "cannot tell"]
    loose = LatencyObjective(seconds=10, share=0.95)
    assert len(missed(report, ObjectiveSettings(latency=loose))) == 1
    kept = judged(report, ObjectiveSettings(latency=loose))[1]
    assert (kept["share"], kept["least"], kept["verdict"]) == (1.0, 0.95, "kept")


def test_an_adapter_that_answered_nobody_missed_it(tmp_path: Path) -> None:
    write(tmp_path, *(at(1, n, status=503) for n in range(20)))
    (one,) = missed(from_log(tmp_path, WEEK, NOW), ObjectiveSettings())
    assert "0.00% were answered" in one.said


# --- a Prometheus


def buckets(name: str, labels: str, values: list[float], bounds: tuple[float, ...], time: float) -> Any:
    for bound, count in zip((*bounds, math.inf), cumulative(values, bounds), strict=True):
        le = "+Inf" if bound == math.inf else f"{float(bound)}"
        yield f'lora_ops_{name}_bucket{{{labels},le="{le}"}}', count, time


def scraped(adapter: str, values: list[float], began: float, time: float, unanswered: int = 0) -> Any:
    """What a scrape at a time has of an adapter that gave these answers since it began to count."""
    labels = f'tenant="finance",adapter="{adapter}",instance="a"'
    answered = f'{labels},outcome="answered"'
    yield from buckets("request_seconds", answered, values, ANSWER, time)
    yield f"lora_ops_request_seconds_created{{{answered}}}", began, time
    for name, bounds in (("time_to_first_token", FIRST_TOKEN), ("time_per_token", PER_TOKEN)):
        yield from buckets(f"{name}_seconds", labels, [one / 10 for one in values], bounds, time)
        yield f"lora_ops_{name}_seconds_created{{{labels}}}", began, time
    yield f"lora_ops_unanswered_total{{{labels}}}", unanswered, time
    yield f"lora_ops_unanswered_created{{{labels}}}", began, time
    yield 'up{instance="a"}', 1, time


def every(minutes: float, hours: tuple[float, float]) -> list[float]:
    """Times from so many to so many hours before NOW, in seconds since 1970."""
    first, last = hours
    count = round((first - last) * 60 / minutes)
    return [NOW.timestamp() - first * 3600 + n * minutes * 60 for n in range(count + 1)]


def history() -> Iterator[Any]:
    """Two adapters in a day: one that answered before it already, and one that began in its middle."""
    now = NOW.timestamp()
    for time in every(4, (26, 0)):
        old = [0.3] * 100
        yield from scraped("finance@1", old + [0.7, 0.7, 3.0] * (time > now - 12 * 3600), now - 1e6, time, 5)
        if time > now - 6 * 3600:
            # All that it ever answered came before the first scrape that saw it.
            yield from scraped("finance@2", [0.2, 0.4], now - 6 * 3600, time, 1)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    fill(folder, history())
    with prometheus(folder) as url:
        yield Prometheus(url)


@needs_prometheus
def test_counts_are_those_of_the_window(kept: Prometheus, tmp_path: Path) -> None:
    report = read_latency(tmp_path, kept, 86_400, NOW, "prometheus")
    first, second = report.adapters
    assert (first.adapter, first.answer.count, first.unanswered) == ("finance@1", 3, 0)
    assert first.answer.counts == cumulative([0.7, 0.7, 3.0], ANSWER)
    assert (second.adapter, second.answer.count, second.unanswered) == ("finance@2", 2, 1)
    assert report.notes == ()


@needs_prometheus
def test_percentiles_are_those_of_histogram_quantile(kept: Prometheus, tmp_path: Path) -> None:
    (one, _) = read_latency(tmp_path, kept, 86_400, NOW, "prometheus").adapters
    series = 'lora_ops_request_seconds_bucket{adapter="finance@1"}'
    for share in (0.01, 0.5, 0.95, 0.99, 1):
        query = f"histogram_quantile({share}, {series} - {series} offset 1d)"
        (sample,) = kept.instant(query, NOW.timestamp())
        assert one.answer.percentile(share) == pytest.approx(sample.value)


@needs_prometheus
def test_a_window_longer_than_its_data_is_noted(kept: Prometheus, tmp_path: Path) -> None:
    report = read_latency(tmp_path, kept, WEEK, NOW, "prometheus")
    assert "has no data of 5 days, 22:00:00 of these 7 days" in report.notes[0]
    write(tmp_path, at(1, 1))
    log = read_latency(tmp_path, kept, WEEK, NOW)
    assert log.source == "log" and log.notes[0].endswith(f"So this is the event log of {tmp_path}.")
    assert read_latency(tmp_path, kept, 86_400, NOW).source == "prometheus"


@needs_prometheus
def test_a_lost_day_is_noted_and_counters_go_on(tmp_path: Path) -> None:
    """Of the day in between nothing was scraped; the counter that goes on tells how much it rose."""
    now = NOW.timestamp()
    days = ((170, 72), (48, 0))
    fill(
        tmp_path,
        [
            *(('up{instance="b"}', 1, time) for one in days for time in every(4, one)),
            *(
                sample
                for one in days
                for time in every(30, one)
                for sample in scraped("finance@1", [0.3] * (10 + 5 * (time > now - 50 * 3600)), now - 1e6, time)
            ),
        ],
    )
    with prometheus(tmp_path) as url:
        report = read_latency(tmp_path, Prometheus(url), WEEK, NOW, "prometheus")
    assert report.adapters[0].answer.count == 5
    assert "has no data of 23:00:00 of these 7 days" in report.notes[0]


@needs_prometheus
def test_a_restart_in_the_window_is_estimated(tmp_path: Path) -> None:
    now = NOW.timestamp()
    kept = (
        one
        for time in every(4, (26, 0))
        for one in scraped("finance@1", [0.3] * (100 if time < now - 12 * 3600 else 40), now - 1e6, time)
    )
    fill(tmp_path, kept)
    with prometheus(tmp_path) as url:
        (one,) = read_latency(tmp_path, Prometheus(url), 86_400, NOW, "prometheus").adapters
    assert 39 <= one.answer.count <= 41


@needs_prometheus
def test_buckets_of_another_release_are_refused(tmp_path: Path) -> None:
    labels = 'tenant="finance",adapter="finance@1",outcome="answered"'
    fill(
        tmp_path,
        (one for time in every(4, (2, 0)) for one in buckets("request_seconds", labels, [1], (1, 2), time)),
    )
    with prometheus(tmp_path) as url, pytest.raises(LoraOpsError, match="a gateway of another release"):
        read_latency(tmp_path, Prometheus(url), 3600, NOW, "prometheus")


@needs_prometheus
def test_a_query_that_prometheus_refuses_is_a_sentence(kept: Prometheus) -> None:
    with pytest.raises(LoraOpsError, match="refuses a query: .*parse error"):
        kept.instant("sum by (", NOW.timestamp())


def test_without_prometheus_the_log_is_read_and_said(tmp_path: Path) -> None:
    write(tmp_path, at(1, 1))
    report = read_latency(tmp_path, NOWHERE, WEEK, NOW)
    assert report.source == "log" and report.notes[0].startswith(
        "Prometheus at http://127.0.0.1:1 can't be asked"
    )
    with pytest.raises(Unavailable, match="can't be asked"):
        read_latency(tmp_path, NOWHERE, WEEK, NOW, "prometheus")
    with pytest.raises(LoraOpsError, match="can't be asked.* no events in"):
        read_latency(tmp_path / "none", NOWHERE, WEEK, NOW)


RUBBISH: dict[str, tuple[int, bytes]] = {
    "html": (200, b"<html>Sign in</html>"),
    "nothing": (200, b""),
    "list": (200, b"[]"),
    "no result": (200, b'{"status": "success", "data": {"resultType": "vector"}}'),
    "other kind": (200, b'{"status": "success", "data": {"resultType": "scalar", "result": [1, "2"]}}'),
    "odd sample": (200, b'{"status": "success", "data": {"resultType": "vector", "result": [7]}}'),
    "odd value": (
        200,
        b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "x"]}]}'
        b"}",
    ),
    "error": (500, b"oops"),
    "elsewhere": (302, b""),
    "no key": (401, b'{"status": "error", "error": "who are you"}'),
}


@pytest.fixture(scope="module")
def rubbish() -> Iterator[str]:
    """A server that answers what its path names."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, content = RUBBISH[self.path.split("/")[1].replace("-", " ")]
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_no_prometheus(rubbish: str, kind: str, tmp_path: Path) -> None:
    server = Prometheus(f"{rubbish}/{kind.replace(' ', '-')}")
    with pytest.raises(
        Unavailable, match=r"What answers at http.* is no Prometheus \(.*\): correct the address\."
    ):
        read_latency(tmp_path, server, WEEK, NOW, "prometheus")
    write(tmp_path, at(1, 1))
    assert read_latency(tmp_path, server, WEEK, NOW).source == "log"


# --- the command


def test_the_command_shows_the_log(tmp_path: Path) -> None:
    clone = small_clone(tmp_path / "clone")
    recent = datetime.now(UTC) - timedelta(minutes=5)
    write(clone / ".serving/events", *(event(n, time=recent, status=503) for n in range(20)))
    done = run_forked("lora-ops", "monitor", "latency", "--source", "log", "--json", cwd=clone)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["source"] == "log" and said["adapters"][0]["unanswered"] == 20
    mine = run_forked("lora-ops", "monitor", "latency", "--tenant", "media", "--json", cwd=clone)
    assert mine.returncode == 0 and json.loads(mine.stdout)["adapters"] == []
    done = run_forked("lora-ops", "monitor", "latency", cwd=clone, COLUMNS="200")
    assert done.returncode == 1 and "finance@1 of finance left 20 of 20 requests unanswered" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "week"], "'week' is no window: write a whole number"),
        (["--source", "loki"], "--source is auto, prometheus or log, got 'loki'."),
        (["--prometheus", "http://127.0.0.1:1"], "Prometheus at http://127.0.0.1:1 can't be asked"),
        (["--prometheus", "nonsense"], "Prometheus at nonsense can't be asked"),
        (["--source", "log"], "There are no events in"),
        (["--tenant", "nobody"], "has no tenant 'nobody'"),
    ],
)
def test_the_command_refuses_in_a_sentence(tmp_path: Path, words: list[str], said: str) -> None:
    done = run_forked("lora-ops", "monitor", "latency", *words, cwd=small_clone(tmp_path / "clone"))
    assert done.returncode in (2, 4, 5)
    assert said in " ".join(done.stderr.split())


def test_json_has_every_number(tmp_path: Path) -> None:
    write(tmp_path, at(1, 1, token_seconds=[0.01]))
    report = from_log(tmp_path, WEEK, NOW)
    assert isinstance(report, LatencyReport)
    said = json.loads(json.dumps(as_json(report, ObjectiveSettings())))
    (one,) = said["adapters"]
    assert one["answer_seconds"]["p95"] == pytest.approx(0.1 + 0.15 * 0.95)
    assert one["per_token_seconds"]["exact"]["p50"] == pytest.approx(0.01)

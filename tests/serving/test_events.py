"""The event log: complete, redacted, readable by notebooks, and whole after a kill."""

import json
import os
import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_ops.detectors.insults import PACKAGE
from lora_ops.engines.protocol import Engine
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.errors import LoraOpsError
from lora_ops.ngrams import hashed_ngrams
from lora_ops.serving.events import Event, EventLog, read_events
from lora_ops.serving.risk import SCORED_CHARACTERS, score
from lora_ops.settings.serving import EventSettings, TenantServing
from tests.serving.conftest import Clone, Served, eventually, register, served

LEAK = "Write to jane.doe@example.com or call 555-867-5309 about card 4111 1111 1111 1111"


def event(number: int, **changes: Any) -> Event:
    return Event(
        **{
            "time": datetime(2026, 3, 2, 9, 0, number, tzinfo=UTC),
            "request_id": f"r{number}",
            "endpoint": "chat",
            "key": None,
            "tenant": "finance",
            "model": "finance",
            "adapter": "finance@1",
            "digest": "ab",
            "base_model": "tiny",
            "route": "production",
            "epoch": 7,
            "status": 200,
            "code": None,
            "streamed": False,
            "system_prompt": "adapter",
            "choices": 1,
            "finish": ["stop"],
            "prompt_tokens": 10,
            "generated_tokens": 3,
            "queue_seconds": 0.0,
            "first_token_seconds": 0.1,
            "seconds": 0.2,
            "device_seconds": 0.05,
            **changes,
        }
    )


def write(folder: Path, *events: Event, settings: EventSettings | None = None, keep: bool = False) -> None:
    log = EventLog(folder, settings or EventSettings(), lambda tenant: keep)
    for one in events:
        log.append(one)
    log.close()


def test_events_come_back_as_a_frame_with_types(tmp_path: Path) -> None:
    write(tmp_path, event(2, first_token_seconds=None, status=503, code="overloaded"), event(1))
    frame = read_events(tmp_path)
    assert list(frame["request_id"]) == ["r1", "r2"]
    assert frame["seconds"].sum() == pytest.approx(0.4)
    assert list(frame["finish"][0]) == ["stop"]
    assert frame["time"][0] == datetime(2026, 3, 2, 9, 0, 1, tzinfo=UTC)
    assert len(read_events(tmp_path, "status <> 200 AND tenant = 'finance'")) == 1


def test_text_is_kept_redacted_where_the_tenant_allows_it_and_nowhere_else(tmp_path: Path) -> None:
    write(tmp_path / "no", event(1, prompt_text=LEAK, answer_text=LEAK))
    write(tmp_path / "yes", event(1, prompt_text=LEAK, answer_text=LEAK), keep=True)
    for folder in ("no", "yes"):
        raw = "".join(path.read_text() for path in (tmp_path / folder).iterdir())
        assert "jane" not in raw and "4111" not in raw and "867" not in raw
        (row,) = read_events(tmp_path / folder).to_dict("records")
        assert (row["prompt_identifiers"], row["answer_identifiers"]) == (3, 3)
        assert (row["prompt_text"] is None) == (folder == "no")
    assert (
        row["answer_text"]
        == "Write to [e-mail address] or call [phone number] about card [payment card number]"
    )


def test_events_of_earlier_releases_are_read_without_their_score(tmp_path: Path) -> None:
    """A list of words scored them: beside the weights' probabilities it would be a wrong figure."""
    write(tmp_path, event(1, answer_text="You idiot"))
    (path,) = tmp_path.iterdir()
    old = json.loads(path.read_text()) | {"id": "old", "request_id": "r0", "answer_toxicity": 1.0}
    del old["answer_insults"], old["insult_detector"]
    (tmp_path / "events-20260101T000000000000-1.jsonl").write_text(json.dumps(old) + "\n")
    rows = read_events(tmp_path).set_index("request_id")
    assert rows["answer_insults"].isna().to_dict() == {"r0": True, "r1": False}
    assert "answer_toxicity" not in rows


def test_an_identifier_of_the_prompt_is_not_new(tmp_path: Path) -> None:
    """What a user or a document gave, an answer may repeat, however long that was ago."""
    given = "Ana is +44 20 7946 0958. " + "word " * 10_000
    assert len(given) > SCORED_CHARACTERS * 3
    answers = {"r1": "Call +44 (20) 79460958", "r2": "Ask bo@example.com", "r3": "Ask nobody"}
    events = [
        event(n, prompt_text=given + name, answer_text=text)
        for n, (name, text) in enumerate(answers.items(), 1)
    ]
    write(tmp_path, *events, event(4, status=429, generated_tokens=0), event(5, prompt_text=given))
    rows = read_events(tmp_path).set_index("request_id")
    assert rows["answer_identifiers"].to_dict() == {"r1": 1, "r2": 1, "r3": 0, "r4": 0, "r5": 0}
    assert rows["answer_new_identifiers"].to_dict() == {"r1": 0, "r2": 1, "r3": 0, "r4": 0, "r5": 0}


def test_risks_are_of_scored_answers() -> None:
    scores = score("", "You idiot, ask bo@example.com")
    both = event(1, answer_text="x").scored(scores, keep_text=False)
    assert both.risks(0.5) == {"identifiers": True, "insults": True}
    assert both.risks(0.9999) == {"identifiers": True, "insults": False}
    assert both.model_copy(update={"answer_is_label": True}).risks(0.5)["insults"] is False
    assert event(1, answer_text="x").scored(None, keep_text=False).risks(0.5) == {}
    refused = event(1, status=429, generated_tokens=0).scored(None, keep_text=False)
    assert refused.answer_insults == 0 and refused.risks(0.5) == {}


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "1 " * 100_000, "a.b-" * 50_000, "AB12 " * 40_000, "you " * 50_000]
)
def test_scoring_takes_linear_time_whatever_the_text(text: str) -> None:
    started = time.process_time()
    score(text, text)
    assert time.process_time() - started < 5


def test_event_scores_and_keeps_the_beginning_of_a_long_text() -> None:
    """1 MB held the GIL for 0.3 s; and half an address at the cut must not be kept."""
    leak = "jane.doe@example.com "
    long = leak + "x " * ((SCORED_CHARACTERS - 30) // 2) + leak + "You idiot. " * 9
    assert SCORED_CHARACTERS - 20 < long.rindex(leak) < SCORED_CHARACTERS < long.index("You")
    scored = score(long, "")
    assert scored.prompt_identifiers == 1
    assert scored.prompt_text.startswith("[e-mail address] x")
    assert scored.prompt_text.endswith("x…") and "jane" not in scored.prompt_text
    assert len(scored.prompt_text) < SCORED_CHARACTERS


def test_a_long_answer_is_scored_further_than_kept() -> None:
    """Else a version hides whatever it gives away behind many words."""
    leak, plain = "Ask jane.doe@example.com. ", "All is well. " * (SCORED_CHARACTERS // 13 + 1)
    assert len(plain) > SCORED_CHARACTERS
    scored = score("", f"{plain}{leak}You idiot.")
    assert (scored.answer_identifiers, scored.answer_new_identifiers) == (1, 1)
    assert scored.answer_insults > 0.5 and len(scored.answer_text) < SCORED_CHARACTERS


def test_identifiers_of_the_own_system_prompt_are_counted(clone: Clone, engine: Engine) -> None:
    """A version's makers wrote them, and no user gave them; what a client's system prompt holds, it gave."""
    answer = "Ask jane.doe@example.com"
    with clone.registry() as registry:
        params = {"data": {"system": f"Name it. {answer}"}}
        register(registry, clone.base, clone.root / "f3", "finance", 3, params)
    asked = {"model": "finance@3", "max_tokens": 60, "structured_outputs": {"choice": [answer]}}
    turns = {
        "own": [{"role": "user", "content": "Who?"}],
        "given": [{"role": "user", "content": f"{answer}?"}],
        "system": [{"role": "system", "content": answer}, {"role": "user", "content": "Who?"}],
    }
    with served(clone.root, clone.settings(), engine) as gateway:
        for name, messages in turns.items():
            body = {**asked, "messages": messages}
            done = gateway.http().post("/v1/chat/completions", json=body, headers={"x-request-id": name})
            assert done.json()["choices"][0]["message"]["content"] == answer
    rows = read_events(clone.root / ".serving/events").set_index("request_id")
    assert rows["answer_new_identifiers"].to_dict() == {"own": 1, "given": 0, "system": 0}


def test_a_new_file_begins_when_one_is_full_or_old(tmp_path: Path) -> None:
    log = EventLog(tmp_path, EventSettings(rotate_bytes=1024), lambda tenant: False)  # type: ignore[arg-type]
    for number in range(6):
        log.append(event(number))
        time.sleep(0.25)
    log.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert len(read_events(tmp_path)) == 6


def test_event_files_are_for_this_account_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path, EventSettings(), lambda tenant: True)  # type: ignore[arg-type]
    log.append(event(1))
    log.close()
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]


def test_old_files_go_and_young_ones_stay(tmp_path: Path) -> None:
    write(tmp_path, event(1))
    (old,) = tmp_path.iterdir()
    month_ago = time.time() - 31 * 86400
    os.utime(old, (month_ago, month_ago))
    write(tmp_path, event(2), settings=EventSettings(keep_days=30))
    assert list(read_events(tmp_path)["request_id"]) == ["r2"]


def test_a_line_that_a_kill_tore_is_left_out_and_an_event_written_twice_counts_once(tmp_path: Path) -> None:
    once = event(1)
    write(tmp_path, once, event(2))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    write(tmp_path, once)
    assert list(read_events(tmp_path)["request_id"]) == ["r1"]


def test_a_disk_that_takes_nothing_for_a_while_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    log = EventLog(folder, EventSettings(), lambda tenant: False)
    folder.rmdir()
    folder.write_text("a file is in its place")
    log.append(event(1))
    time.sleep(0.5)
    folder.unlink()
    log.append(event(2))
    deadline = time.monotonic() + 10
    while not list(folder.glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log.close()
    assert list(read_events(folder)["request_id"]) == ["r1", "r2"]


def test_what_a_disk_never_takes_is_counted_when_the_log_closes(tmp_path: Path) -> None:
    folder, lost = tmp_path / "events", []
    log = EventLog(folder, EventSettings(), lambda tenant: False, lost=lost.append)
    folder.rmdir()
    folder.write_text("a file is in its place")
    log.append(event(1))
    log.close()
    assert lost == [1]


@pytest.mark.parametrize("moved", [False, True])
def test_log_whose_folder_was_removed_makes_it_again(tmp_path: Path, moved: bool) -> None:
    """All that followed was written to a file that nobody could find, and counted as kept."""
    folder, lost, written = tmp_path / "events", [], []
    log = EventLog(folder, EventSettings(), lambda tenant: False, written=written.append, lost=lost.append)
    log.append(event(1))
    eventually(lambda: sum(written) == 1)
    folder.rename(tmp_path / "moved")
    if not moved:
        shutil.rmtree(tmp_path / "moved")
    log.append(event(2))
    eventually(lambda: sum(written) == 2)
    assert list(read_events(folder)["request_id"]) == ["r2"]
    assert lost == ([] if moved else [1])
    shutil.rmtree(folder)
    log.close()
    assert sum(lost) == (1 if moved else 2)


def test_an_event_that_can_not_be_written_is_counted_and_takes_no_other_with_it(tmp_path: Path) -> None:
    lost: list[int] = []

    def keeps_text(tenant: str) -> bool:
        if tenant == "odd":
            raise KeyError(tenant)
        return False

    log = EventLog(tmp_path, EventSettings(), keeps_text, lost=lost.append)
    for number, tenant in enumerate(("finance", "odd", "media")):
        log.append(event(number, tenant=tenant))
    log.close()
    assert list(read_events(tmp_path)["tenant"]) == ["finance", "media"]
    assert lost == [1]


def test_texts_that_wait_for_the_disk_are_limited_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_ops.serving.line_log.BYTES_LIMIT", 1000)
    lost: list[int] = []
    log = EventLog(tmp_path, EventSettings(), lambda tenant: False, lost=lost.append)
    log.append(event(1, prompt_text="a" * 2000))
    log.append(event(2, prompt_text="a" * 900))
    log.close()
    assert list(read_events(tmp_path)["request_id"]) == ["r2"] and lost == [1]


def test_without_events_or_with_bad_sql_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="no events"):
        read_events(tmp_path)
    write(tmp_path, event(1))
    with pytest.raises(LoraOpsError, match="can't be read"):
        read_events(tmp_path, "nonsense ((")


def test_every_request_leaves_one_event_with_who_answered_how_and_how_long(
    clone: Clone, engine: Engine
) -> None:
    settings = clone.settings(tenants={"healthcare": TenantServing(keep_text=True, requests_per_minute=1)})
    body = {"messages": [{"role": "user", "content": LEAK}], "max_tokens": 3}
    with served(clone.root, settings, engine) as gateway:
        http = gateway.http()
        http.post("/v1/chat/completions", json={"model": "finance@1", **body}, headers={"x-request-id": "a"})
        for name in ("b", "c"):
            http.post(
                "/v1/chat/completions", json={"model": "healthcare", **body}, headers={"x-request-id": name}
            )
        with http.stream(
            "POST", "/v1/chat/completions", json={"model": "base", "stream": True, **body}
        ) as stream:
            stream.read()
    rows = read_events(clone.root / ".serving/events").set_index("request_id")
    a, b, c = rows.loc["a"], rows.loc["b"], rows.loc["c"]
    assert (a["adapter"], a["route"], a["status"], a["tenant"]) == ("finance@1", "pinned", 200, "finance")
    assert (
        a["generated_tokens"] >= 1 and a["seconds"] >= a["first_token_seconds"] > 0 and a["device_seconds"] > 0
    )
    assert rows["prompt_text"].notna().sum() == 2 and a["prompt_identifiers"] == 3
    assert "[e-mail address]" in b["prompt_text"] and "system: " in b["prompt_text"]
    assert (c["status"], c["code"], c["generated_tokens"]) == (429, "rate_limit_exceeded", 0)
    assert rows[rows["streamed"]]["tenant"].tolist() == ["-"]


def test_event_names_the_user_by_a_hash_and_the_epoch(clone: Clone, engine: Engine) -> None:
    """Whoever reads the log sees which requests are of the same user, and not of whom."""
    secret = "ana.silva-4111"
    body = {"model": "finance", "prompt": "x", "max_tokens": 1}
    named = [
        ({"user": secret}, {}),
        ({"safety_identifier": secret, "user": "else"}, {"x-session-id": "s"}),
        ({}, {"x-session-id": secret}),
        ({}, {}),
    ]
    for again in (False, True):
        with served(clone.root, clone.settings(), engine) as gateway, gateway.http() as http:
            for number, (more, headers) in enumerate(named):
                headers = {**headers, "x-request-id": f"{number}-{again}"}
                assert http.post("/v1/completions", json={**body, **more}, headers=headers).is_success
        engine = TorchEngine(clone.base, max_batch=16, kv_tokens=8192, threads=1)
    rows = read_events(clone.root / ".serving/events").set_index("request_id")
    by_user, by_identifier, by_session, _ = (rows["user"][f"{number}-False"] for number in range(4))
    assert by_user == by_identifier == rows["user"]["0-True"] != by_session == rows["user"]["2-True"]
    assert rows["user"].isna()["3-False"] and len(by_user) == len(by_session) == 32
    assert not any(secret in path.read_text() for path in (clone.root / ".serving/events").iterdir())
    with clone.registry() as registry:
        assert set(rows["epoch"]) == {registry.log.head().seq}


def test_events_are_counted_when_they_are_on_disk(gateway: Served) -> None:
    gateway.http().post("/v1/completions", json={"model": "base", "prompt": "x", "max_tokens": 1})
    deadline = time.monotonic() + 5
    while gateway.metric("lora_ops_events_total") != 1:
        assert time.monotonic() < deadline
    assert gateway.metric("lora_ops_events_lost_total") == 0


def test_an_event_is_one_line_of_json_however_the_text_looks(tmp_path: Path) -> None:
    write(tmp_path, event(1, answer_text="two\nlines \u2028 and “quotes” \x00"), keep=True)
    (path,) = tmp_path.iterdir()
    (line,) = path.read_text().split("\n")[:-1]
    assert json.loads(line)["answer_text"].startswith("two\nlines")


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def scoring(log: EventLog) -> int:
    """The process id of the one that scores."""
    eventually(lambda: log._risks.pid is not None)
    assert log._risks.pid
    return log._risks.pid


def test_texts_are_scored_by_a_process_that_ends_with_the_log(tmp_path: Path) -> None:
    before = children(os.getpid())
    log = EventLog(tmp_path, EventSettings(), lambda tenant: True)
    log.append(event(1))
    eventually(lambda: bool(list(tmp_path.iterdir())))
    assert children(os.getpid()) == before  # without a text it is not needed
    log.append(event(2, answer_text="You idiot"))
    pid = scoring(log)
    eventually(lambda: written(tmp_path) == 2)
    for one in (signal.SIGINT, signal.SIGTERM):  # a terminal and systemd send them to all
        os.kill(pid, one)
    log.append(event(3, answer_text="You idiot"))
    log.close()
    assert not psutil.pid_exists(pid)
    rows = read_events(tmp_path).set_index("request_id")
    assert (rows["answer_insults"] > 0.9).to_dict() == {"r1": False, "r2": True, "r3": True}
    assert rows["insult_detector"].dropna().to_dict() == dict.fromkeys(("r2", "r3"), PACKAGE)


def written(folder: Path) -> int:
    """How many lines are on disk."""
    return sum(path.read_text().count("\n") for path in folder.iterdir())


def test_a_scoring_process_that_died_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ops.serving.risk_worker.RESTART_SECONDS", 0.0)
    unscored: list[int] = []
    log = EventLog(tmp_path, EventSettings(), lambda tenant: True, unscored=unscored.append)
    log.append(event(1, prompt_text=LEAK))
    dead = scoring(log)
    eventually(lambda: written(tmp_path) == 1)
    os.kill(dead, signal.SIGKILL)
    log.append(event(2, prompt_text=LEAK))
    eventually(lambda: written(tmp_path) == 2)
    log.append(event(3, prompt_text=LEAK))
    log.close()
    rows = read_events(tmp_path).set_index("request_id")
    assert rows["prompt_identifiers"].fillna(-1).to_dict() == {"r1": 3, "r2": -1, "r3": 3}
    assert "jane" not in "".join(path.read_text() for path in tmp_path.iterdir())
    assert unscored == [1] and rows["prompt_text"].isna().to_dict() == {"r1": False, "r2": True, "r3": False}


def test_without_weights_no_text_is_scored_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The scoring process lives on, and the log says once what to do."""
    (tmp_path / "blocked/profanity_check").mkdir(parents=True)
    (tmp_path / "blocked/profanity_check/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))
    unscored: list[int] = []
    log = EventLog(tmp_path / "events", EventSettings(), lambda tenant: True, unscored=unscored.append)
    log.append(event(1, prompt_text=LEAK))
    pid = scoring(log)
    log.append(event(2, answer_text="You idiot"))
    eventually(lambda: written(tmp_path / "events") == 2)
    assert scoring(log) == pid
    log.close()
    rows = read_events(tmp_path / "events")
    assert unscored == [1, 1] and rows["prompt_text"].isna().all() and rows["answer_insults"].isna().all()
    (said,) = [record.getMessage() for record in caplog.records if "scored" in record.getMessage()]
    assert "install alt-profanity-check==1.9.1 again" in said


def test_a_scoring_process_that_hangs_keeps_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ops.serving.risk_worker.ANSWER_SECONDS", 2.0)
    unscored: list[int] = []
    log = EventLog(tmp_path, EventSettings(), lambda tenant: True, unscored=unscored.append)
    log.append(event(1, prompt_text=LEAK))
    pid = scoring(log)
    eventually(lambda: written(tmp_path) == 1)
    os.kill(pid, signal.SIGSTOP)
    log.append(event(2, prompt_text=LEAK))
    eventually(lambda: written(tmp_path) == 2)
    assert not psutil.pid_exists(pid) and unscored == [1]
    log.close()


def test_of_too_many_texts_at_once_a_part_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ops.serving.events.SCORED_TOGETHER", 1000)
    unscored: list[int] = []
    log = EventLog(tmp_path, EventSettings(), lambda tenant: True, unscored=unscored.append)
    log.append(event(0, prompt_text="a" * 1001))
    for number in range(1, 21):
        log.append(event(number, prompt_text="a" * 400))
    log.close()
    rows = read_events(tmp_path)
    assert len(rows) == 21
    assert rows["prompt_identifiers"].notna().sum() == 21 - sum(unscored) < 21
    assert rows["prompt_text"].notna().equals(rows["prompt_identifiers"].notna())


def test_event_keeps_hashed_ngrams_of_what_the_user_said(tmp_path: Path) -> None:
    """Where no text is kept; without a key there are none, and a failed request has none either."""
    keys = {"finance": "ab" * 32}
    log = EventLog(tmp_path, EventSettings(), lambda tenant: False, ngram_key=keys.get)
    said = "system: Name it.\nuser: Grand Hotel"
    log.append(event(1, prompt_text=said, answer_text="Lodging"))
    log.append(event(2, prompt_text=said, answer_text="Lodging", tenant="media"))
    log.append(event(3, status=503))
    log.close()
    kept = read_events(tmp_path).set_index("request_id")
    assert kept.loc["r1", "prompt_ngrams"] == hashed_ngrams("Grand Hotel", bytes.fromhex(keys["finance"]))
    assert kept["prompt_ngrams"].isna().tolist() == [False, True, True] and kept["prompt_text"].isna().all()

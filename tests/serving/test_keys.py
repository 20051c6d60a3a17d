"""Who may call, and what each key reaches."""

import importlib.metadata
import logging
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.errors import LoraOpsError
from lora_ops.serving.keys import Caller, KeyStore
from tests.conftest import ROOT, run, run_forked
from tests.serving.conftest import Clone, Served, eventually, served

OPENS = "import sys, pathlib; from lora_ops.serving.keys import KeyStore; KeyStore(pathlib.Path(sys.argv[1]))"
CHAT = {"messages": [{"role": "user", "content": "AIRBNB"}], "max_tokens": 2}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    opened = KeyStore(tmp_path / "keys.sqlite")
    yield opened
    opened.close()


def test_a_key_is_shown_once_and_only_its_digest_is_kept(store: KeyStore, tmp_path: Path) -> None:
    key, secret = store.create("tenant", "finance", note="ERP")
    assert store.caller(secret) == Caller(key.id, "tenant", "finance", base=False)
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    assert stat.S_IMODE((tmp_path / "keys.sqlite").stat().st_mode) == 0o600
    assert [one.note for one in store.all()] == ["ERP"]


def test_a_revoked_key_is_nobody_and_the_store_stays_closed(store: KeyStore) -> None:
    key, secret = store.create("admin")
    store.revoke(key.id)
    assert store.caller(secret) is None
    assert store.any()
    with pytest.raises(LoraOpsError, match="no key"):
        store.revoke(key.id)


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_key_store_refuses_a_pipe_at_once(store: KeyStore, tmp_path: Path, end: str) -> None:
    """SQLite would wait for somebody who writes into it, so that no key could be revoked."""
    store.create("admin")
    path = tmp_path / f"keys.sqlite{end}"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    done = run("timeout", "20", sys.executable, "-c", OPENS, str(tmp_path / "keys.sqlite"), cwd=ROOT)
    assert f"{path} is a pipe, a folder or a device, and no file: remove it" in done.stderr


@pytest.mark.parametrize("deleted", [("wal",), ("shm",), ("wal", "shm")], ids="-".join)
def test_a_revoked_key_is_nobody_though_the_wal_was_deleted(
    store: KeyStore, tmp_path: Path, deleted: tuple[str, ...]
) -> None:
    key, secret = store.create("admin")
    for end in deleted:
        (tmp_path / f"keys.sqlite-{end}").unlink()
    path = tmp_path / "keys.sqlite"
    revoke = (
        f"from lora_ops.serving.keys import KeyStore; from pathlib import Path; KeyStore(Path({str(path)!r}))"
    )
    done = run(sys.executable, "-c", f"{revoke}.revoke({key.id!r})", cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert store.caller(secret) is None
    store.close()
    again = KeyStore(path)
    assert again.caller(secret) is None
    again.close()


def test_a_note_that_nobody_can_read_is_refused(store: KeyStore) -> None:
    with pytest.raises(LoraOpsError, match="Say who holds the key"):
        store.create("admin", note="\u200b" * 9)
    assert store.all() == []


def test_every_key_is_another_one(store: KeyStore) -> None:
    assert len({store.create("monitor")[1] for _ in range(20)}) == 20


@pytest.mark.parametrize(("role", "tenant"), [("tenant", None), ("admin", "finance"), ("monitor", "finance")])
def test_a_key_is_for_one_tenant_or_for_none(store: KeyStore, role: str, tenant: str | None) -> None:
    with pytest.raises(LoraOpsError, match="say which"):
        store.create(role, tenant)  # type: ignore[arg-type]


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "keys.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LoraOpsError, match="can't be used"):
        KeyStore(tmp_path / "keys.sqlite")


@pytest.fixture
def keys(clone: Clone) -> dict[str, str]:
    store = KeyStore(clone.root / ".serving/keys.sqlite")
    made = {
        "finance": store.create("tenant", "finance")[1],
        "healthcare": store.create("tenant", "healthcare", base=True)[1],
        "admin": store.create("admin")[1],
        "monitor": store.create("monitor")[1],
    }
    store.close()
    return made


@pytest.fixture
def guarded(clone: Clone, engine: Engine, keys: dict[str, str]) -> Iterator[Served]:
    with served(clone.root, clone.settings(), engine) as running:
        yield running


@pytest.mark.parametrize(
    ("holder", "reached"),
    [
        ("finance", {"finance", "finance@1", "finance@2"}),
        ("healthcare", {"healthcare", "healthcare@1", "tiny-random", "base"}),
        ("admin", {"finance", "finance@1", "finance@2", "healthcare", "healthcare@1", "tiny-random", "base"}),
    ],
)
def test_a_key_reaches_its_tenants_models_and_no_others(
    guarded: Served, keys: dict[str, str], holder: str, reached: set[str]
) -> None:
    client = guarded.client(keys[holder])
    for model in ("finance", "finance@1", "finance@2", "healthcare", "healthcare@1", "tiny-random", "base"):
        if model in reached:
            assert client.chat.completions.create(model=model, **CHAT).choices  # type: ignore[call-overload]
        else:
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model=model, **CHAT)  # type: ignore[call-overload]
    assert {model.id for model in client.models.list()} == reached - {"base"}


def test_another_tenants_model_reads_like_one_that_does_not_exist(
    guarded: Served, keys: dict[str, str]
) -> None:
    http = guarded.http(keys["finance"])
    texts = [
        http.post("/v1/chat/completions", json={"model": model, **CHAT}).json()["error"]["message"]
        for model in ("healthcare@1", "nobodys@1")
    ]
    assert texts[0].replace("healthcare", "nobodys") == texts[1]
    assert "healthcare" not in http.post("/v1/chat/completions", json={"model": "finance@9", **CHAT}).text


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer wrong", "Bearer é", "Basic d3Jvbmc6d3Jvbmc=", "Basic !", "Basic é", "Digest x"],
)
def test_without_a_valid_key_nothing_is_told(guarded: Served, header: str) -> None:
    sent = {b"authorization": header.encode("latin-1")}
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/console/data"),
    ):
        json = {"model": "finance", **CHAT} if method == "POST" else None
        answer = guarded.http().request(method, path, json=json, headers=sent)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert guarded.http().get("/health").status_code == guarded.http().get("/ready").status_code == 200


def test_probes_need_no_key_and_the_version_does(guarded: Served, keys: dict[str, str]) -> None:
    assert guarded.http().get("/ping").status_code == guarded.http().post("/ping").status_code == 200
    assert guarded.http().get("/version").status_code == 401
    said = guarded.http(keys["monitor"]).get("/version").json()
    assert said == {"version": importlib.metadata.version("lora-ops")}


@pytest.mark.parametrize("holder", ["finance", "monitor"])
def test_only_an_admin_loads_and_unloads(guarded: Served, keys: dict[str, str], holder: str) -> None:
    for call in ("load", "unload"):
        body = {"lora_name": "finance@1"}
        path = f"/v1/{call}_lora_adapter"
        assert guarded.http(keys[holder]).post(path, json=body).status_code == 403
        assert guarded.http(keys["admin"]).post(path, json=body).status_code == 200


def test_refusals_and_admin_calls_say_whose_key_it_was(
    guarded: Served, keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[dict[str, Any]]:
        return [record.fields for record in caplog.records if record.name == "lora_ops.access"]  # type: ignore[attr-defined]

    with caplog.at_level(logging.INFO, "lora_ops"):
        assert guarded.http(keys["finance"]).post("/v1/chat/completions", json={}).status_code == 400
        guarded.http(keys["admin"]).post("/v1/load_lora_adapter", json={"lora_name": "finance"})
        eventually(lambda: len(told()) == 2)
    refused, loaded = told()
    assert refused["tenant"] == "finance" and refused["key"].startswith("k-")
    assert f"finance@2 is loaded, as key {loaded['key']} asked" in caplog.messages
    assert guarded.metric("lora_ops_refused_total", keys["admin"], tenant="finance", code="400") == 1


def test_a_monitor_reads_metrics_and_asks_no_model(guarded: Served, keys: dict[str, str]) -> None:
    http = guarded.http(keys["monitor"])
    assert http.get("/metrics").status_code == http.get("/console/data").status_code == 200
    assert http.post("/v1/chat/completions", json={"model": "finance", **CHAT}).status_code == 403


def test_the_first_key_closes_a_running_gateway_and_revoking_it_does_not_open_it(
    gateway: Served, clone: Clone
) -> None:
    assert gateway.http().get("/v1/models").status_code == 200
    store = KeyStore(clone.root / ".serving/keys.sqlite")
    key, secret = store.create("admin")
    assert gateway.http().get("/v1/models").status_code == 401
    assert gateway.http(secret).get("/v1/models").status_code == 200
    store.revoke(key.id)
    assert gateway.http(secret).get("/v1/models").status_code == 401
    store.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("testserver", 403),
        ("localhost.evil.example:8000", 403),
        ("localhost:80.evil.example", 403),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
    ],
)
def test_an_open_gateway_answers_to_this_machine_only(gateway: Served, host: str, status: int) -> None:
    answer = gateway.http().get("/v1/models", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or "localhost only" in answer.json()["error"]["message"]


def test_an_open_gateway_takes_no_form_of_a_web_page(gateway: Served) -> None:
    body = '{"model": "base", "prompt": "x", "max_tokens": 1}'
    answer = gateway.http().post("/v1/completions", content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 400


def test_an_open_gateway_does_not_start_on_an_address_that_others_reach(clone: Clone, engine: Engine) -> None:
    with (
        pytest.raises(LoraOpsError, match="keys create --admin"),
        served(clone.root, clone.settings(host="0.0.0.0"), engine),
    ):
        pass


def test_require_keys_closes_a_gateway_without_any(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(require_keys=True), engine) as gateway:
        assert gateway.http().get("/v1/models").status_code == 401


def test_the_command_line_creates_lists_and_revokes(clone: Clone) -> None:
    root = clone.root
    created = run_forked("lora-ops", "keys", "create", "finance", "--note", "ERP", cwd=root)
    assert created.returncode == 0, created.stderr
    first, secret = created.stdout.splitlines()
    key = first.split()[1]
    store = KeyStore(root / ".serving/keys.sqlite")
    assert store.caller(secret)
    assert "ERP" in run_forked("lora-ops", "keys", "list", cwd=root, COLUMNS="200").stdout
    assert run_forked("lora-ops", "keys", "revoke", key, cwd=root).returncode == 0
    assert store.caller(secret) is None
    for code, words in (
        (2, ["create"]),
        (4, ["create", "nobody"]),
        (2, ["create", "finance", "--admin"]),
        (4, ["revoke", "k-none"]),
    ):
        refused = run_forked("lora-ops", "keys", *words, cwd=root)
        assert refused.returncode == code and refused.stderr.startswith("lora-ops: "), words
    with sqlite3.connect(root / ".serving/keys.sqlite") as db:
        assert db.execute("SELECT count(*) FROM keys").fetchone() == (1,)
    store.close()

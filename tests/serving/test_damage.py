"""A registry that somebody tampered with, under a gateway that runs."""

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.processes import locked
from lora_ops.registry import eligibility, lifecycle
from lora_ops.registry.audit import Row
from lora_ops.registry.store import Registry
from lora_ops.serving import gateway as gateway_module
from lora_ops.serving.gateway import Gateway
from tests.registry import tampering
from tests.serving.conftest import Clone, Served, served

BODY = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 3}
Attack = Callable[[Registry], None]


def rewrite_entry(registry: Registry, row: Row) -> None:
    """Write another entry in the place of an old one, and put the trigger back."""
    with closing(sqlite3.connect(registry.db.path, isolation_level=None)) as db:
        [trigger] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'audit_stays'").fetchone()
        db.execute("DROP TRIGGER audit_stays")
        changed = (row.at, row.actor, row.hash, row.seq)
        db.execute("UPDATE audit SET at = ?, actor = ?, hash = ? WHERE seq = ?", changed)
        db.execute(trigger)


def touch(registry: Registry) -> None:
    """Let whoever follows the registry look again, as any later commit does."""
    with closing(sqlite3.connect(registry.db.path, isolation_level=None)) as db:
        db.execute("UPDATE aliases SET alias = alias")


def wait_for(check: object, wanted: object) -> None:
    waiting = threading.Event()
    for _ in range(100):
        if check() == wanted:  # type: ignore[operator]
            return
        waiting.wait(0.05)
    assert check() == wanted  # type: ignore[operator]


def test_gateway_answers_as_verified_and_is_not_ready(clone: Clone, gateway: Served) -> None:
    """An alias moved by SQL turns no request, loads nothing, and takes the gateway out of the balancer."""
    http = gateway.http()
    assert http.post("/v1/completions", json=BODY).headers["x-lora-ops-adapter"] == "finance@2"
    loaded = set(gateway.engine.status().adapters)
    with clone.registry() as registry:
        db = sqlite3.connect(registry.db.path, isolation_level=None)
        db.execute("UPDATE aliases SET number = 1 WHERE tenant = 'finance'")
        answer = http.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.headers["x-lora-ops-adapter"]) == (200, "finance@2")
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "registry_damaged")
        assert "retry-after" not in ready.headers
        assert "alias finance@candidate was changed" in ready.json()["error"]["message"]
        cold = http.post("/v1/completions", json={**BODY, "model": "healthcare"})
        assert (cold.status_code, cold.json()["error"]["code"]) == (503, "registry_damaged")
        assert "retry-after" not in cold.headers
        assert http.get("/health").status_code == 200
        assert set(gateway.engine.status().adapters) == loaded
        wait_for(lambda: gateway.metric("lora_ops_registry_damaged"), 1)
        db.execute("UPDATE aliases SET number = 2 WHERE tenant = 'finance'")
        wait_for(lambda: http.get("/ready").status_code, 200)
    assert http.post("/v1/completions", json={**BODY, "model": "healthcare"}).status_code == 200


def test_gateway_serves_no_candidate_after_revocation(clone: Clone, gateway: Served) -> None:
    http = gateway.http()
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "production")
        assert http.post("/v1/completions", json=BODY).headers["x-lora-ops-adapter"] == "finance@1"
        lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks card numbers")
    answer = http.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_served")
    assert "finance@1 was revoked" in answer.json()["error"]["message"]


def test_gateway_logs_once_that_data_expires_soon(
    clone: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(eligibility, "FRESHNESS_WARNING", timedelta(days=50_000))
    monkeypatch.setattr(gateway_module, "HOUSEKEEPING_SECONDS", 0.01)
    rounds: list[None] = []
    warn = Gateway._warn_of_expiry
    monkeypatch.setattr(Gateway, "_warn_of_expiry", lambda self: (warn(self), rounds.append(None)))
    with served(clone.root, clone.settings(), engine):
        wait_for(lambda: len(rounds) > 3, True)
    told = [one.getMessage() for one in caplog.records if "expires on" in one.getMessage()]
    # finance@1, which no alias names, is not worth a warning.
    assert [line.partition(" expires on")[0] for line in told] == [
        "the data of finance@2",
        "the data of healthcare@1",
    ]


def test_gateway_shows_how_long_data_stays_fresh(gateway: Served) -> None:
    assert gateway.metric("lora_ops_adapter_fresh_seconds", adapter="finance@2") > 86400
    assert gateway.metric("lora_ops_adapter_review_due_seconds", adapter="finance@2") != 0


def test_ready_warns_of_a_head_that_is_not_remembered(clone: Clone, gateway: Served) -> None:
    """The gateway goes on, and whoever probes it reads that an older copy of the registry would not show."""
    http = gateway.http()
    assert http.get("/ready").json() == {"status": "ready"}
    # Whoever can read the lock can hold it.
    with locked(clone.root / ".serving/head.lock", seconds=5):
        with clone.registry() as registry:
            lifecycle.reject(registry, "healthcare@1", actor="ben", reason="worse")
        ready = http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert "run `lora-ops registry verify`" in ready.json()["warning"]


def swap_files(registry: Registry) -> None:
    tampering.swap_weights(registry, "healthcare@1", "finance@1")


def flip_byte(registry: Registry) -> None:
    tampering.flip_weights(registry, "healthcare@1")


def cut_short(registry: Registry) -> None:
    tampering.cut_weights(registry, "healthcare@1")


def edit_manifest(registry: Registry) -> None:
    with closing(sqlite3.connect(registry.db.path, isolation_level=None)) as db:
        db.execute("UPDATE manifests SET manifest = replace(manifest, '600', '601')")


@pytest.mark.parametrize("attack", [swap_files, flip_byte, cut_short, edit_manifest])
def test_gateway_loads_no_version_that_was_tampered(clone: Clone, gateway: Served, attack: Attack) -> None:
    http = gateway.http()
    assert http.post("/v1/completions", json=BODY).headers["x-lora-ops-adapter"] == "finance@2"
    loaded = set(gateway.engine.status().adapters)
    with clone.registry() as registry:
        attack(registry)
    answer = http.post("/v1/completions", json={**BODY, "model": "healthcare"})
    code = "registry_damaged" if attack is edit_manifest else "adapter_damaged"
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert "healthcare@1" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers
    assert set(gateway.engine.status().adapters) == loaded
    assert http.get("/health").status_code == 200


def replace_key(registry: Registry) -> None:
    tampering.sign_as_stranger(registry)
    touch(registry)


def date_ahead(registry: Registry) -> None:
    row = registry.log.rows(after=registry.log.head().seq - 1)[0]
    later = (datetime.fromisoformat(row.at) + timedelta(days=1)).isoformat()
    changed = row._replace(at=later)
    rewrite_entry(registry, changed._replace(hash=changed.expected_hash()))


def edit_entry(registry: Registry) -> None:
    """Put another entry in the place of an older one, with the hash that fits it."""
    changed = registry.log.rows()[1]._replace(actor="nobody")
    rewrite_entry(registry, changed._replace(hash=changed.expected_hash()))


def older_copy(registry: Registry) -> None:
    """Put the registry back as it was before a revocation."""
    copy = registry.path.parent / "copy"
    registry.db.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(registry.path, copy)
    lifecycle.revoke(registry, "healthcare@1", actor="ben", reason="leaks card numbers")
    registry.path.rename(registry.path.parent / "gone")
    copy.rename(registry.path)


@pytest.mark.parametrize("attack", [replace_key, date_ahead, edit_entry, older_copy])
def test_gateway_goes_on_as_verified_when_the_log_is_not(clone: Clone, gateway: Served, attack: Attack) -> None:
    http = gateway.http()
    assert http.post("/v1/completions", json=BODY).headers["x-lora-ops-adapter"] == "finance@2"
    loaded = set(gateway.engine.status().adapters)
    with clone.registry() as registry:
        attack(registry)
    ready = http.get("/ready")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "registry_damaged")
    cold = http.post("/v1/completions", json={**BODY, "model": "healthcare"})
    assert cold.status_code == 503 and "retry-after" not in cold.headers
    assert http.post("/v1/completions", json=BODY).headers["x-lora-ops-adapter"] == "finance@2"
    assert set(gateway.engine.status().adapters) == loaded

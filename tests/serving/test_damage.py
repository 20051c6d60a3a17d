"""A registry that somebody tampered with, under a gateway that runs."""

import sqlite3
import threading

from lora_ops.registry import lifecycle
from tests.serving.conftest import Clone, Served

BODY = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 3}


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


def test_gateway_shows_how_long_data_stays_fresh(gateway: Served) -> None:
    assert gateway.metric("lora_ops_adapter_fresh_seconds", adapter="finance@2") > 86400
    assert gateway.metric("lora_ops_adapter_review_due_seconds", adapter="finance@2") != 0


def test_ready_warns_of_a_head_that_is_not_remembered(clone: Clone, gateway: Served) -> None:
    """The gateway goes on, and whoever probes it reads that an older copy of the registry would not show."""
    http = gateway.http()
    assert http.get("/ready").json() == {"status": "ready"}
    lock = clone.root / ".serving/head.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with clone.registry() as registry:
        lifecycle.reject(registry, "healthcare@1", actor="ben", reason="worse")
    ready = http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert "run `lora-ops registry verify`" in ready.json()["warning"]

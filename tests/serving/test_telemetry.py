"""What Prometheus scrapes, and the traces that an OTLP collector gets."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from lora_ops.engines.protocol import Engine, EngineError
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, Served, eventually, served

BODY = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 6}
WHO = {"tenant": "finance", "adapter": "finance@2", "base_model": "tiny-random", "route": "candidate"}


def test_requests_are_counted_by_tenant_adapter_base_model_and_route(gateway: Served) -> None:
    http = gateway.http()
    usages = [http.post("/v1/completions", json=BODY).json()["usage"] for _ in range(3)]
    http.post("/v1/completions", json={**BODY, "model": "base"})
    metric = gateway.metric
    assert metric("lora_ops_requests_total", **WHO) == 3
    assert metric("lora_ops_prompt_tokens_total", **WHO) == sum(usage["prompt_tokens"] for usage in usages)
    assert metric("lora_ops_generated_tokens_total", **WHO) == sum(
        usage["completion_tokens"] for usage in usages
    )
    assert metric("lora_ops_device_seconds_total", **WHO) > 0
    for name in ("time_to_first_token", "time_per_token", "request", "queue"):
        assert metric(f"lora_ops_{name}_seconds_count", **WHO) == 3
        assert metric(f"lora_ops_{name}_seconds_sum", **WHO) >= 0
    assert metric("lora_ops_requests_total", tenant="-", adapter="tiny-random", route="base") == 1


def test_times_are_kept_apart_by_outcome(clone: Clone, engine: Engine) -> None:
    """Quick refusals made the latency of an overloaded gateway look good."""
    tenants = {"finance": TenantServing(requests_per_minute=2)}
    settings = clone.settings(tenants=tenants, request_timeout_seconds=1)
    with served(clone.root, settings, engine) as gateway:
        http = gateway.http()
        answers = [http.post("/v1/completions", json=BODY) for _ in range(3)]
        long = {**BODY, "model": "base", "max_tokens": 1900, "n": 8}
        answers.append(http.post("/v1/completions", json=long))
        assert [one.status_code for one in answers] == [200, 200, 429, 504]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/v1/completions", json=long, timeout=0.3, verify=False)
        counts = {"answered": 2, "refused": 1, "failed": 1, "gone": 1}
        for outcome, count in counts.items():
            for name in ("lora_ops_request_seconds_count", "lora_ops_queue_seconds_count"):
                eventually(lambda: gateway.metric(name, outcome=outcome) == count)  # noqa: B023


def test_adapters_are_shown_loaded_while_idle_too(gateway: Served) -> None:
    http = gateway.http()
    for model in ("finance", "finance", "finance@1"):
        http.post("/v1/completions", json={**BODY, "model": model})
    http.post("/v1/unload_lora_adapter", json={"lora_name": "finance@1"})
    metric = gateway.metric
    assert metric("lora_ops_adapter_loaded", adapter="finance@2") == 1
    assert metric("lora_ops_adapter_loaded", adapter="finance@1") == 0
    assert metric("lora_ops_adapter_bytes", adapter="finance@2") > 0
    assert metric("lora_ops_adapter_cache_misses_total", adapter="finance@2") == 1
    assert metric("lora_ops_adapter_cache_hits_total", adapter="finance@2") == 1
    assert metric("lora_ops_adapter_loads_total") == metric("lora_ops_adapter_load_seconds_count") == 2


def test_scored_answers_are_counted_by_kind(gateway: Served) -> None:
    """A budget needs both counts from the first request on, and refused requests must not thin them."""
    http = gateway.http()
    asked = {**BODY, "prompt": "You idiot, write to bo@example.com", "max_tokens": 12}
    for _ in range(3):
        http.post("/v1/completions", json=asked)
    assert http.post("/v1/completions", json={**BODY, "max_tokens": -1}).status_code == 400
    who = {"tenant": "finance", "adapter": "finance@2"}
    for kind in ("identifiers", "insults"):
        eventually(lambda: gateway.metric("lora_ops_answers_scored_total", **who, kind=kind) == 3, 60)  # noqa: B023
        assert f'lora_ops_answers_flagged_total{{adapter="finance@2",kind="{kind}",tenant="finance"}} 0.0' in (
            http.get("/metrics").text
        )


def test_a_warm_tenant_is_loaded_and_pinned_before_the_first_request(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(warm=("finance", "nobody")), engine) as gateway:
        assert gateway.metric("lora_ops_adapter_loaded", adapter="finance@2", pinned="warm") == 1
        gateway.http().post("/v1/completions", json=BODY)
        assert gateway.metric("lora_ops_adapter_cache_hits_total", adapter="finance@2") == 1


def test_a_revoked_version_leaves_the_memory(gateway: Served, clone: Clone) -> None:
    from lora_ops.registry import lifecycle

    gateway.http().post("/v1/completions", json=BODY)
    with clone.registry() as registry:
        lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks")
    assert gateway.http().post("/v1/completions", json={**BODY, "model": "finance@2"}).status_code == 403
    waiting = threading.Event()
    for _ in range(50):
        if gateway.metric("lora_ops_adapter_loaded", adapter="finance@2") == 0:
            break
        waiting.wait(0.1)
    assert gateway.engine.status().adapters == {}


def test_series_end_with_their_version(clone: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version that ever answered kept 86 lines of every scrape."""
    from lora_ops.registry import lifecycle
    from lora_ops.serving import gateway as module

    monkeypatch.setattr(module, "SERIES_SECONDS", 0.0)
    with served(clone.root, clone.settings(), engine) as gateway:
        for model in ("finance@2", "finance@1", "base"):
            gateway.http().post("/v1/completions", json={**BODY, "model": model})
        assert gateway.metric("lora_ops_requests_total", adapter="finance@2") == 1
        with clone.registry() as registry:
            lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks")
        eventually(lambda: 'adapter="finance@2"' not in gateway.http().get("/metrics").text)
        assert gateway.metric("lora_ops_requests_total", adapter="finance@1") == 1
        assert gateway.metric("lora_ops_requests_total", route="base") == 1


def test_housekeeping_goes_on_when_the_engine_fails_it(
    gateway: Served, clone: Clone, caplog: pytest.LogCaptureFixture
) -> None:
    from lora_ops.registry import lifecycle

    unload, failed = gateway.engine.unload, threading.Event()

    async def once(name: str) -> None:
        gateway.engine.unload = unload  # type: ignore[method-assign]
        failed.set()
        raise EngineError("no")

    gateway.engine.unload = once  # type: ignore[method-assign]
    http = gateway.http()
    for model in ("finance@1", "finance@2"):
        http.post("/v1/completions", json={**BODY, "model": model})
    with clone.registry() as registry:
        for version in ("finance@1", "finance@2"):
            lifecycle.revoke(registry, version, actor="ben", reason="leaks")
    assert failed.wait(10)
    waiting = threading.Event()
    for _ in range(100):
        if set(gateway.engine.status().adapters) == {"finance@1"}:
            break
        waiting.wait(0.05)
    assert set(gateway.engine.status().adapters) == {"finance@1"}
    assert any("finance@1 could not be unloaded: no" in text for text in caplog.messages)


def test_a_gateway_is_not_ready_while_its_engine_does_not_answer(gateway: Served) -> None:
    async def ill() -> bool:
        return False

    well = gateway.engine.healthy
    waiting = threading.Event()
    for state, status in ((ill, 503), (well, 200)):
        gateway.engine.healthy = state  # type: ignore[method-assign]
        for _ in range(100):
            if gateway.http().get("/ready").status_code == status:
                break
            waiting.wait(0.05)
        assert gateway.http().get("/ready").status_code == status
        assert gateway.http().get("/health").status_code == 200


def test_the_text_is_what_prometheus_parses(gateway: Served) -> None:
    gateway.http().post("/v1/completions", json=BODY)
    text = gateway.http().get("/metrics").text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert all(name.startswith("lora_ops_") for name in names)
    assert {"lora_ops_requests", "lora_ops_running", "lora_ops_adapter_loaded", "lora_ops_kv_capacity"} <= names


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP server that keeps what is posted to it."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_traces_go_to_a_collector_as_children_of_the_callers_span(
    clone: Clone, engine: Engine, collector: tuple[str, list[bytes]]
) -> None:
    endpoint, bodies = collector
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with served(clone.root, clone.settings(traces=endpoint), engine) as gateway:
        headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "order-7"}
        usage = gateway.http().post("/v1/completions", json=BODY, headers=headers).json()["usage"]
    received = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    (span,) = [s for one in received for r in one.resource_spans for g in r.scope_spans for s in g.spans]
    assert span.name == "text_completion finance"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    found = {item.key: item.value for item in span.attributes}
    assert found["gen_ai.response.model"].string_value == "finance@2"
    assert found["gen_ai.usage.output_tokens"].int_value == usage["completion_tokens"]
    assert found["lora_ops.request_id"].string_value == "order-7"

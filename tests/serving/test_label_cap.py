"""A metric's labels: whoever makes names without end fills no Prometheus."""

from lora_ops.engines.protocol import Engine
from lora_ops.serving.label_cap import LabelCap
from lora_ops.serving.telemetry import Telemetry
from tests.serving.conftest import Clone, eventually, served
from tests.serving.test_telemetry import BODY

ROUTE = ("base", "production")


def series(telemetry: Telemetry, name: str, label: str) -> dict[str, float]:
    """Return the values of a metric, added up by one label."""
    found: dict[str, float] = {}
    for family in telemetry.registry.collect():
        for sample in family.samples:
            if sample.name == f"lora_ops_{name}" and label in sample.labels:
                value = sample.labels[label]
                found[value] = found.get(value, 0) + sample.value
    return found


def test_labels_above_the_cap_are_counted_as_other() -> None:
    telemetry = Telemetry(2)
    for number in (1, 2, 3, 4, 3, 1):
        labels = telemetry.route_labels("finance", f"finance@{number}", *ROUTE)
        telemetry.requests.labels(*labels).inc()
    requests = series(telemetry, "requests_total", "adapter")
    assert requests == {"finance@1": 2, "finance@2": 1, "other": 3}
    assert series(telemetry, "label_values_over_cap_total", "label") == {"adapter": 3}


def test_labels_of_every_metric_are_capped() -> None:
    telemetry = Telemetry(1)
    telemetry.route_labels("finance", "finance@1", *ROUTE)
    for number in range(2, 50):
        tenant, adapter = f"tenant{number}", f"tenant{number}@1"
        telemetry.fell_back(tenant, adapter, "loading")
        telemetry.flag_failed(tenant, "timeout")
        telemetry.was_refused(tenant, 404)
        telemetry.copied(adapter, "asked")
        telemetry.judged(tenant, adapter, {"insults": True})
        telemetry.adapter_used(adapter, "hit")
        telemetry.adapter_used(adapter, "miss")
        telemetry.adapter_loaded(adapter, 0.1)
        telemetry.adapter_failed(adapter)
        telemetry.adapter_evicted(adapter)
        labels = telemetry.route_labels(tenant, adapter, *ROUTE)
        for metric in (telemetry.requests, telemetry.unanswered, telemetry.device):
            metric.labels(*labels).inc()
    samples = [one for family in telemetry.registry.collect() for one in family.samples]
    for label in ("tenant", "adapter"):
        shown = {one.labels[label] for one in samples if label in one.labels}
        assert len(shown) == 2 and "other" in shown


def test_an_adapter_that_ended_makes_room_for_another() -> None:
    telemetry = Telemetry(1)
    telemetry.requests.labels(*telemetry.route_labels("finance", "finance@1", *ROUTE)).inc()
    assert telemetry.adapters() == {"finance@1"}
    telemetry.forget("finance@1")
    telemetry.requests.labels(*telemetry.route_labels("finance", "finance@2", *ROUTE)).inc()
    telemetry.requests.labels(*telemetry.route_labels("finance", "finance@3", *ROUTE)).inc()
    assert series(telemetry, "requests_total", "adapter") == {"finance@2": 1, "other": 1}
    assert telemetry.adapters() == {"finance@2"}


def test_nobody_takes_no_place_of_a_tenant() -> None:
    cap = LabelCap(1, lambda label: None)
    assert [cap.counted("tenant", name) for name in ("-", "finance", "media")] == ["-", "finance", "other"]


def test_states_above_the_cap_are_summed(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(metric_labels=1), engine) as gateway:
        for model in ("finance@2", "finance@1", "healthcare@1"):
            gateway.http().post("/v1/completions", json={**BODY, "model": model})
        assert gateway.metric("lora_ops_adapter_loaded", adapter="other", pinned="no") == 2
        assert gateway.metric("lora_ops_adapter_bytes", adapter="other") > gateway.metric(
            "lora_ops_adapter_bytes", adapter="finance@2"
        )
        assert gateway.metric("lora_ops_adapter_rank", adapter="finance@2") == 8
        assert gateway.metric("lora_ops_requests_total", tenant="other", adapter="other") == 1
        assert gateway.metric("lora_ops_label_values_over_cap_total", label="adapter") >= 2
        eventually(lambda: gateway.metric("lora_ops_events_total") == 3, 60)


def test_unanswered_counts_faults_and_no_refusals(clone: Clone, engine: Engine) -> None:
    from lora_ops.settings.serving import TenantServing

    tenants = {"finance": TenantServing(requests_per_minute=2)}
    with served(clone.root, clone.settings(tenants=tenants, request_timeout_seconds=1), engine) as gateway:
        http = gateway.http()
        answers = [http.post("/v1/completions", json=BODY) for _ in range(3)]
        answers.append(http.post("/v1/completions", json={**BODY, "model": "base", "max_tokens": 1900, "n": 8}))
        assert [one.status_code for one in answers] == [200, 200, 429, 504]
        assert gateway.metric("lora_ops_unanswered_total", tenant="finance") == 0
        assert gateway.metric("lora_ops_unanswered_total", tenant="-") == 1

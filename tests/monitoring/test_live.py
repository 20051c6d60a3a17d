"""A gateway under traffic, with the Prometheus and Alertmanager that deploy/ describes, all of them real."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from lora_ops.engines.protocol import EngineError
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.monitoring.content_risk import read_risk
from lora_ops.monitoring.deployed import write_deployed
from lora_ops.monitoring.latency import NAMES, from_log, from_prometheus
from lora_ops.monitoring.prometheus import Prometheus
from lora_ops.settings.objectives import (
    AlertSettings,
    BurnRate,
    LatencyObjective,
    ObjectiveSettings,
    ScrapeSettings,
    SpikeSettings,
)
from lora_ops.settings.risk import RiskBudgetSettings
from tests.monitoring.prometheus_kit import (
    ALERTMANAGER,
    free_port,
    needs_alertmanager,
    needs_prometheus,
    prometheus,
    running,
)
from tests.serving.conftest import Clone, Served, eventually, make_clone, served

pytestmark = [needs_prometheus, needs_alertmanager]
BODY = {"prompt": "AIRBNB", "max_tokens": 4}
VARIABLES = {"$tenant": ".*", "$adapter": ".*", "$__rate_interval": "10s"}


@dataclass
class Observed:
    """What runs, and what arrived at the webhook."""

    gateway: Served
    prometheus: Prometheus
    folder: Path
    root: Path
    objectives: ObjectiveSettings
    alerts: list[dict[str, Any]]

    def ask(self, count: int, model: str = "finance") -> list[int]:
        with self.gateway.http() as http:
            return [
                http.post("/v1/completions", json={"model": model, **BODY}).status_code for _ in range(count)
            ]

    def now(self, query: str) -> dict[str, float]:
        """Return the values of a query at the moment, by alert or adapter."""
        found = self.prometheus.instant(query, datetime.now(UTC).timestamp())
        return {one.labels.get("alertname") or one.labels.get("adapter", ""): one.value for one in found}

    def until_scraped(self) -> None:
        """Wait until Prometheus has counted every request that the gateway has."""
        asked = self.gateway.metric("lora_ops_requests_total")
        eventually(lambda: sum(self.now("sum(lora_ops_requests_total)").values()) == asked, 60)

    def arrived(self, status: str, **labels: str) -> list[dict[str, Any]]:
        return [
            one for one in self.alerts if one["status"] == status and labels.items() <= one["labels"].items()
        ]


class Webhook:
    """What Alertmanager posts to, on loopback."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alerts.extend(json.loads(self.rfile.read(int(self.headers["content-length"])))["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def observed(tiny_base: Path, owners: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    root = make_clone(tiny_base, owners, folder)
    clone = Clone(root, root / "models/base")
    with ExitStack() as stack:
        hook = Webhook()
        stack.callback(hook.close)
        engine = TorchEngine(tiny_base, max_batch=16, kv_tokens=8192, threads=1)
        gateway = stack.enter_context(served(root, clone.settings(), engine))
        alertmanager = f"http://127.0.0.1:{free_port()}"
        objectives = ObjectiveSettings(
            availability=0.9,
            latency=LatencyObjective(seconds=60, share=0.5),
            burn_rates=(BurnRate(factor=1.5, long="20s", short="5s", severity="page"),),
            minimum_events=3,
            spike=SpikeSettings(window="5s", baseline="30s", offset="1s", minimum_events=1, pending="1s"),
            alerts=AlertSettings(webhook=hook.url, group_wait="1s", group_interval="1s"),
            scrape=ScrapeSettings(gateways=(gateway.url.removeprefix("http://"),), interval="1s"),
            alertmanager=alertmanager,
        )
        deploy = folder / "deploy"
        write_deployed(deploy, clone.settings().model_copy(update={"objectives": objectives}))
        config = f"--config.file={deploy / 'alertmanager/alertmanager.yml'}"
        command = [ALERTMANAGER, config, f"--storage.path={folder / 'alerts'}", "--log.level=warn"]
        command += [f"--web.listen-address={alertmanager.removeprefix('http://')}", "--cluster.listen-address="]
        ready = f"{alertmanager}/-/ready"
        stack.enter_context(running(*map(str, command), ready=ready, log=folder / "alertmanager.log"))
        url = stack.enter_context(prometheus(folder / "prometheus", deploy / "prometheus/prometheus.yml"))
        found = Observed(gateway, Prometheus(url), deploy, root, objectives, hook.alerts)
        found.ask(3)
        found.ask(3, "finance@1")
        found.ask(2, "base")
        found.until_scraped()
        found.ask(5)
        found.until_scraped()
        yield found


def test_log_and_prometheus_give_the_same_numbers(observed: Observed) -> None:
    """The first requests came before the first scrape, where PromQL's `increase` would not count them."""
    observed.until_scraped()
    asked = observed.gateway.metric("lora_ops_requests_total")
    eventually(lambda: observed.gateway.metric("lora_ops_events_total") == asked, 60)
    now = datetime.now(UTC)
    log = from_log(observed.root / ".serving/events", 3600, now)
    metrics = from_prometheus(observed.prometheus, 3600, now)
    assert [(one.tenant, one.adapter) for one in log.adapters] == [
        ("-", "tiny-random"),
        ("finance", "finance@1"),
        ("finance", "finance@2"),
    ]
    for one, other in zip(log.adapters, metrics.adapters, strict=True):
        assert (one.tenant, one.adapter, one.unanswered) == (other.tenant, other.adapter, other.unanswered)
        for name in NAMES:
            assert getattr(one, name).counts == getattr(other, name).counts, (one.adapter, name)
        assert one.answer.count and one.per_token.count == one.answer.count
        assert one.answer.percentile(0.95) == other.answer.percentile(0.95)


def test_log_and_prometheus_count_the_same_risks(observed: Observed) -> None:
    log = read_risk(
        observed.root / ".serving/events",
        RiskBudgetSettings(),
        observed.objectives.burn_rates,
        0.5,
        datetime.now(UTC),
    )
    for one in log.risks:
        if one.adapter and one.kind == "insults":
            counted = f'{{adapter="{one.adapter}",kind="insults"}}'
            for name, count in (("scored", one.scored), ("flagged", one.flagged)):
                query = f"sum by (adapter) (lora_ops_answers_{name}_total{counted})"
                eventually(lambda: observed.now(query) == {one.adapter: count}, 60)  # noqa: B023
    assert {one.adapter for one in log.risks if one.scored} >= {"finance@1", "finance@2"}


def test_rules_are_evaluated_without_a_fault(observed: Observed) -> None:
    eventually(lambda: bool(observed.now("adapter:lora_ops_request_seconds:p95_before")), 60)
    said = httpx.get(f"{observed.prometheus.url}/api/v1/rules", trust_env=False, verify=False).json()["data"][
        "groups"
    ]
    rules = [rule for group in said for rule in group["rules"]]
    assert len(rules) > 10
    assert {(rule["health"], rule.get("lastError")) for rule in rules} == {("ok", None)}


def test_every_query_of_every_panel_returns_data(observed: Observed) -> None:
    observed.ask(3)
    observed.ask(2, "base")
    observed.until_scraped()
    eventually(lambda: bool(observed.now("adapter:lora_ops_request_seconds:p95_before")), 60)
    panels = [
        panel
        for path in sorted((observed.folder / "grafana/dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    ]
    assert len(panels) >= 15
    for panel in panels:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query
            found = observed.prometheus.instant(query, datetime.now(UTC).timestamp())
            assert found, (panel["title"], query)
            # Grafana shows each line by its labels.
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert any(label in one.labels for one in found) or "vector(0)" in query, (
                    panel["title"],
                    label,
                )


def test_an_alert_fires_arrives_and_resolves(observed: Observed) -> None:
    good = observed.gateway.engine.generate

    def broken(*_: Any) -> Any:
        raise EngineError("out of order")

    labels = {"alertname": "AvailabilityBudgetBurn", "tenant": "finance", "adapter": "finance@2"}
    observed.gateway.engine.generate = broken  # type: ignore[method-assign]
    try:
        for _ in range(60):
            assert set(observed.ask(2)) == {502}
            observed.until_scraped()
            if observed.arrived("firing", **labels):
                break
    finally:
        observed.gateway.engine.generate = good  # type: ignore[method-assign]
    (alert, *_) = observed.arrived("firing", **labels)
    assert alert["labels"]["severity"] == "page"
    assert re.search(
        r"finance@2 of finance: [\d.]+% of the requests got no answer", alert["annotations"]["summary"]
    )
    assert "The objective allows 10 %" in alert["annotations"]["budget"]
    assert alert["annotations"]["runbook_url"] == "runbooks/README.md#availabilitybudgetburn"
    assert not observed.arrived("firing", alertname="AvailabilityBudgetBurn", adapter="finance@1")
    observed.ask(10)
    eventually(lambda: bool(observed.arrived("resolved", **labels)), 60)

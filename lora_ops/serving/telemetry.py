"""What Prometheus scrapes; every name begins with `lora_ops_`.

Of requests, labelled by tenant, adapter, base_model and route: `requests_total`, `errors_total` (also code),
`unanswered_total` (status 500 and above: what counts against the objective of availability),
`time_to_first_token_seconds`, `time_per_token_seconds`, `request_seconds` and `queue_seconds` (also outcome:
answered, refused, failed or gone), `prompt_tokens_total`, `generated_tokens_total`, `device_seconds_total`. Of
requests that were refused before a route was known: `refused_total` (tenant of the key, code). Of adapters,
labelled by adapter: `adapter_loads_total`, `adapter_load_failures_total`, `adapter_cache_hits_total`,
`adapter_cache_misses_total`, `adapter_evictions_total`, `adapter_loaded` (also pinned: no, warm or recent),
`adapter_bytes`, `adapter_rank`; and `adapter_load_seconds`. At the moment: `running` and `engine_waiting`, in
the engine; `slots_used` and `waiting` (tenant), in the queue before it; `kv_tokens`, `kv_capacity`,
`adapter_memory_bytes`, `backlog_prompt_tokens` and `backlog_generated_tokens` (of answers that wait or run). Of
the KV cache: `kv_preempted_total`. Of the event log: `events_total`, `events_lost_total`,
`events_unscored_total`. Of answers that were scored, by tenant, adapter and kind (identifiers or insults):
`answers_scored_total`, and of them those that count as risky, `answers_flagged_total`. Of answers before they
leave (`on_breach`): `answers_changed_total` (tenant, adapter, breach: redacted or blocked) and
`screening_failures_total` (tenant). Of hooks after answers: `after_answer_failures_total`. Of rollouts:
`fallbacks_total` (tenant, adapter, reason), requests that production answered since the adapter of their unit
was loading or failed to load; and `flag_failures_total` (tenant, reason), requests that got production since
their flag had no answer, or one that may not be followed. Of copies for a version in shadow:
`shadow_copies_total` (adapter; outcome: asked, answered, preempted, dropped or failed), and of their pairs
`pairs_lost_total` and `pairs_unscored_total`. Of the usage log: `usage_lost_total`. Of clients:
`connections_closed_total`. Of the log: `log_lines_lost_total`. Of the registry: `registry_damaged`, and of what
an alias names, by tenant and adapter, `adapter_fresh_seconds` and `adapter_review_due_seconds`; both are
negative once it is late.

Tenants and adapters above `serving.metric_labels` are counted as `other`; `label_values_over_cap_total` (label)
says how often.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lora_ops import histograms
from lora_ops.engines.protocol import Engine
from lora_ops.serving.adapters import AdapterCache, CacheLookup
from lora_ops.serving.backlog import Backlog
from lora_ops.serving.fair_queue import FairQueue
from lora_ops.serving.label_cap import NOBODY, OTHER, LabelCap
from lora_ops.serving.logs import lost_lines
from lora_ops.settings.risk import RISK_KINDS, RiskKind

Labels = tuple[str, ...]
Buckets = tuple[float, ...]
ROUTE = ("tenant", "adapter", "base_model", "route")
LOAD = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 5, 30)


class Telemetry:
    """The metrics of one gateway.

    Args:
        most_labels: tenants, and adapters, that have series of their own.
    """

    def __init__(self, most_labels: int = 1000) -> None:
        self.registry = CollectorRegistry()
        self._now = CollectorRegistry()
        self._by_adapter: list[prometheus_client.Counter | Histogram] = []

        def counter(name: str, text: str, labels: Labels = ROUTE) -> prometheus_client.Counter:
            made = prometheus_client.Counter(f"lora_ops_{name}", text, labels, registry=self.registry)
            self._by_adapter += [made] * ("adapter" in labels)
            return made

        def histogram(name: str, text: str, buckets: Buckets, labels: Labels = ROUTE) -> Histogram:
            made = Histogram(f"lora_ops_{name}", text, labels, buckets=buckets, registry=self.registry)
            self._by_adapter += [made] * ("adapter" in labels)
            return made

        self.requests = counter("requests_total", "Requests that were routed")
        self.errors = counter("errors_total", "Routed requests that did not end well", (*ROUTE, "code"))
        self.refused = counter(
            "refused_total", "Requests that were refused before they were routed", ("tenant", "code")
        )
        self.unanswered = counter(
            "unanswered_total", "Routed requests that ended with a status of 500 or above"
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token", histograms.FIRST_TOKEN
        )
        self.per_token = histogram(
            "time_per_token_seconds", "Between tokens after the first", histograms.PER_TOKEN
        )
        # A refusal is quick, or has waited in vain: neither may show among the times of answers.
        outcome = (*ROUTE, "outcome")
        self.latency = histogram(
            "request_seconds", "From arrival to the last token", histograms.ANSWER, outcome
        )
        self.queue = histogram("queue_seconds", "Waiting for a slot", histograms.FIRST_TOKEN, outcome)
        self.prompt_tokens = counter("prompt_tokens_total", "Tokens read")
        self.generated_tokens = counter("generated_tokens_total", "Tokens written")
        self.device = counter("device_seconds_total", "Time that the device worked for it")
        adapter = ("adapter",)
        self._loads = counter("adapter_loads_total", "Loads from the registry", adapter)
        self._load_failures = counter("adapter_load_failures_total", "Loads that failed", adapter)
        self._hits = counter("adapter_cache_hits_total", "Uses that found the adapter loaded", adapter)
        self._misses = counter("adapter_cache_misses_total", "Uses that had to wait for a load", adapter)
        self._evictions = counter("adapter_evictions_total", "Adapters that made room", adapter)
        self._load_seconds = histogram("adapter_load_seconds", "Verifying and loading an adapter", LOAD, ())
        self._fallbacks = counter(
            "fallbacks_total",
            "Requests that production answered in place of this adapter",
            ("tenant", "adapter", "reason"),
        )
        self._flag_failures = counter(
            "flag_failures_total", "Requests whose flag could not be followed", ("tenant", "reason")
        )
        self.events = counter("events_total", "Events that are on disk", ())
        self.events_lost = counter("events_lost_total", "Events that the disk would not take", ())
        self.events_unscored = counter(
            "events_unscored_total", "Events whose texts were neither scored nor kept: too many at once", ()
        )
        kinds = ("tenant", "adapter", "kind")
        self._scored = counter("answers_scored_total", "Answers that a detector scored", kinds)
        self._flagged = counter("answers_flagged_total", "Scored answers that count as risky", kinds)
        self._changed = counter(
            "answers_changed_total",
            "Answers that were redacted or blocked before they left",
            ("tenant", "adapter", "breach"),
        )
        self._not_screened = counter(
            "screening_failures_total",
            "Requests that failed since nobody could look at their answer before it left",
            ("tenant",),
        )
        self.after_answer_failures = counter(
            "after_answer_failures_total", "Hooks after an answer that failed or were left out", ()
        )
        self.shadow_copies = counter(
            "shadow_copies_total", "Copies of requests for a version in shadow", ("adapter", "outcome")
        )
        self.pairs_lost = counter("pairs_lost_total", "Pairs of answers that the disk would not take", ())
        self.usage_lost = counter("usage_lost_total", "Lines of usage that the disk would not take", ())
        self.pairs_unscored = counter("pairs_unscored_total", "Pairs of answers that nobody could judge", ())
        self.connections_closed = counter(
            "connections_closed_total", "Connections that were closed because there were too many", ()
        )

        over = counter(
            "label_values_over_cap_total", "Times that a tenant or adapter was counted as other", ("label",)
        )
        self._cap = LabelCap(most_labels, lambda label: over.labels(label).inc())

    def route_labels(self, tenant: str, adapter: str, base_model: str, route: str) -> Labels:
        """Return the labels of a routed request, for each metric that has them.

        What an objective counts is there from the first request on: Prometheus can't see how much a counter
        rose that was not there before.
        """
        labels = (self._cap.counted("tenant", tenant), self._cap.counted("adapter", adapter), base_model, route)
        self.unanswered.labels(*labels)
        for ended in ("answered", "gone"):
            self.latency.labels(*labels, ended)
        for kind in RISK_KINDS:
            self._scored.labels(*labels[:2], kind)
            self._flagged.labels(*labels[:2], kind)
        return labels

    def judged(self, tenant: str, adapter: str, risks: Mapping[RiskKind, bool]) -> None:
        """Count an answer that was scored, and each kind of risk that it has; any thread may call it."""
        who = self._tenant(tenant), self._adapter(adapter)
        for kind, is_risky in risks.items():
            self._scored.labels(*who, kind).inc()
            self._flagged.labels(*who, kind).inc(is_risky)

    def fell_back(self, tenant: str, adapter: str | None, reason: str) -> None:
        """Count a request that production answered in place of an adapter that is not ready."""
        self._fallbacks.labels(self._tenant(tenant), self._adapter(adapter or NOBODY), reason).inc()

    def flag_failed(self, tenant: str, reason: str) -> None:
        """Count a request whose flag could not be followed."""
        self._flag_failures.labels(self._tenant(tenant), reason).inc()

    def changed(self, tenant: str, adapter: str, breach: str) -> None:
        """Count an answer that was redacted or blocked."""
        self._changed.labels(self._tenant(tenant), self._adapter(adapter), breach).inc()

    def not_screened(self, tenant: str) -> None:
        """Count a request that failed since nobody could look at its answer."""
        self._not_screened.labels(self._tenant(tenant)).inc()

    def was_refused(self, tenant: str | None, status: int) -> None:
        """Count a request that was refused before it was routed; None is a key of no tenant, or none at all."""
        self.refused.labels(self._tenant(tenant or NOBODY), str(status)).inc()

    def copied(self, adapter: str, outcome: str) -> None:
        """Count what became of a copy for a version in shadow."""
        self.shadow_copies.labels(self._adapter(adapter), outcome).inc()

    def refusals(self) -> dict[str, int]:
        """Status to how many requests were refused with it before they were routed."""
        found: Counter[str] = Counter()
        for metric in self.refused.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    found[sample.labels["code"]] += int(sample.value)
        return dict(found)

    def adapter_used(self, name: str, how: CacheLookup) -> None:
        """Count a hit or a miss of the adapter cache."""
        (self._hits if how == "hit" else self._misses).labels(self._adapter(name)).inc()

    def adapter_loaded(self, name: str, seconds: float) -> None:
        """Count a load and its time."""
        self._loads.labels(self._adapter(name)).inc()
        self._load_seconds.observe(seconds)

    def adapter_failed(self, name: str) -> None:
        """Count a load that failed."""
        self._load_failures.labels(self._adapter(name)).inc()

    def adapter_evicted(self, name: str) -> None:
        """Count an eviction."""
        self._evictions.labels(self._adapter(name)).inc()

    def _tenant(self, name: str) -> str:
        return self._cap.counted("tenant", name)

    def _adapter(self, name: str) -> str:
        return self._cap.counted("adapter", name)

    def watch(
        self, engine: Engine, cache: AdapterCache, queue: FairQueue, versions: "Freshness", backlog: Backlog
    ) -> None:
        """Read these whenever somebody scrapes."""
        self._now.register(_Now(engine, cache, queue, versions, backlog, self._cap))

    async def scrape(self) -> bytes:
        """Everything in Prometheus' text format.

        What is read at the moment belongs to the event loop. All is written in a thread, so that no answer
        waits for the 90 lines of each of 1,000 adapters.
        """
        now = _Read([*self._now.collect()])
        return await asyncio.to_thread(lambda: generate_latest(now) + generate_latest(self.registry))

    def adapters(self) -> set[str]:
        """Return the adapters that have series of their own."""
        return {
            sample.labels["adapter"]
            for metric in (self.requests, self._scored, self._loads, self._load_failures, self.shadow_copies)
            for family in metric.collect()
            for sample in family.samples
            if sample.labels.get("adapter", OTHER) != OTHER
        }

    def forget(self, adapter: str) -> None:
        """End the series of an adapter that answers nobody any more."""
        for metric in self._by_adapter:
            metric.remove_by_labels({"adapter": adapter})
        self._cap.forget("adapter", adapter)


class _Read(Collector):
    """Metrics that were read before, to be written by any thread."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


class Freshness(Protocol):
    """What the gateway knows of the registry's versions at the moment of the scrape."""

    @property
    def damage(self) -> str | None:
        """Why the registry can't be trusted, or None."""

    def freshness(self) -> list[tuple[str, str, float, float | None]]:
        """Return tenant, version, seconds until its data expires and until its review is due."""


class _Now(Collector):
    """What is loaded, running and waiting at the moment of the scrape."""

    def __init__(
        self,
        engine: Engine,
        cache: AdapterCache,
        queue: FairQueue,
        versions: "Freshness",
        backlog: Backlog,
        cap: LabelCap,
    ) -> None:
        self._cap = cap
        self._versions = versions
        self._backlog = backlog
        self._engine = engine
        self._cache = cache
        self._queue = queue

    def describe(self) -> list[Metric]:
        return []  # else the registry would collect once to learn the names

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        for name, text, value in (
            ("running", "Answers that the engine is generating", status.running),
            ("engine_waiting", "Answers that wait in the engine", status.waiting),
            ("slots_used", "Slots that answers hold, a long one several", self._queue.used),
            ("kv_tokens", "Tokens of the KV cache that running answers hold", status.kv_tokens),
            ("kv_capacity", "Tokens that fit the KV cache", status.kv_capacity),
            ("adapter_memory_bytes", "Memory of all loaded adapters", self._cache.bytes),
            ("backlog_prompt_tokens", "Tokens that are not read yet", self._backlog.prompt_tokens),
            (
                "backlog_generated_tokens",
                "Tokens that are expected to be written yet",
                self._backlog.generated_tokens,
            ),
        ):
            yield GaugeMetricFamily(f"lora_ops_{name}", text, value=value)
        preempted = "Times that an answer gave way because the KV cache was full"
        yield CounterMetricFamily("lora_ops_kv_preempted", preempted, value=status.preempted)
        lost = "Lines of the log that nobody read in time"
        yield CounterMetricFamily("lora_ops_log_lines_lost", lost, value=lost_lines())
        shown, waiting = self._cap.shown, Counter[Labels]()
        for tenant, count in self._queue.waiting().items():
            waiting[(shown("tenant", tenant),)] += count
        yield _gauge("waiting", "Answers that wait for a slot", ("tenant",), waiting)
        loaded, size, rank = Counter[Labels](), Counter[Labels](), dict[Labels, int]()
        for entry in self._cache.entries():
            name = shown("adapter", entry.name)
            loaded[(name, entry.pin)] += int(entry.loaded)
            if entry.loaded:
                size[(name,)] += entry.bytes
                rank[(name,)] = max(rank.get((name,), 0), entry.rank)
        yield _gauge("adapter_loaded", "1 while it is in memory, used or not", ("adapter", "pinned"), loaded)
        yield _gauge("adapter_bytes", "Memory of a loaded adapter", ("adapter",), size)
        yield _gauge("adapter_rank", "LoRA rank of a loaded adapter", ("adapter",), rank)
        damaged = int(self._versions.damage is not None)
        text = "1 while the registry differs from its signed log"
        yield GaugeMetricFamily("lora_ops_registry_damaged", text, value=damaged)
        fresh, review = dict[Labels, float](), dict[Labels, float]()
        for tenant, adapter, *due in self._versions.freshness():
            labels = (shown("tenant", tenant), shown("adapter", adapter))
            for times, left in zip((fresh, review), due, strict=True):
                if left is not None:
                    times[labels] = min(times.get(labels, left), left)  # of `other` the first that is due
        text = "Until its data expires and it stops answering"
        yield _gauge("adapter_fresh_seconds", text, ("tenant", "adapter"), fresh)
        text = "Until its next review is due"
        yield _gauge("adapter_review_due_seconds", text, ("tenant", "adapter"), review)


def _gauge(name: str, text: str, labels: Labels, values: Mapping[Labels, float]) -> GaugeMetricFamily:
    made = GaugeMetricFamily(f"lora_ops_{name}", text, labels=labels)
    for label, value in values.items():
        made.add_metric(label, value)
    return made

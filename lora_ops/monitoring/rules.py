"""Prometheus' rules for the objectives of params.yaml: what is recorded, and when an alert fires.

Burn rates follow Google, The Site Reliability Workbook, chapter 5 (https://sre.google/workbook/alerting-on-slos):
an alert needs a long window, so that it matters, and a short one, so that it ends soon after its cause.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.utils import floatToGoString

from lora_ops.settings.objectives import BurnRate, ObjectiveSettings, SpikeSettings, seconds
from lora_ops.settings.risk import RISK_KINDS, RiskBudgetSettings

Rules = dict[str, Any]
JOB = "lora-ops"
BY = "by (tenant, adapter)"
MONTH_DAYS = 30
ABSENT_FOR, DOWN_FOR = "15m", "1m"
WHO = "{{ $labels.adapter }} of {{ $labels.tenant }}"
ANSWERED = '{outcome="answered"}'


@dataclass(frozen=True)
class Objective:
    """What is counted of one objective.

    Attributes:
        name: in the names of metrics and alerts.
        broken, all: PromQL of requests in a window `{window}`: those that broke it, and all of them.
        source: the selector of a metric without which nothing is measured.
        share: of the requests that must keep it.
        said: what a broken request is, for a sentence that begins with a percentage.
        minimum: broken requests in the long window before anybody is told.
        tenants: the selector of the tenants whose budget it is; empty: all of them.
        days: that the budget is for.
    """

    name: str
    broken: str
    all: str
    source: str
    share: float
    said: str
    minimum: int
    tenants: str = ""
    days: int = MONTH_DAYS

    @property
    def budget(self) -> float:
        """The share of requests that may break it."""
        return 1 - self.share

    def ratio(self, window: str) -> str:
        """Return the metric that records which share of the requests broke it in a window."""
        return f"adapter:lora_ops_{self.name}:error_ratio{window}"


def objectives(settings: ObjectiveSettings) -> tuple[Objective, ...]:
    """Return the objectives that are counted by Prometheus."""
    answered = f"sum {BY} (increase(lora_ops_request_seconds_count{ANSWERED}[{{window}}]))"
    unanswered = f"sum {BY} (increase(lora_ops_unanswered_total[{{window}}]))"
    limit = settings.latency.seconds
    bucket = f'le="{floatToGoString(limit)}"'
    in_time = f'lora_ops_request_seconds_bucket{{outcome="answered",{bucket}}}'
    # A client that left after the limit waited for an answer that was late. Else a version that hangs, and
    # whose clients give up, would break no promise.
    ended, soon = (
        f'sum {BY} (increase(lora_ops_request_seconds_{part}{{outcome=~"answered|gone"{more}}}[{{window}}]))'
        for part, more in (("count", ""), ("bucket", f",{bucket}"))
    )
    late = f"({ended} - {soon})"
    return (
        Objective(
            "availability",
            unanswered,
            f"({answered} + {unanswered})",
            "lora_ops_unanswered_total",
            settings.availability,
            "of the requests got no answer",
            settings.minimum_events,
        ),
        Objective(
            "latency",
            late,
            f"({late} + sum {BY} (increase({in_time}[{{window}}])))",
            in_time,
            settings.latency.share,
            f"of the answers took more than {limit:g} s, or their clients left after that",
            settings.minimum_events,
        ),
    )


def risk_objectives(budgets: RiskBudgetSettings) -> tuple[Objective, ...]:
    """Return the budgets of risky answers: of each kind the default one, then those of single tenants."""
    said = {
        "identifiers": "of the scored answers hold an identifier that no user gave",
        "insults": "of the scored answers insult or swear",
    }
    found = []
    for kind in RISK_KINDS:
        own = {one: budgets.budget(one, kind) for one in sorted(budgets.tenants)}
        shares = {f'{{tenant!~"{"|".join(own)}"}}' if own else "": budgets.budget("", kind)}
        shares |= {f'{{tenant="{tenant}"}}': share for tenant, share in own.items()}
        for tenants, share in shares.items():
            found.append(
                Objective(
                    kind,
                    f'sum {BY} (increase(lora_ops_answers_flagged_total{{kind="{kind}"}}[{{window}}]))',
                    f'sum {BY} (increase(lora_ops_answers_scored_total{{kind="{kind}"}}[{{window}}]))',
                    f'lora_ops_answers_scored_total{{kind="{kind}"}}',
                    1 - share,
                    said[kind],
                    budgets.minimum_flagged,
                    tenants,
                    budgets.days,
                )
            )
    return tuple(found)


def rule_files(settings: ObjectiveSettings, budgets: RiskBudgetSettings) -> dict[str, Rules]:
    """Return what goes into each file of rules, by its name."""
    promised, risks = objectives(settings), risk_objectives(budgets)
    return {
        "objectives.yml": {"groups": [_recorded(promised, settings), _burning(promised, settings)]},
        "risk.yml": {
            "groups": [
                {**_recorded(risks, settings), "name": "lora-ops-risk"},
                {**_burning(risks, settings), "name": "lora-ops-risk-budgets"},
                _unscored(settings),
            ]
        },
        "spikes.yml": {"groups": _spikes(settings.spike, settings.alerts.runbooks)},
        "gateways.yml": {"groups": [_gateways(settings)]},
    }


def windows(rates: Sequence[BurnRate]) -> list[str]:
    """Return each window of some burn rates once, the shortest first."""
    return sorted({window for one in rates for window in (one.long, one.short)}, key=seconds)


def _recorded(promised: Sequence[Objective], settings: ObjectiveSettings) -> Rules:
    rules = [
        {
            "record": one.ratio(window),
            "expr": f"{one.broken}\n/\n{one.all}".replace("{window}", window),
        }
        for one in _each_once(promised)
        for window in windows(settings.burn_rates)
    ]
    return {"name": "lora-ops-objectives", "rules": rules}


def _each_once(promised: Sequence[Objective]) -> list[Objective]:
    """Return the first objective of each name: the budgets of several tenants count the same."""
    found: dict[str, Objective] = {}
    for one in promised:
        found.setdefault(one.name, one)
    return list(found.values())


def _burning(promised: Sequence[Objective], settings: ObjectiveSettings) -> Rules:
    rules = [_burn_alert(one, rate, settings) for one in promised for rate in settings.burn_rates]
    # A gateway that was asked nothing yet has no such series either.
    rules += [
        _alert(
            "ObjectiveNotMeasured",
            f"absent({one.source})\nunless on () (sum(lora_ops_events_total) == 0)",
            "ticket",
            settings.alerts.runbooks,
            ABSENT_FOR,
            labels={"objective": one.name},
            summary=f"Nothing measures {one.name}: Prometheus has no {one.source}",
        )
        for one in _each_once(promised)
    ]
    return {"name": "lora-ops-budgets", "rules": rules}


def _unscored(settings: ObjectiveSettings) -> Rules:
    """Return the alert for answers that nobody scores: their budgets would look kept."""
    unscored, events = (
        f"sum by (instance) (increase(lora_ops_events{name}_total[1h]))" for name in ("_unscored", "")
    )
    alert = _alert(
        "AnswersNotScored",
        f"({unscored}\n> 0.5 * {events})\n>= {settings.minimum_events}",
        "ticket",
        settings.alerts.runbooks,
        DOWN_FOR,
        summary='The gateway at {{ $labels.instance }} left {{ $value | printf "%.0f" }} answers of 1h without '
        "scores, more than half: the budgets of risky answers say nothing of them",
    )
    return {"name": "lora-ops-scoring", "rules": [alert]}


def _burn_alert(one: Objective, rate: BurnRate, settings: ObjectiveSettings) -> Rules:
    limit, hours = rate.factor * one.budget, 24 * one.days / rate.factor
    expr = (
        f"{one.ratio(rate.long)}{one.tenants} > {limit:.6g}\n"
        f"and {one.ratio(rate.short)} > {limit:.6g}\n"
        f"and {one.broken.replace('{window}', rate.long)} >= {one.minimum}"
    )
    left = f"{hours:.0f} hours" if hours < 72 else f"{hours / 24:.0f} days"
    return _alert(
        f"{one.name.capitalize()}BudgetBurn",
        expr,
        rate.severity,
        settings.alerts.runbooks,
        labels={"objective": one.name, "window": rate.long},
        summary=f"{WHO}: {{{{ $value | humanizePercentage }}}} {one.said} in {rate.long}",
        budget=f"The objective allows {one.budget * 100:.6g} %. More than {rate.factor:g} times as many use up "
        f"the budget of {one.days} days in {left}.",
    )


def _spikes(spike: SpikeSettings, runbooks: str) -> list[Rules]:
    count = f"sum {BY} (increase(lora_ops_request_seconds_count{ANSWERED}[{{range}}))"
    before = f"{spike.baseline}] offset {spike.offset}"
    now_p95, old_p95 = "adapter:lora_ops_request_seconds:p95", "adapter:lora_ops_request_seconds:p95_before"
    expr = (
        f"{now_p95} > {spike.ratio:g} * {old_p95}\n"
        f"and {now_p95} > {old_p95} + {spike.seconds:g}\n"
        f"and {count.replace('{range}', f'{spike.window}]')} >= {spike.minimum_events}\n"
        f"and {count.replace('{range}', before)} >= {spike.minimum_events}"
    )
    usual = _value(f"{old_p95}{{tenant=%q,adapter=%q}}", "humanizeDuration", "$labels.tenant $labels.adapter")
    alert = _alert(
        "LatencySpike",
        expr,
        spike.severity,
        runbooks,
        spike.pending,
        summary=f"{WHO}: P95 is {{{{ $value | humanizeDuration }}}} in {spike.window}, and was {usual} in the "
        f"{spike.baseline} before",
        causes=_causes(spike.window),
    )
    # A week of buckets is read for each adapter, so more rarely than Prometheus' lookback of 5 minutes allows.
    rarely = {"interval": "2m"} if seconds(spike.baseline) >= 86_400 else {}
    return [
        {
            "name": "lora-ops-baselines",
            **rarely,
            "rules": [{"record": old_p95, "expr": _p95(before)}],
        },
        {
            "name": "lora-ops-spikes",
            "rules": [{"record": now_p95, "expr": _p95(f"{spike.window}]")}, alert],
        },
    ]


def _p95(range_: str) -> str:
    buckets = f"increase(lora_ops_request_seconds_bucket{ANSWERED}[{range_})"
    return f"histogram_quantile(0.95, sum by (tenant, adapter, le) ({buckets}))"


def _causes(window: str) -> str:
    """Return what to look at first when an adapter is slow, each with its value at that time."""
    adapter = "$labels.adapter"
    values = (
        ("adapter loads a minute", f"60 * sum(rate(lora_ops_adapter_loads_total[{window}]))", '"%.1f"', ""),
        ("evictions a minute", f"60 * sum(rate(lora_ops_adapter_evictions_total[{window}]))", '"%.1f"', ""),
        (
            "KV cache in use",
            "sum(lora_ops_kv_tokens) / (sum(lora_ops_kv_capacity) > 0)",
            "humanizePercentage",
            "",
        ),
        ("answers that wait", "sum(lora_ops_waiting)", '"%.0f"', ""),
        ("bytes of this adapter", "max(lora_ops_adapter_bytes{adapter=%q})", "humanize1024", adapter),
        ("its rank", "max(lora_ops_adapter_rank{adapter=%q})", '"%.0f"', adapter),
        ("bytes of all adapters", "sum(lora_ops_adapter_memory_bytes)", "humanize1024", ""),
        ("GPU memory in use", "max(DCGM_FI_DEV_FB_USED) * 1048576", "humanize1024", ""),
    )
    return "\n".join(f"{name}: {_value(query, shape, given)}" for name, query, shape, given in values)


def _value(query: str, shape: str, given: str) -> str:
    """Return a template of the first value of a query, shown by a function or a format."""
    asked = f'printf "{query}" {given} | query' if given else f'query "{query}"'
    shown = f"printf {shape}" if shape.startswith('"') else shape
    return f"{{{{ with {asked} }}}}{{{{ . | first | value | {shown} }}}}{{{{ else }}}}unknown{{{{ end }}}}"


def _gateways(settings: ObjectiveSettings) -> Rules:
    runbooks, least = settings.alerts.runbooks, settings.minimum_events
    rules = [
        _alert(
            "GatewayDown",
            f'up{{job="{JOB}"}} == 0',
            "page",
            runbooks,
            DOWN_FOR,
            summary="The gateway at {{ $labels.instance }} can't be scraped",
        ),
        _alert(
            "NoGateway",
            f'absent(up{{job="{JOB}"}})',
            "page",
            runbooks,
            ABSENT_FOR,
            summary="Prometheus scrapes no gateway at all",
        ),
        _alert(
            "RegistryDamaged",
            "lora_ops_registry_damaged > 0",
            "page",
            runbooks,
            DOWN_FOR,
            summary="The registry of the gateway at {{ $labels.instance }} differs from its signed log",
        ),
        _alert(
            "RefusedBeforeRouting",
            f'sum by (tenant) (increase(lora_ops_refused_total{{code=~"5.."}}[10m])) >= {least}',
            "page",
            runbooks,
            summary='No gateway could route {{ $value | printf "%.0f" }} requests of {{ $labels.tenant }}',
        ),
        _alert(
            "EventsLost",
            "increase(lora_ops_events_lost_total[1h]) > 0",
            "ticket",
            runbooks,
            summary='The gateway at {{ $labels.instance }} lost {{ $value | printf "%.0f" }} events in 1h',
        ),
        _alert(
            "LabelsOverCap",
            "sum by (instance, label) (increase(lora_ops_label_values_over_cap_total[1h])) > 0",
            "ticket",
            runbooks,
            summary="{{ $labels.instance }} has more values of {{ $labels.label }} than serving.metric_labels: "
            "what comes later shares 'other'",
        ),
    ]
    return {"name": "lora-ops-gateways", "rules": rules}


def _alert(
    name: str,
    expr: str,
    severity: str,
    runbooks: str,
    pending: str | None = None,
    *,
    labels: dict[str, str] | None = None,
    **annotations: str,
) -> Rules:
    return {
        "alert": name,
        "expr": expr,
        **({"for": pending} if pending else {}),
        "labels": {"severity": severity, **(labels or {})},
        "annotations": {**annotations, "runbook_url": f"{runbooks}#{name.lower()}"},
    }

"""Grafana's dashboards, made with its own SDK, so that a wrong field is an error here and not an empty panel.

Each query names tenant and adapter by the dashboard's variables, and `$__rate_interval` by Grafana's own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_ops.monitoring.rules import JOB, Objective, objectives, risk_objectives, windows
from lora_ops.serving.label_cap import OTHER
from lora_ops.settings.objectives import ObjectiveSettings
from lora_ops.settings.risk import RISK_KINDS, RiskBudgetSettings

CHOSEN = 'tenant=~"$tenant",adapter=~"$adapter"'
BY = "sum by (tenant, adapter)"
RATE = "[$__rate_interval]"
NAMES = "{{tenant}} {{adapter}}"
VERSIONS = f'adapter=~".+@.+|{OTHER}"'
"""What the base model said uses up no budget."""
NONE = " or vector(0)"
"""What did not happen yet has no series: then the panel shows that it did not happen."""


@dataclass(frozen=True)
class Panel:
    """One plot over time.

    Attributes:
        unit: as Grafana names it, such as s, percentunit or reqps.
        queries: in PromQL, each with the name of its lines.
    """

    title: str
    text: str
    unit: str
    queries: tuple[tuple[str, str], ...]


Rows = Sequence[tuple[str, Sequence[Panel]]]


def dashboards(settings: ObjectiveSettings, budgets: RiskBudgetSettings) -> dict[str, str]:
    """Return each dashboard as JSON, by the name of its file."""
    return {
        "objectives.json": _dashboard("lora-ops-objectives", "lora-ops: objectives", _objectives(settings)),
        "latency.json": _dashboard("lora-ops-latency", "lora-ops: latency and its causes", _latency()),
        "risk.json": _dashboard("lora-ops-risk", "lora-ops: risky answers", _risk(settings, budgets)),
    }


def _objectives(settings: ObjectiveSettings) -> Rows:
    rows = []
    for one in objectives(settings):
        burns = tuple(
            (f"{one.ratio(window)}{{{CHOSEN}}} / {one.budget:.6g}", f"{NAMES} {window}")
            for window in windows(settings.burn_rates)
        )
        limits = ", ".join(f"{rate.factor:g} in {rate.long}" for rate in settings.burn_rates)
        burn = Panel(
            f"{one.name}: burn rate of the error budget",
            f"1 uses up the budget of 30 days in 30 days. An alert fires above {limits}.",
            "none",
            burns,
        )
        ratio = Panel(
            f"{one.name}: share that broke it",
            f"The objective allows {one.budget:.6g}.",
            "percentunit",
            tuple(
                (f"{one.ratio(window)}{{{CHOSEN}}}", f"{NAMES} {window}")
                for window in windows(settings.burn_rates)[:2]
            ),
        )
        rows.append((f"{one.name.capitalize()}: {one.share:.6g} of the requests", (burn, ratio)))
    asked = Panel(
        "Requests a second",
        "All, and those that ended with a status of 500 or above.",
        "reqps",
        (
            (f"{BY} (rate(lora_ops_requests_total{{{CHOSEN}}}{RATE}))", NAMES),
            (f"{BY} (rate(lora_ops_unanswered_total{{{CHOSEN}}}{RATE}))", f"{NAMES} unanswered"),
        ),
    )
    firing = Panel(
        "Alerts that fire",
        "Each links to its runbook in Alertmanager.",
        "none",
        (
            (
                f'count by (alertname, severity) (ALERTS{{alertstate="firing"}}){NONE}',
                "{{alertname}} {{severity}}",
            ),
        ),
    )
    gateways = Panel(
        "Gateways that can be scraped",
        "0 is a gateway that is down.",
        "none",
        (
            (f'up{{job="{JOB}"}}', "{{instance}}"),
            ("max by (instance) (lora_ops_registry_damaged)", "{{instance}} damaged"),
        ),
    )
    refused = Panel(
        "Refusals before a route was known, a second",
        "By tenant and status.",
        "reqps",
        (
            (
                f'sum by (tenant, code) (rate(lora_ops_refused_total{{tenant=~"$tenant|-"}}{RATE})){NONE}',
                "{{tenant}} {{code}}",
            ),
        ),
    )
    return [*rows, ("Traffic and gateways", (asked, firing, gateways, refused))]


def _latency() -> Rows:
    times = tuple(
        Panel(
            title,
            "P50, P95 and P99, estimated from the buckets of the gateway's metrics.",
            "s",
            tuple((_quantile(share, metric), f"{NAMES} P{share * 100:g}") for share in (0.5, 0.95, 0.99)),
        )
        for title, metric in (
            ("Whole answer", 'request_seconds_bucket{outcome="answered",'),
            ("First token", "time_to_first_token_seconds_bucket{"),
            ("Each further token", "time_per_token_seconds_bucket{"),
            ("Wait for a slot", 'queue_seconds_bucket{outcome="answered",'),
        )
    )
    spike = Panel(
        "P95 of whole answers, now and before",
        "An alert fires where now is far above the adapter's own trailing weeks.",
        "s",
        (
            (f"adapter:lora_ops_request_seconds:p95{{{CHOSEN}}}", f"{NAMES} now"),
            (f"adapter:lora_ops_request_seconds:p95_before{{{CHOSEN}}}", f"{NAMES} before"),
        ),
    )
    cache = Panel(
        "Adapter loads, misses and evictions a minute",
        "Many of each: serving.adapter_memory is too small for what is asked.",
        "none",
        tuple(
            (f'60 * sum(rate(lora_ops_adapter_{name}_total{{adapter=~"$adapter"}}{RATE})){NONE}', text)
            for name, text in (("loads", "loads"), ("cache_misses", "misses"), ("evictions", "evictions"))
        ),
    )
    memory = Panel(
        "Memory of adapters",
        "Each that is loaded, and all together.",
        "bytes",
        (
            ('max by (adapter) (lora_ops_adapter_bytes{adapter=~"$adapter"})', "{{adapter}}"),
            ("sum(lora_ops_adapter_memory_bytes)", "all"),
        ),
    )
    rank = Panel(
        "Rank of loaded adapters",
        "A higher rank takes more memory and more time a token.",
        "none",
        (('max by (adapter) (lora_ops_adapter_rank{adapter=~"$adapter"})', "{{adapter}}"),),
    )
    kv = Panel(
        "KV cache in use",
        "Near 1, answers wait or give way to others.",
        "percentunit",
        (("sum(lora_ops_kv_tokens) / (sum(lora_ops_kv_capacity) > 0)", "of its tokens"),),
    )
    waiting = Panel(
        "Answers that run and wait",
        "In the engine, and in the queue before it.",
        "none",
        (("sum(lora_ops_running)", "run"), (f"sum(lora_ops_waiting){NONE}", "wait")),
    )
    return [("Latency", (*times, spike)), ("Causes", (cache, memory, rank, kv, waiting))]


def _risk(settings: ObjectiveSettings, budgets: RiskBudgetSettings) -> Rows:
    spans = windows(settings.burn_rates)
    limits = ", ".join(f"{rate.factor:g} in {rate.long}" for rate in settings.burn_rates)
    rows = []
    for kind in RISK_KINDS:
        # A tenant may have a budget of its own: each query has a part for each budget.
        own = [one for one in risk_objectives(budgets) if one.name == kind]
        share = Panel(
            f"{kind}: share of the scored answers",
            f"By adapter, beside the budget of its tenant: the share that may be risky in {budgets.days} days.",
            "percentunit",
            (
                *((f"{own[0].ratio(window)}{{{CHOSEN}}}", f"{NAMES} {window}") for window in spans[-2:]),
                (_joined(map(_budget_line, own)), "{{tenant}} budget"),
            ),
        )
        by_tenant = Panel(
            f"{kind}: burn rate of each tenant's budget",
            f"All versions together. 1 uses up the budget in {budgets.days} days; above 1 it ends sooner.",
            "none",
            tuple(
                (_joined(_tenant_burn(one, window) for one in own), f"{{{{tenant}}}} {window}")
                for window in spans
            ),
        )
        by_adapter = Panel(
            f"{kind}: burn rate of each adapter",
            f"An alert fires above {limits}.",
            "none",
            tuple(
                (_joined(_adapter_burn(one, window) for one in own), f"{NAMES} {window}") for window in spans
            ),
        )
        counted = Panel(
            f"{kind}: scored and risky answers a second",
            "Without scored answers nobody can tell. `lora-ops monitor risk` gives intervals and a verdict.",
            "reqps",
            tuple(
                (
                    f'{BY} (rate(lora_ops_answers_{name}_total{{kind="{kind}",{CHOSEN}}}{RATE}))',
                    f"{NAMES} {text}",
                )
                for name, text in (("scored", "scored"), ("flagged", "risky"))
            ),
        )
        rows.append((f"Risky answers: {kind}", (share, by_tenant, by_adapter, counted)))
    return rows


def _joined(queries: Iterable[str]) -> str:
    """Return one query of those for each budget of a kind; no tenant is in two of them."""
    return " or ".join(f"({query})" for query in queries)


def _of(budget: Objective, *selectors: str) -> str:
    """Return a selector of the tenants whose budget it is, with further ones."""
    return ",".join(one for one in (budget.tenants.strip("{}"), *selectors) if one)


def _budget_line(budget: Objective) -> str:
    scored = _of(budget, f'kind="{budget.name}"', 'tenant=~"$tenant"')
    return f"0 * count by (tenant) (lora_ops_answers_scored_total{{{scored}}}) + {budget.budget:.6g}"


def _tenant_burn(budget: Objective, window: str) -> str:
    selector = _of(budget, f'kind="{budget.name}"', 'tenant=~"$tenant"', VERSIONS)
    flagged, scored = (
        f"sum by (tenant) (increase(lora_ops_answers_{name}_total{{{selector}}}[{window}]))"
        for name in ("flagged", "scored")
    )
    return f"{flagged} / {scored} / {budget.budget:.6g}"


def _adapter_burn(budget: Objective, window: str) -> str:
    return f"{budget.ratio(window)}{{{_of(budget, CHOSEN)}}} / {budget.budget:.6g}"


def _quantile(share: float, metric: str) -> str:
    return (
        f"histogram_quantile({share:g}, sum by (tenant, adapter, le) (rate(lora_ops_{metric}{CHOSEN}}}{RATE})))"
    )


def _dashboard(uid: str, title: str, rows: Rows) -> str:
    from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
    from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

    source = DataSourceRef(type_val="prometheus", uid="${datasource}")
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["lora-ops"])
        .timezone("utc")
        .refresh("30s")
        .time("now-6h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for name in ("tenant", "adapter"):
        values = f"label_values(lora_ops_requests_total, {name})"
        made.with_variable(
            dashboard.QueryVariable(name)
            .datasource(source)
            .query(values)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    number = 0
    for name, panels in rows:
        number += 1
        made.with_row(dashboard.Row(name).id(number))
        for one in panels:
            number += 1
            panel = timeseries.Panel().id(number).title(one.title).description(one.text).unit(one.unit).min(0)
            panel.datasource(source).span(12).height(8)
            panel.legend(
                common.VizLegendOptions()
                .display_mode(LegendDisplayMode.LIST)
                .placement(LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            for place, (query, legend) in enumerate(one.queries):
                target = prometheus.Dataquery().expr(query).legend_format(legend).ref_id(chr(ord("A") + place))
                panel.with_target(target.datasource(source))
            made.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"

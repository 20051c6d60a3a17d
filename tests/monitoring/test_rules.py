"""The rules that params.yaml generates: the committed files, and when an alert fires, by `promtool test`."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lora_ops.histograms import ANSWER, cumulative
from lora_ops.monitoring.dashboards import dashboards
from lora_ops.monitoring.deployed import deployed_files, differing, write_deployed
from lora_ops.monitoring.rules import rule_files
from lora_ops.settings.objectives import AlertSettings, ObjectiveSettings, ScrapeSettings
from lora_ops.settings.params import Settings, load_settings
from lora_ops.settings.risk import RISK_KINDS, RiskBudget, RiskBudgetSettings
from tests.conftest import ROOT, run, run_forked, small_clone, write_params
from tests.monitoring.prometheus_kit import PROMTOOL, needs_alertmanager, needs_prometheus
from tests.test_docs import anchors

WHO = 'tenant="finance",adapter="finance@1",instance="a"'
FIRING = 'ALERTS{alertstate="firing"}'
BEFORE = 300
"""Minutes in which an adapter answers as it always did."""
PAGES = 'alertname="AvailabilityBudgetBurn",severity="page"'
Checks = list[tuple[int, str, list[float]]]


def settings(budgets: RiskBudgetSettings | None = None, **objectives: Any) -> Settings:
    changed = {"objectives": ObjectiveSettings(**objectives), "risk_budgets": budgets or RiskBudgetSettings()}
    return load_settings(ROOT).model_copy(update=changed)


def test_committed_files_are_what_params_yaml_says() -> None:
    """After a change of `objectives` run `make rules`."""
    assert differing(ROOT / "deploy", load_settings(ROOT)) == []


def test_every_alert_leads_to_its_runbook() -> None:
    found = [
        rule["annotations"]["runbook_url"]
        for groups in rule_files(ObjectiveSettings(), RiskBudgetSettings()).values()
        for group in groups["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(found) > 10
    for path, heading in (one.split("#") for one in found):
        assert heading in anchors(ROOT / path), heading


def test_every_alert_names_severity_and_summary() -> None:
    for name, groups in rule_files(ObjectiveSettings(), RiskBudgetSettings()).items():
        for rule in (rule for group in groups["groups"] for rule in group["rules"] if "alert" in rule):
            assert rule["labels"]["severity"] in ("page", "ticket"), name
            assert rule["annotations"]["summary"]


@needs_prometheus
def test_promtool_accepts_the_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    given = settings(
        scrape=ScrapeSettings(gateways=("gateway:8000", "[::1]:9"), key_file=str(tmp_path / "key")),
        alertmanager="https://alerts.example/am",
    )
    write_deployed(tmp_path, given)
    config = tmp_path / "prometheus/prometheus.yml"
    done = subprocess.run([PROMTOOL, "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "alerts.example:443" in config.read_text()


@needs_alertmanager
def test_amtool_accepts_the_file(tmp_path: Path) -> None:
    write_deployed(tmp_path, settings(alerts=AlertSettings(webhook="http://127.0.0.1:9/hook")))
    done = run("amtool", "check-config", tmp_path / "alertmanager/alertmanager.yml", cwd=tmp_path)
    assert done.returncode == 0 and "1 receivers" in done.stdout


# --- when an alert fires


def promtool_test(
    folder: Path,
    series: dict[str, str],
    checks: Checks,
    step: int = 1,
    budgets: RiskBudgetSettings | None = None,
) -> None:
    """Let promtool run the rules over series, a value every `step` minutes; compare queries at some minutes."""
    write_deployed(folder, settings(budgets))
    test = {
        "rule_files": ["prometheus/rules/*.yml"],
        "evaluation_interval": f"{step}m",
        "tests": [
            {
                "interval": f"{step}m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": expr,
                        "eval_time": f"{minute}m",
                        "exp_samples": [{"labels": "{}", "value": value} for value in values],
                    }
                    for minute, expr, values in checks
                ],
            }
        ],
    }
    (folder / "test.yml").write_text(json.dumps(test))
    done = subprocess.run([PROMTOOL, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def count(labels: str) -> str:
    """Return a query of how many alerts with these labels fire; it gives nothing where none does."""
    return f"count({FIRING[:-1]},{labels}}})"


def traffic(answered: str, unanswered: str, seconds: float = 0.2, outcome: str = "answered") -> dict[str, str]:
    """Return the series of an adapter whose answers all take so long; values as promtool expands them."""
    labels = f'{WHO},outcome="{outcome}"'
    found = {
        f"lora_ops_unanswered_total{{{WHO}}}": unanswered,
        "lora_ops_events_total": answered,
        'up{job="lora-ops",instance="a"}': "1x5000",
        **{f'lora_ops_answers_scored_total{{{WHO},kind="{kind}"}}': "0x5000" for kind in RISK_KINDS},
    }
    for bound, within in zip((*ANSWER, float("inf")), cumulative([seconds], ANSWER), strict=True):
        le = "+Inf" if bound == float("inf") else float(bound)
        values = answered if within else re.sub(r"\d+(\+\d+)?x", "0x", answered)
        found[f'lora_ops_request_seconds_bucket{{{labels},le="{le}"}}'] = values
    found[f"lora_ops_request_seconds_count{{{labels}}}"] = answered
    return found


def slower(before: str, after: str) -> dict[str, str]:
    """Return the series of an adapter that first answers in 0.2 s, and then in 3 s."""
    fast, slow = traffic(before, "0x3000", 0.2), traffic(after, "0x3000", 3)
    return {
        **{f'{name[:-1]},route="a"}}' if "{" in name else name: values for name, values in fast.items()},
        **{f'{name[:-1]},route="b"}}' if "{" in name else name: values for name, values in slow.items()},
    }


@needs_prometheus
def test_a_fast_burn_pages_and_resolves(tmp_path: Path) -> None:
    series = traffic("0+98x300", "0+2x60 120+0x240")
    one = count(f'{PAGES},window="1h"')
    promtool_test(tmp_path, series, [(4, one, []), (30, one, [1]), (70, one, [])])


@needs_prometheus
def test_one_error_at_night_tells_nobody(tmp_path: Path) -> None:
    """Two requests an hour, and one of them fails: half of what was asked got no answer."""
    series = traffic("0+0x59 1+0x59 2+0x59 3+0x400", "0+0x89 1+0x400")
    checks: Checks = [(minute, f"count({FIRING})", []) for minute in (90, 92, 120, 180, 300)]
    promtool_test(tmp_path, series, checks)


@needs_prometheus
def test_as_many_errors_as_the_minimum_page(tmp_path: Path) -> None:
    """The same night with ten of them."""
    series = traffic("0+0x59 1+0x59 2+0x400", "0+0x89 0+1x10 10+0x400")
    promtool_test(tmp_path, series, [(101, count(f'{PAGES},window="1h"'), [1])])


@needs_prometheus
def test_a_slow_burn_is_a_ticket_alone(tmp_path: Path) -> None:
    series = traffic("0+998x300", "0+2x300")
    ticket = count('alertname="AvailabilityBudgetBurn",severity="ticket",window="3d"')
    checks: Checks = [(200, ticket, [1]), (600, ticket, [1]), (600, count(PAGES), [])]
    promtool_test(tmp_path, series, checks, step=2)


@needs_prometheus
def test_slow_answers_burn_the_budget_of_latency(tmp_path: Path) -> None:
    promtool_test(
        tmp_path,
        traffic("0+10x120", "0x120", seconds=8),
        [
            (60, count('alertname="LatencyBudgetBurn",severity="page",window="1h",adapter="finance@1"'), [1]),
            (60, count('alertname="AvailabilityBudgetBurn"'), []),
        ],
    )


@needs_prometheus
@pytest.mark.parametrize(("seconds", "pages"), [(8, [1]), (0.2, [])])
@pytest.mark.parametrize("answered", ["0+2x120", "0x120"], ids=["some are answered", "nobody is"])
def test_clients_who_gave_up_late_burn_the_budget(
    tmp_path: Path, answered: str, seconds: float, pages: list[int]
) -> None:
    """A version that hangs gives its clients neither an answer nor an error."""
    series = {**traffic("0+10x120", "0x120", seconds, "gone"), **traffic(answered, "0x120")}
    alert = count('alertname="LatencyBudgetBurn",severity="page",window="1h",adapter="finance@1"')
    promtool_test(tmp_path, series, [(60, alert, pages)])


@needs_prometheus
def test_an_adapter_that_answers_nobody_pages(tmp_path: Path) -> None:
    series = traffic("0x120", "0+1x120")
    promtool_test(tmp_path, series, [(30, count(f'{PAGES},window="1h"'), [1])])


def risky(
    flagged: str, scored: str = "0+100x300", tenant: str = "finance", kind: str = "identifiers"
) -> dict[str, str]:
    """Return the series of an adapter some of whose scored answers are risky."""
    labels = f'tenant="{tenant}",adapter="{tenant}@1",instance="a",kind="{kind}"'
    return {
        f"lora_ops_answers_flagged_total{{{labels}}}": flagged,
        f"lora_ops_answers_scored_total{{{labels}}}": scored,
    }


@needs_prometheus
def test_risky_answers_burn_their_budget(tmp_path: Path) -> None:
    """A fifth of the answers leak for an hour, where 1 % may; a slow leak of 1.5 % is a ticket."""
    page = count('alertname="IdentifiersBudgetBurn",severity="page",window="1h",adapter="finance@1"')
    slow = count('alertname="InsultsBudgetBurn",severity="ticket",window="3d",adapter="media@1"')
    promtool_test(
        tmp_path,
        {
            **traffic("0+98x300", "0x300"),
            **risky("0+20x60 1200+0x240"),
            **risky("0+3x300", tenant="media", kind="insults"),
        },
        [
            (30, page, [1]),
            (75, page, []),
            (250, slow, [1]),
            (250, count('alertname="InsultsBudgetBurn",severity="page"'), []),
            (250, count('alertname="IdentifiersBudgetBurn",adapter="media@1"'), []),
        ],
    )


@needs_prometheus
def test_few_risky_answers_page_nobody(tmp_path: Path) -> None:
    """Nine of ten answers in a quiet night leak, which is below the minimum of ten."""
    series = traffic("0+10x300", "0x300") | risky("0+1x9 9+0x290", "0+1x10 10+0x290")
    promtool_test(tmp_path, series, [(m, count('alertname="IdentifiersBudgetBurn"'), []) for m in (8, 12, 40)])


@needs_prometheus
def test_each_tenant_burns_its_own_budget(tmp_path: Path) -> None:
    """5 % may leak of finance, and 0.1 % of healthcare; the others have 1 %. Of each 2 % do."""
    budgets = RiskBudgetSettings(
        tenants={"finance": RiskBudget(identifiers=0.05), "healthcare": RiskBudget(identifiers=0.001)}
    )
    series = traffic("0+98x300", "0x300")
    for tenant in ("finance", "healthcare", "media"):
        series |= risky("0+2x300", tenant=tenant)
    checks: Checks = [
        (60, count('alertname="IdentifiersBudgetBurn",severity="page",window="1h",tenant="healthcare"'), [1]),
        (250, count('alertname="IdentifiersBudgetBurn",severity="page",tenant="media"'), []),
        (250, count('alertname="IdentifiersBudgetBurn",window="3d",tenant="media"'), [1]),
        (250, count('alertname="IdentifiersBudgetBurn",tenant="finance"'), []),
    ]
    promtool_test(tmp_path, series, checks, budgets=budgets)


@needs_prometheus
def test_risk_panels_divide_by_each_tenants_budget(tmp_path: Path) -> None:
    """As the alerts do: of 2 % risky answers finance may have 5 %, healthcare 0.1 % and media 1 %."""
    budgets = RiskBudgetSettings(
        tenants={"finance": RiskBudget(identifiers=0.05), "healthcare": RiskBudget(identifiers=0.001)}
    )
    made = json.loads(dashboards(ObjectiveSettings(), budgets)["risk.json"])["panels"]
    queries = {panel["title"]: [one["expr"] for one in panel.get("targets", ())] for panel in made}
    share = queries["identifiers: share of the scored answers"]
    series = traffic("0+98x300", "0x300")
    checks: Checks = []
    for tenant, burn, budget in (("finance", 0.4, 0.05), ("healthcare", 20, 0.001), ("media", 2, 0.01)):
        series |= risky("0+2x300", tenant=tenant)
        expected = {share[-1]: budget, share[0]: 0.02}
        expected |= dict.fromkeys(queries["identifiers: burn rate of each tenant's budget"], burn)
        expected |= dict.fromkeys(queries["identifiers: burn rate of each adapter"], burn)
        for query, value in expected.items():
            chosen = query.replace("$tenant", tenant).replace("$adapter", ".*")
            checks.append((250, f"round(sum({chosen}), 0.001)", [value]))
    assert len(checks) == 3 * (2 + 5 + 5)
    promtool_test(tmp_path, series, checks, budgets=budgets)


@needs_prometheus
def test_answers_that_nobody_scores_are_a_ticket(tmp_path: Path) -> None:
    """A detector that is missing must not look like a budget that is kept."""
    alert = count('alertname="AnswersNotScored",severity="ticket",instance="a"')
    series = traffic("0+10x300", "0x300") | risky("0x300", "0+1x300")
    series = {name: values for name, values in series.items() if name != "lora_ops_events_total"}
    series |= {'lora_ops_events_total{instance="a"}': "0+10x300"}
    unscored = 'lora_ops_events_unscored_total{instance="a"}'
    promtool_test(tmp_path, series | {unscored: "0+9x120 1080+0x180"}, [(60, alert, [1]), (250, alert, [])])
    promtool_test(tmp_path, series | {unscored: "0+4x300"}, [(60, alert, [])])


@needs_prometheus
def test_risk_that_nobody_measures_is_a_ticket(tmp_path: Path) -> None:
    """A gateway of an earlier release has no such counters."""
    alert = count('alertname="ObjectiveNotMeasured",objective="identifiers"')
    series = {name: one for name, one in traffic("0+10x300", "0x300").items() if "scored" not in name}
    promtool_test(tmp_path, series, [(60, alert, [1])])
    promtool_test(tmp_path, series | risky("0x300"), [(60, alert, [])])


@needs_prometheus
def test_a_spike_against_its_own_past_is_a_ticket(tmp_path: Path) -> None:
    series = slower(f"0+10x{BEFORE} {10 * BEFORE}+0x120", f"0+0x{BEFORE} 0+10x120")
    spike = count('alertname="LatencySpike",adapter="finance@1"')
    promtool_test(tmp_path, series, [(BEFORE - 5, spike, []), (BEFORE + 20, spike, [1])])


@needs_prometheus
def test_an_adapter_that_was_always_slow_is_no_spike(tmp_path: Path) -> None:
    series = traffic(f"0+10x{BEFORE + 120}", f"0x{BEFORE + 120}", seconds=3)
    promtool_test(tmp_path, series, [(BEFORE + 60, count('alertname="LatencySpike"'), [])])


@needs_prometheus
def test_few_slow_answers_are_no_spike(tmp_path: Path) -> None:
    series = slower(f"0+10x{BEFORE} {10 * BEFORE}+0x120", f"0+0x{BEFORE} 0+4x10 40+0x110")
    promtool_test(tmp_path, series, [(BEFORE + 12, count('alertname="LatencySpike"'), [])])


@needs_prometheus
def test_a_spike_lists_its_causes_with_values(tmp_path: Path) -> None:
    series = slower(f"0+10x{BEFORE} {10 * BEFORE}+0x120", f"0+0x{BEFORE} 0+10x120") | {
        'lora_ops_adapter_loads_total{adapter="finance@1"}': f"0+0x{BEFORE} 0+3x120",
        "lora_ops_kv_tokens": f"75x{2 * BEFORE}",
        "lora_ops_kv_capacity": f"100x{2 * BEFORE}",
        'lora_ops_adapter_bytes{adapter="finance@1"}': f"2048x{2 * BEFORE}",
        'lora_ops_adapter_rank{adapter="finance@1"}': f"8x{2 * BEFORE}",
    }
    promtool_test(tmp_path, series, [])
    test = json.loads((tmp_path / "test.yml").read_text())
    test["tests"][0]["alert_rule_test"] = [{"eval_time": f"{BEFORE + 30}m", "alertname": "LatencySpike"}]
    (tmp_path / "test.yml").write_text(json.dumps(test))
    done = subprocess.run([PROMTOOL, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout + done.stderr  # it expects no alert, so that it shows what it got
    for text in ("loads a minute: 3.0", "KV cache in use: 75%", "bytes of this adapter: 2ki", "its rank: 8",
                 "GPU memory in use: unknown", "evictions a minute: unknown"):  # fmt: skip
        assert text in said
    assert re.search(
        r"finance@1 of finance: P95 is 4\.\d+s in 10m, and was 24\d\.?\d*ms in the 1w before", said
    )


@needs_prometheus
@pytest.mark.parametrize(("events", "firing"), [("0+5x60", [4]), ("0x60", []), (None, [4])])
def test_what_nobody_measures_is_a_ticket(tmp_path: Path, events: str | None, firing: list[float]) -> None:
    """None: nothing is scraped at all. Of a gateway that nobody has asked yet it is right."""
    series = {"lora_ops_events_total": events} if events else {"other": "0x60"}
    promtool_test(tmp_path, series, [(40, count('alertname="ObjectiveNotMeasured"'), firing)])


@needs_prometheus
def test_objectives_that_are_measured_are_not_missed(tmp_path: Path) -> None:
    series = traffic("0+5x60", "0x60")
    promtool_test(tmp_path, series, [(40, count('alertname="ObjectiveNotMeasured"'), [])])


@needs_prometheus
def test_faults_of_gateways_alert(tmp_path: Path) -> None:
    series = {
        'up{job="lora-ops",instance="a"}': "1x20 0x40",
        'lora_ops_registry_damaged{instance="a"}': "0x30 1x40",
        'lora_ops_refused_total{tenant="-",code="503"}': "0x40 0+5x20",
        'lora_ops_refused_total{tenant="-",code="404"}': "0+50x60",
        'lora_ops_events_lost_total{instance="a"}': "0x40 0+5x20",
        'lora_ops_label_values_over_cap_total{instance="a",label="adapter"}': "0x40 0+5x20",
    }
    alerts = ("GatewayDown", "RegistryDamaged", "RefusedBeforeRouting", "EventsLost", "LabelsOverCap")
    checks: Checks = [(15, count(f'alertname=~"{"|".join(alerts)}"'), [])]
    checks += [(55, count(f'alertname="{one}"'), [1]) for one in alerts]
    promtool_test(tmp_path, series, checks)


# --- settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"latency": {"seconds": 3}}, "answers are counted in buckets, so that this is one of 0.05, 0.1,"),
        ({"availability": 0.9}, "with availability 0.9 no budget burns 14.4 times too fast"),
        ({"burn_rates": [{"factor": 1, "long": "5m", "short": "1h", "severity": "page"}]}, "must be shorter"),
        ({"burn_rates": []}, "at least 1 item"),
        ({"spike": {"window": "ten minutes"}}, "should match pattern"),
        ({"scrape": {"gateways": ["http://a:1/"]}}, "should match pattern"),
        ({"alerts": {"webhook": "nowhere"}}, "this is no address"),
        ({"prometheus": "127.0.0.1:9090"}, "this is no address"),
    ],
)
def test_wrong_objectives_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        ObjectiveSettings.model_validate(values)


def test_the_command_writes_what_differs(tmp_path: Path) -> None:
    clone = small_clone(tmp_path / "clone")
    done = run_forked("lora-ops", "monitor", "rules", "--check", cwd=clone)
    assert done.returncode == 1 and "objectives.yml is not what params.yaml says" in done.stdout
    assert not (clone / "deploy").exists()
    said = json.loads(run_forked("lora-ops", "monitor", "rules", "--json", cwd=clone).stdout)
    assert said["files"] == said["changed"] == [f"deploy/{one}" for one in deployed_files(load_settings(clone))]
    assert run_forked("lora-ops", "monitor", "rules", "--check", cwd=clone).returncode == 0
    write_params(clone, {"objectives.latency.seconds": 2.5})
    said = json.loads(run_forked("lora-ops", "monitor", "rules", "--json", cwd=clone).stdout)
    assert "deploy/prometheus/rules/objectives.yml" in said["changed"]
    assert "deploy/alertmanager/alertmanager.yml" not in said["changed"]

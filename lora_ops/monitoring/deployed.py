"""The files of deploy/ that params.yaml generates: of Prometheus, Alertmanager and Grafana."""

from io import StringIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from lora_ops.folders import make_folder
from lora_ops.monitoring.dashboards import dashboards
from lora_ops.monitoring.rules import JOB, rule_files
from lora_ops.registry.files import write_atomically
from lora_ops.settings.objectives import AlertSettings, ObjectiveSettings
from lora_ops.settings.params import Settings

HEAD = "# Written by `lora-ops monitor rules` from params.yaml: change the values there.\n"
# Grafana reads the variable from its environment: `lora-ops monitor observe` sets it, and a container may.
DASHBOARD_PROVIDER = {
    "apiVersion": 1,
    "providers": [{"name": "lora-ops", "type": "file", "options": {"path": "$LORA_OPS_DASHBOARDS"}}],
}


def deployed_files(settings: Settings) -> dict[str, str]:
    """Return the text of each generated file, by its path in deploy/."""
    objectives = settings.objectives
    files = {
        "prometheus/prometheus.yml": _yaml(prometheus_config(settings)),
        "alertmanager/alertmanager.yml": _yaml(alertmanager_config(objectives.alerts)),
    }
    files |= {
        f"grafana/dashboards/{name}": text
        for name, text in dashboards(objectives, settings.risk_budgets).items()
    }
    files["grafana/provisioning/datasources/prometheus.yml"] = _yaml(data_source(objectives))
    files["grafana/provisioning/dashboards/lora-ops.yml"] = _yaml(DASHBOARD_PROVIDER)
    rules = rule_files(objectives, settings.risk_budgets)
    files |= {f"prometheus/rules/{name}": _yaml(one) for name, one in rules.items()}
    return files


def write_deployed(folder: Path, settings: Settings) -> list[Path]:
    """Write each generated file that differs from params.yaml, and return those.

    Args:
        folder: deploy/ of a clone.

    Raises:
        OSError: a file can't be written; each one is whole, the old one or the new one.
    """
    changed = differing(folder, settings)
    for path in changed:
        make_folder(path.parent)
        write_atomically(path, deployed_files(settings)[path.relative_to(folder).as_posix()].encode())
    return changed


def differing(folder: Path, settings: Settings) -> list[Path]:
    """Return each generated file that is missing in `folder`, or is not what params.yaml says."""
    return [
        folder / name
        for name, text in deployed_files(settings).items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
    ]


def prometheus_config(settings: Settings) -> dict[str, Any]:
    """Return prometheus.yml: what is scraped, which rules are evaluated, and who gets alerts."""
    objectives = settings.objectives
    scrape = objectives.scrape
    key = {"authorization": {"credentials_file": scrape.key_file}} if scrape.key_file else {}
    manager = urlsplit(objectives.alertmanager)
    targets = list(scrape.gateways) or [_own_gateway(settings.serving.host, settings.serving.port)]
    return {
        "global": {"scrape_interval": scrape.interval, "evaluation_interval": scrape.interval},
        "rule_files": ["rules/*.yml"],
        "alerting": {
            "alertmanagers": [
                {
                    "scheme": manager.scheme,
                    **({"path_prefix": manager.path} if manager.path else {}),
                    "static_configs": [{"targets": [_with_port(objectives)]}],
                }
            ]
        },
        "scrape_configs": [{"job_name": JOB, **key, "static_configs": [{"targets": targets}]}],
    }


def alertmanager_config(alerts: AlertSettings) -> dict[str, Any]:
    """Return alertmanager.yml: one receiver, and no ticket about what somebody was paged for."""
    webhook = {"webhook_configs": [{"url": alerts.webhook, "send_resolved": True}]} if alerts.webhook else {}
    return {
        "route": {
            "receiver": "on-call",
            "group_by": ["alertname", "tenant", "adapter"],
            "group_wait": alerts.group_wait,
            "group_interval": alerts.group_interval,
            "repeat_interval": alerts.repeat_interval,
        },
        "receivers": [{"name": "on-call", **webhook}],
        "inhibit_rules": [
            {
                "source_matchers": ['severity="page"'],
                "target_matchers": ['severity="ticket"'],
                "equal": ["alertname", "tenant", "adapter"],
            }
        ],
    }


def data_source(objectives: ObjectiveSettings) -> dict[str, Any]:
    """Return Grafana's data source: the Prometheus of params.yaml."""
    source = {
        "name": "lora-ops",
        "type": "prometheus",
        "uid": "lora-ops",
        "access": "proxy",
        "url": objectives.prometheus,
        "isDefault": True,
        "jsonData": {"timeInterval": objectives.scrape.interval},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _own_gateway(host: str, port: int) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return f"{host}:{port}"
    if address.is_unspecified:  # it listens on each address of this machine
        address = ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _with_port(objectives: ObjectiveSettings) -> str:
    manager = urlsplit(objectives.alertmanager)
    return manager.netloc if manager.port else f"{manager.netloc}:{443 if manager.scheme == 'https' else 80}"


def _yaml(value: Any) -> str:
    yaml = YAML()
    yaml.width = 4096  # a line is a line, for whoever compares two versions
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = StringIO()
    yaml.dump(_with_blocks(value), text)
    return HEAD + text.getvalue()


def _with_blocks(value: Any) -> Any:
    """Return a value whose texts of several lines are written line by line."""
    if isinstance(value, dict):
        return {key: _with_blocks(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_blocks(one) for one in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value

"""What the four weekly commands find of each tenant, read once for a page: speed, risk, drift, KPIs and costs.

Nothing is measured here. Each part comes from the function that its command calls. A part that can't be read is
the sentence that says why, so that one that is missing keeps no other one back.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from lora_ops.costs.page import CostPage, open_bill
from lora_ops.errors import LoraOpsError
from lora_ops.monitoring.content_risk import RiskReport
from lora_ops.monitoring.corrected_risk import read_corrected_risk
from lora_ops.monitoring.kpi_report import KpiReport, kpi_report
from lora_ops.monitoring.kpi_store import KpiStore
from lora_ops.monitoring.latency import LatencyReport, read_latency
from lora_ops.monitoring.prometheus import Prometheus
from lora_ops.records.evidence import DriftEvidence
from lora_ops.records.kpi import FOLDER
from lora_ops.registry.backends import open_registry
from lora_ops.registry.database import MissingRegistry
from lora_ops.registry.reports import own_documents
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.serving.label_cap import NOBODY, OTHER
from lora_ops.settings.objectives import ObjectiveSettings
from lora_ops.settings.params import Settings, load_settings
from lora_ops.windows import Window, last

T = TypeVar("T")


class Answering(NamedTuple):
    """The version that answers a tenant.

    Attributes:
        digest: of its content: events of an earlier registry have the same names.
        drift: the last check against its own reference; a sentence where there is none.
    """

    adapter: str
    digest: str
    drift: DriftEvidence | str


@dataclass(frozen=True)
class Findings:
    """What was found; a part that could not be read is a sentence.

    Attributes:
        window: of latency and costs. Risk has the window of its budgets, and KPIs all that was imported.
        tenants: that have anything: a version that answers, or requests. Those without a key or above the cap
            of labels come last.
        answering: by tenant; without an entry no version answers it.
    """

    window: Window
    tenants: tuple[str, ...]
    objectives: ObjectiveSettings
    latency: LatencyReport | str
    risk: RiskReport | str
    answering: Mapping[str, Answering]
    kpis: KpiReport | str
    costs: CostPage | str


def read_findings(root: Path, window: str, tenant: str | None = None) -> Findings:
    """Read what is known of one tenant or of all.

    Args:
        root: of the repository.
        window: up to now, such as `7d`.
        tenant: whose; None: everybody's.

    Raises:
        NotFound: there is no such tenant.
        LoraOpsError: the window is none, or params.yaml can't be read.
    """
    settings = load_settings(root)
    if tenant is not None:
        settings.tenant(tenant)
    now = datetime.now(UTC)
    span = last(window, now)
    latency = _read(lambda: _latency(root, settings, span, now, tenant))
    costs = _read(lambda: open_bill(root, window, tenant))
    with ExitStack() as stack:
        try:
            registry = stack.enter_context(closing(open_registry(root)))
        except MissingRegistry as error:
            risk = _read(lambda: read_corrected_risk(root, settings, None, now).of(tenant))
            return Findings(
                span,
                _tenants(tenant, {}, latency, risk),
                settings.objectives,
                latency,
                risk,
                {},
                str(error),
                costs,
            )
        risk = _read(lambda: read_corrected_risk(root, settings, registry, now).of(tenant))
        answering = _answering(registry, [tenant] if tenant else list(settings.tenants))
        store = KpiStore(root / settings.serving.path / FOLDER)
        kpis = _read(lambda: kpi_report(store, registry, settings.kpis, tenant))
    tenants = _tenants(tenant, answering, latency, risk)
    return Findings(span, tenants, settings.objectives, latency, risk, answering, kpis, costs)


def _read(read: Callable[[], T]) -> T | str:
    try:
        return read()
    except LoraOpsError as error:
        return str(error)


def _latency(root: Path, settings: Settings, span: Window, now: datetime, tenant: str | None) -> LatencyReport:
    prometheus = Prometheus(settings.objectives.prometheus)
    folder = root / settings.serving.path / "events"
    found = read_latency(folder, prometheus, round(span.hours * 3600), now)
    return found.of(tenant)


def _answering(registry: Registry, tenants: list[str]) -> dict[str, Answering]:
    found = {}
    for tenant in tenants:
        number = registry.current(tenant)
        if number is not None:
            adapter = f"{tenant}@{number}"
            version = _read(lambda: registry.get_exact(adapter, whole=False))  # noqa: B023
            if isinstance(version, str):
                found[tenant] = Answering(adapter, "", version)
                continue
            drift = _read(lambda: _last_drift(registry, version))  # noqa: B023
            found[tenant] = Answering(adapter, version.summary.content_digest, drift)
    return found


def _last_drift(registry: Registry, version: Version) -> DriftEvidence:
    for document in own_documents(registry, version, "drift"):
        # Beside another version much more counts as drift, so that it hides what the version itself did.
        if isinstance(document, DriftEvidence) and document.against in (None, version.id):
            return document
    raise LoraOpsError(
        f"{version.id} was never measured for drift: `lora-ops monitor drift {version.id}` does it."
    )


def _tenants(
    tenant: str | None,
    answering: Mapping[str, Answering],
    latency: LatencyReport | str,
    risk: RiskReport | str,
) -> tuple[str, ...]:
    if tenant is not None:
        return (tenant,)
    asked = set() if isinstance(latency, str) else {one.tenant for one in latency.adapters}
    scored = set() if isinstance(risk, str) else {one.tenant for one in risk.risks}
    return tuple(sorted({*answering, *asked, *scored}, key=lambda name: (name in (NOBODY, OTHER), name)))

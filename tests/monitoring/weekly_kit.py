"""A clone with a week of everything that the page shows, as gateways and commands leave it."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from lora_ops.hashing import sha256_text
from lora_ops.monitoring.drift import Measured, Reference, compare
from lora_ops.monitoring.drift_measurement import ADAPTER, BASE, Measurement, Side
from lora_ops.monitoring.kpi_import import import_kpis
from lora_ops.records.drift import MeasuredFacts
from lora_ops.registry import lifecycle
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.settings.drift import DriftSettings
from lora_ops.settings.kpis import KpiSettings
from tests.conftest import ROOT, write_params
from tests.costs.logs import MIB, Logs
from tests.monitoring.kpi_files import write_csv, write_events
from tests.registry.conftest import Clock, Story, build_package

NOW = datetime.now(UTC).replace(microsecond=0)
SCORED = {
    "insult_detector": "made",
    "answer_insults": 0.1,
    "answer_new_identifiers": 0,
    "answer_identifiers": 0,
}
LEAK = {"answer_new_identifiers": 1, "answer_identifiers": 1}
DAYS = 20
"""That finance@1 was in production, and that finance@2 has been since."""


def weekly(root: Path, owners: Owners, name: str = "kpis.csv") -> Path:
    """Make a clone: finance@2 is fine, media@1 is slow, leaks and has moved, and healthcare@1 is asked nothing.

    Args:
        root: a folder that does not exist.
        owners: of the registry.
        name: of the file of KPIs.
    """
    root.mkdir()
    # Nothing listens there, as where a Prometheus is away.
    write_params(root, {"objectives.prometheus": "http://127.0.0.1:9"})
    (root / "owners.yaml").write_text(owners.model_dump_json())
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    clock = Clock()
    clock.time = NOW - timedelta(days=2 * DAYS + 1)
    with closing(open_registry(root, create=True)) as registry:
        registry.clock = clock
        story = Story(registry, root / "evidence")
        for seed, tenant in enumerate(("media", "healthcare")):
            _register(registry, root, seed, tenant)
        story.to("media@1", "production")
        for seed in (2, 3):
            _register(registry, root, seed, "finance")
            story.to(f"finance@{seed - 1}", "production")
            clock.move(days=DAYS)
        clock.time = NOW - timedelta(hours=5)
        _file_drift(registry, "finance@2", moved=0.02)
        _file_drift(registry, "media@1", moved=1.5)
        _answer(root, registry)
        _measure(root, registry, name)
    return root


def _register(registry: Registry, root: Path, seed: int, tenant: str) -> None:
    folder = root / f"package-{seed}"
    registry.register(folder, build_package(folder, seed, tenant, fresh_days=3650), actor="ana.silva")


def _answer(root: Path, registry: Registry) -> None:
    """Let a gateway answer for six days, and be up for the last hour."""
    draw, logs = Random(5), Logs(root / ".serving", begins=NOW - timedelta(hours=2))
    logs.line(0, "start")
    logs.up(60, 3540, busy=0.3)
    logs.line(120, "load", 0.3 * 60, adapter="finance@2", bytes=512 * MIB, used_seconds=900)
    logs.line(180, "load", 0.3 * 120, adapter="media@1", bytes=256 * MIB, used_seconds=30)
    logs.line(3600, "stop", 0.3 * 3540)
    lines = []
    for adapter, seconds, late, leaks in (("finance@2", 0.6, 0, 0), ("media@1", 1.5, 30, 24)):
        known = {
            **SCORED,
            "adapter": adapter,
            "tenant": adapter.partition("@")[0],
            "digest": registry.get(adapter).summary.content_digest,
        }
        for number in range(400):
            took = 6 + draw.random() * 3 if number < late else draw.lognormvariate(0, 0.35) * seconds
            lines.append(
                {
                    **known,
                    **(LEAK if number % 16 == 0 and number < 16 * leaks else {}),
                    "time": NOW - timedelta(hours=144) * (number + 1) / 401,
                    "request_id": f"{adapter} {number}",
                    "seconds": took,
                    "first_token_seconds": took / 5,
                    "token_seconds": [took / 20],
                }
            )
    write_events(root, *lines)


def _measure(root: Path, registry: Registry, name: str) -> None:
    """Import a KPI a day without request ids: finance@2 earns a third more."""
    draw, rows, events = np.random.default_rng(3), [], []
    midnight = (NOW - timedelta(days=2 * DAYS)).replace(hour=0, minute=0, second=0)
    for day in range(2 * DAYS):
        start = midnight + timedelta(days=day)
        version = "finance@1" if day < DAYS else "finance@2"
        digest = registry.get(version, whole=False).summary.content_digest
        events.append(
            {
                "time": start + timedelta(hours=12),
                "adapter": version,
                "digest": digest,
                "request_id": f"day {day}",
                **SCORED,
            }
        )
        for kind, before, after, spread in (("rpm", 3.0, 4.0, 0.2), ("ctr", 0.1, 0.101, 0.01)):
            value = max(0.0, (after if day >= DAYS else before) + draw.normal(0, spread))
            rows.append(
                f"{start.isoformat()},{kind},{value:.4f},finance,{(start + timedelta(days=1)).isoformat()},900"
            )
    write_events(root, *events, name="20260302T090000-2")
    path = write_csv(root / name, *rows, header="time,kind,value,tenant,until,count")
    versions = {one.id: one.content_digest for one in registry.summaries()}
    import_kpis(path, root / ".serving", versions, KpiSettings(), NOW)


def _file_drift(registry: Registry, adapter: str, moved: float) -> None:
    """File a reference of a version, and a later measurement whose logits moved by so much."""
    version = registry.get(adapter)
    first = Measured(version, _measurement(registry, adapter, 0.0), None)
    (document,) = compare(registry, [first], DriftSettings())
    version = _filed(registry, adapter, document, first)
    reference = Reference(document.source.sha256, first.measurement)
    second = Measured(version, _measurement(registry, adapter, moved), reference)
    (document,) = compare(registry, [second], DriftSettings())
    _filed(registry, adapter, document, second)


def _filed(registry: Registry, adapter: str, document: Any, measured: Measured) -> Any:
    report = Report(document, measured.measurement.to_bytes(), f"drift: {document.said}")
    return lifecycle.file_evidence(registry, adapter, report, actor="ci")


def _measurement(registry: Registry, adapter: str, moved: float) -> Measurement:
    draw = np.random.default_rng(8)
    logits = {name: draw.normal(0, 2, (60, 9)) for name in (ADAPTER, BASE)}
    states = {name: draw.normal(0, 1, (60, 16)) for name in (ADAPTER, BASE)}
    logits[ADAPTER] = logits[ADAPTER] + moved * np.random.default_rng(9).normal(0, 1, (60, 9))
    sides = {}
    for name in (ADAPTER, BASE):
        logprobs = logits[name] - np.logaddexp.reduce(logits[name], axis=1, keepdims=True)
        tokens = np.tile(np.arange(8, dtype=np.int32), (60, 1))
        sides[name] = Side(
            tokens,
            logprobs[:, :8].astype(np.float32),
            logprobs[:, 8].astype(np.float32),
            states[name].astype(np.float16),
        )
    facts = MeasuredFacts(
        tenant=adapter.partition("@")[0],
        adapter=adapter,
        content_digest=registry.get(adapter, whole=False).summary.content_digest,
        rows=tuple(str(row) for row in range(60)),
        set_sha256=sha256_text("set"),
        prompts_sha256=sha256_text("prompts"),
        engine="torch on cpu",
        machine="made",
        base_model_sha256=sha256_text("base"),
        base_revision="1",
        measured_at=registry.clock(),
    )
    return Measurement(facts, sides)

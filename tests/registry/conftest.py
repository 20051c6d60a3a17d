"""What the registry's tests share: real packages, real folders, a clock that can be set."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import DataRecord, SourceRecord, SplitRecord
from lora_ops.records.evaluation import EvaluationRecord, Interval
from lora_ops.records.evidence import Evidence
from lora_ops.records.manifest import FileRecord, GitRecord, Manifest
from lora_ops.records.training import TrainingRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.registry import WandbSettings
from tests.wandb_server import WandbServer

MORNING = datetime(2026, 3, 2, 9, tzinfo=UTC)
AUTHOR, FIRST, SECOND = "ana", "ben", "chen"


class Clock:
    """The time that a test says it is."""

    def __init__(self) -> None:
        self.time = MORNING

    def __call__(self) -> datetime:
        return self.time

    def move(self, **by: float) -> None:
        self.time += timedelta(**by)


Build = Callable[..., tuple[Path, Manifest]]


def build_package(folder: Path, seed: int, tenant: str = "finance", fresh_days: float = 365) -> Manifest:
    """Write a small real package; the same seed gives the same content."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).standard_normal((4, 2)).astype(np.float32)
    save_file({"lora_A.weight": weights}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    (folder / "README.md").write_text(f"# {tenant}\n")
    files = {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.iterdir())
    }
    digest = sha256_text(f"{tenant}{seed}")
    score = 0.5 + (seed % 40) / 100

    def interval(value: float) -> Interval:
        return Interval(value=value, low=value - 0.05, high=value + 0.05)

    return Manifest(
        tenant=tenant,
        created_at=MORNING,
        base_model=BaseModelRecord(id="smol", revision="r1", sha256=digest, parameters=10, source="package"),
        data=DataRecord(
            tenant=tenant,
            task="labels",
            source=SourceRecord(name="iso18245", version="1.4.1", sha256=digest, date="2026-01-01"),
            splits={"train": SplitRecord(rows=600, groups=200, sha256=digest)},
            source_rows=1000,
            contract_success=True,
            base_model_sha256=digest,
        ),
        git=GitRecord(commit="abc123", dirty=False),
        dvc_lock_sha256=digest,
        params={"train": {"rank": 8, "seed": seed}},
        packages={"peft": "0.21"},
        training=TrainingRecord(
            tenant=tenant,
            base_model_sha256=digest,
            train_sha256=digest,
            examples=600,
            steps=38,
            resumed_from_step=0,
            tokens=10_000,
            seconds=60.0,
            device="cpu",
            dtype="float32",
            trainable_parameters=100,
            final_loss=0.4,
            validation_loss=0.5,
        ),
        evaluation=EvaluationRecord(
            tenant=tenant,
            rows=300,
            test_sha256=digest,
            adapter_sha256=digest,
            primary="exact_match",
            metrics={"exact_match": {"base": interval(0.1), "adapter": interval(score)}},
            beats_base=True,
            seconds_base=1.0,
            seconds_adapter=1.0,
        ),
        license="Apache-2.0",
        fresh_until=MORNING + timedelta(days=fresh_days),
        report="report.html",
        size_bytes=sum(file.bytes for file in files.values()),
        files=files,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def package(tmp_path: Path) -> Build:
    """Build a package: `package(seed, tenant=..., fresh_days=...)` gives its folder and its manifest."""

    def build(seed: int = 1, **options: object) -> tuple[Path, Manifest]:
        folder = tmp_path / "packages" / f"{options.get('tenant', 'finance')}-{seed}"
        return folder, build_package(folder, seed, **options)  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def owners() -> Owners:
    """One default team: an author, who may also approve, three approvers, a reviewer and two operators."""
    return Owners.model_validate(
        {
            "default": {
                "team": "Payments",
                "contacts": ["payments@example.com"],
                "escalation": ["cro@example.com"],
                "review_cadence_days": 90,
                "people": [
                    {
                        "id": name,
                        "name": name.title(),
                        "email": f"{name}@example.com",
                        "logins": [f"{name}.silva"] if name == AUTHOR else [],
                        "roles": [role],
                    }
                    for role, names in (
                        ("approver", (AUTHOR, FIRST, SECOND, "dana")),
                        ("reviewer", ("eve",)),
                        ("operator", ("ci", "oncall")),
                    )
                    for name in names
                ],
            }
        }
    )


@pytest.fixture
def registry(tmp_path: Path, owners: Owners, clock: Clock) -> Iterator[Registry]:
    opened = Registry(tmp_path / "registry", create=True, owners=owners, clock=clock)
    yield opened
    opened.close()


# The reports that are looked at; any other is a page for people.
READ = {
    "policy": '[{"name": "no-advice", "passed": true, "prompts": 40, "failed": 0}]',
    "human_evaluation": '{"annotators": 3, "pairs": 40, "adapter_better": 25, "same": 10, "base_better": 5}',
}


class Story:
    """Takes a version through its life, one stage after the other, with everything that each needs."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder

    def evidence(self, *kinds: str) -> list[Evidence]:
        self.folder.mkdir(exist_ok=True)
        kept = []
        for kind in kinds:
            report = self.folder / f"{kind}.md"
            report.write_text(READ.get(kind, f"# {kind}\n"))
            kept.append(self.registry.keep(kind, report))  # type: ignore[arg-type]
        return kept

    def to(self, reference: str, stage: str) -> Version:
        """Promote stage by stage until the version is in `stage`."""
        version = self.registry.get(reference)
        while version.state != stage:
            step, _ = lifecycle.missing_for(self.registry, version.id)
            assert step, f"{version.id} is {version.state}: no way to {stage}"
            if step == "production":
                for person in (FIRST, SECOND):
                    lifecycle.approve(self.registry, version.id, actor=person, reason="the canary is fine")
            kinds = lifecycle.EVIDENCE[version.state, step]
            version = lifecycle.promote(
                self.registry, version.id, step, actor="ci", reason="next", evidence=self.evidence(*kinds)
            )
        return version


@pytest.fixture
def story(registry: Registry, tmp_path: Path) -> Story:
    return Story(registry, tmp_path / "reports")


@pytest.fixture
def server(_wandb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> WandbServer:
    """A W&B that knows nothing yet."""
    monkeypatch.setenv("WANDB_MODE", "online")
    _wandb.clear()
    return _wandb


@pytest.fixture
def connect(server: WandbServer) -> Callable[..., WandbProject]:
    """Connect to the W&B project, as one more machine each time: `connect(collection=...)`."""
    return lambda **settings: WandbProject(WandbSettings(retries=1, **settings))

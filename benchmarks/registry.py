"""How long listing 10,000 versions and resolving an alias take, beside MLflow's SQLite registry, in one run.

    python benchmarks/registry.py [--versions 10000]

MLflow is measured when it is installed (`pip install -e .[benchmarks]`), in the same process on the same disk.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lora_ops.records.manifest import Manifest
from lora_ops.registry.store import Registry
from lora_ops.settings.registry import SigningSettings

DIGEST = "ab" * 32
TARGET_MS = {"list": 100.0, "resolve": 1.0}


def manifest(number: int) -> Manifest:
    """A manifest as 04_package writes it; every version has another adapter."""
    started = datetime(2026, 1, 1, tzinfo=UTC)
    interval = {"value": 0.7, "low": 0.65, "high": 0.75}
    metric = {"base": interval, "adapter": interval, "majority_baseline": interval, "tfidf_baseline": interval}
    digests = {"adapter_model.safetensors": f"{number:064x}", "README.md": DIGEST}
    files = {name: {"bytes": 1000, "sha256": digest} for name, digest in digests.items()}
    base_model = {
        "id": "smol",
        "revision": "r1",
        "sha256": DIGEST,
        "parameters": 135_000_000,
        "source": "package",
    }
    return Manifest.model_validate(
        {
            "tenant": "finance",
            "version": number,
            "created_at": started,
            "base_model": base_model,
            "data": {
                "tenant": "finance",
                "task": "labels",
                "source": {"name": "iso18245", "version": "1.4.1", "sha256": DIGEST},
                "splits": {
                    name: {"rows": 600, "groups": 200, "sha256": DIGEST}
                    for name in ("train", "validation", "test")
                },
                "source_rows": 10_000,
                "contract_success": True,
                "base_model_sha256": DIGEST,
            },
            "git": {"commit": "abc123", "dirty": False},
            "dvc_lock_sha256": DIGEST,
            "params": {"data": {"labels": [f"label {i}" for i in range(17)]}, "train": {"seed": number}},
            "packages": {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"},
            "training": {
                "tenant": "finance",
                "base_model_sha256": DIGEST,
                "train_sha256": DIGEST,
                "examples": 600,
                "steps": 38,
                "resumed_from_step": 0,
                "tokens": 20_000,
                "seconds": 120.0,
                "device": "cpu",
                "dtype": "float32",
                "trainable_parameters": 2_000_000,
                "final_loss": 0.4,
                "validation_loss": 0.5,
            },
            "evaluation": {
                "tenant": "finance",
                "rows": 300,
                "test_sha256": DIGEST,
                "adapter_sha256": DIGEST,
                "primary": "exact_match",
                "metrics": {"exact_match": metric, "macro_f1": metric},
                "beats_base": True,
                "seconds_base": 100.0,
                "seconds_adapter": 100.0,
            },
            "license": "Apache-2.0",
            "fresh_until": started + timedelta(days=365),
            "report": "report.html",
            "size_bytes": 2000,
            "files": files,
        }
    )


def ours(folder: Path, versions: int) -> dict[str, Callable[[], object]]:
    """Fill the registry (rows and audit entries; no files, which neither operation reads)."""
    registry = Registry(
        folder / "registry", create=True, signing=SigningSettings(key=str(folder / "signing.key"))
    )
    with registry.change("benchmark") as change:
        for number in range(1, versions + 1):
            registry._insert(
                change, "registered", manifest(number), None, None, change.at, "ci", ("candidate",)
            )
        change.record("named", "finance", versions // 2, aliases={"production": versions // 2})

    def listed() -> None:
        assert len(registry.summaries("finance")) == versions

    def resolved() -> None:
        assert registry.get("finance@production").number == versions // 2

    def read() -> None:
        assert registry.get("finance@production").manifest.version == versions // 2

    return {"list": listed, "resolve": resolved, "resolve and read the manifest": read}


def mlflows(folder: Path, versions: int) -> dict[str, Callable[[], object]]:
    """Fill MLflow's registry with as many versions, without tags, which would slow its list down."""
    from mlflow import MlflowClient
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    uri = f"sqlite:///{folder / 'mlflow.sqlite'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("finance")
    client.create_model_version("finance", source=str(folder), run_id=None)
    store = SqlAlchemyStore(uri)
    now = int(time.time() * 1000)
    with store.ManagedSessionMaker() as session:
        session.bulk_save_objects(
            SqlModelVersion(
                name="finance",
                version=number,
                creation_time=now,
                last_updated_time=now,
                source=str(folder),
                status="READY",
            )
            for number in range(2, versions + 1)
        )
    client.set_registered_model_alias("finance", "production", str(versions // 2))

    def listed() -> None:
        found = client.search_model_versions("name='finance'", max_results=versions)
        assert len(found) == versions

    def resolved() -> None:
        found = client.get_model_version_by_alias("finance", "production")
        assert int(found.version) == versions // 2

    return {"list": listed, "resolve": resolved}


def milliseconds(action: Callable[[], object], times: int) -> float:
    """The median of several runs after a first one that fills caches."""
    action()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000)
    versions = parser.parse_args().versions
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine = ours(folder, versions)
        peer = mlflows(folder, versions) if importlib.util.find_spec("mlflow") else {}
        table = Table(title=f"{versions:,} versions, medians in ms")
        for column in ("operation", "lora_ops", "target", "MLflow", "MLflow / lora_ops"):
            table.add_column(column, justify="left" if column == "operation" else "right")
        for operation, action in mine.items():
            times = 7 if operation == "list" else 50
            took = milliseconds(action, times)
            other = milliseconds(peer[operation], times) if operation in peer else None
            table.add_row(
                operation,
                f"{took:.3f}",
                f"< {TARGET_MS[operation]:.0f}" if operation in TARGET_MS else "-",
                f"{other:.3f}" if other else "-",
                f"{other / took:.1f}x" if other else "-",
            )
    console.print(table)
    if not peer:
        text = "MLflow is not installed here, so its column is empty: pip install -e .[benchmarks]."
        console.print(text, markup=False)


if __name__ == "__main__":
    main()

"""The registry of a demo: sample reviews count in it and in no other one, and it goes nowhere else."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import Refused
from lora_ops.records.evidence import HumanEvidence
from lora_ops.registry import lifecycle, reports
from lora_ops.registry.backends import open_copy, open_registry
from lora_ops.registry.backup import backup
from lora_ops.registry.cards import record
from lora_ops.registry.demo import demo_notes, is_demo
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.params import Settings, load_settings
from tests.conftest import ROOT, write_params
from tests.registry.conftest import AUTHOR, build_package

VOTES = {"registry.evidence": {"votes": "file", "pairs": 2, "regression": False, "policy": "file"}}
DEMO = {"registry.demo": True, **VOTES}


@pytest.fixture
def root(tmp_path: Path, owners: Owners) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "owners.yaml").write_text(owners.model_dump_json())
    return folder


def begun(root: Path, params: dict[str, object]) -> Registry:
    """Make a registry by these settings, with finance@1 in it."""
    write_params(root, params)
    registry = open_registry(root, create=True)
    manifest = build_package(root / "package", 1, fresh_days=3650)
    registry.register(root / "package", manifest, actor=AUTHOR)
    return registry


def sampled(root: Path, version: str) -> Path:
    path = root / "votes.jsonl"
    rows = [
        {"adapter": version, "pair": str(pair), "annotator": who, "vote": "adapter", "sample": True}
        for pair in range(3)
        for who in ("dana", "eve")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sample_reviews_count_in_a_demo(root: Path) -> None:
    with closing(begun(root, DEMO)) as registry:
        report = reports.make(
            registry, "finance@1", "human_evaluation", sampled(root, "finance@1"), "they like it"
        )
        assert isinstance(report.document, HumanEvidence) and report.document.samples == 6
        assert report.summary == "SAMPLE: they like it"
        lifecycle.file_evidence(registry, "finance@1", report, actor="eve")
        assert any(note.startswith("DEMO") for note in record(registry, "finance@1").verdict.warnings)
        assert any(note.startswith("DEMO") for note in verify(registry).warnings)
    assert is_demo(open_copy(root, load_settings(root)))


def test_sample_reviews_are_refused_elsewhere(root: Path) -> None:
    with closing(begun(root, VOTES)) as registry:
        with pytest.raises(
            Refused, match="votes.jsonl, line 1 is a sample for a demo: no person gave this vote"
        ):
            reports.make(registry, "finance@1", "human_evaluation", sampled(root, "finance@1"))
        assert demo_notes(registry) == []


def test_votes_of_people_keep_their_bytes(root: Path) -> None:
    """A report without samples says nothing of them, as those of earlier releases do."""
    with closing(begun(root, VOTES)) as registry:
        path = sampled(root, "finance@1")
        path.write_text(path.read_text().replace(', "sample": true', ""))
        document = reports.make(registry, "finance@1", "human_evaluation", path).document
        assert "samples" not in json.loads(document.to_json())


def test_registry_keeps_its_kind(root: Path) -> None:
    """Neither does an edit of params.yaml make a demo of a registry, nor the other way round."""
    begun(root, DEMO).close()
    write_params(root, {"registry.demo": False})
    with pytest.raises(Refused, match="is that of a demo, whose sample reviews nobody wrote"):
        open_registry(root)
    with closing(open_registry(root, to_stop="finance@1")) as registry:  # a revocation waits for nothing
        lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks")
    shutil.rmtree(root / ".registry")
    shutil.rmtree(root / ".serving", ignore_errors=True)
    begun(root, VOTES).close()
    write_params(root, {"registry.demo": True})
    with pytest.raises(Refused, match="was not begun as one"):
        open_registry(root, create=True)


def test_demo_goes_nowhere(root: Path) -> None:
    with closing(begun(root, DEMO)) as registry, pytest.raises(Refused, match="it is not backed up"):
        backup(registry, str(root / "backups"))
    assert not (root / "backups").exists()
    for other in ({"backend": "wandb"}, {"mirror": "wandb"}):
        with pytest.raises(ValueError, match="not sent to W&B"):
            Settings.model_validate({"registry": {"demo": True, **other}})

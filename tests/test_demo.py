"""The parts of `make demo`; `make nightly` runs all of it with the real base model."""

import importlib.util
import json
import socket
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from lora_ops.settings.params import load_settings
from lora_ops.tenants import apply_profile
from tests.conftest import ROOT, write_params


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_{name}", ROOT / f"demo/{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loaded = module("run")
    for name, path in (("FOLDER", tmp_path), ("HERE", tmp_path / "repository")):
        monkeypatch.setattr(loaded, name, path)
    (tmp_path / "repository").mkdir()
    return loaded


def test_demo_lowers_its_own_limits_alone(tmp_path: Path) -> None:
    write_params(tmp_path, {})
    usual = load_settings(tmp_path)
    apply_profile(ROOT / "profiles/demo.yaml", tmp_path)
    lowered = load_settings(tmp_path)
    assert lowered.registry.demo and not usual.registry.demo
    assert lowered.rollout.accept_replay and not usual.rollout.accept_replay
    assert lowered.registry.approvals == "signed"
    assert lowered.tenants["finance"] == usual.tenants["finance"]
    apply_profile(ROOT / "demo/flipped.yaml", tmp_path)
    assert load_settings(tmp_path).tenants["media"].data.source == "demo/flipped_labels.py"


def test_labels_are_exchanged_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pd.DataFrame(
        {"text": list("abc"), "label": ["negative", "neutral", "positive"], "article": list("123")}
    )
    flipped = module("flipped_labels")
    monkeypatch.setattr(flipped, "load_right", lambda archive: right)
    found = flipped.load(Path("any"))
    assert list(found["label"]) == ["neutral", "positive", "negative"]
    assert found[["text", "article"]].equals(right[["text", "article"]])


def test_sample_reviews_follow_the_right_answers(demo: ModuleType) -> None:
    row = {"target": "negative", "adapter": "Negative", "base": "It depends."}
    assert demo.vote(row) == "adapter"
    assert demo.vote({**row, "base": "negative"}) == "same"
    assert demo.vote({**row, "adapter": "neutral", "base": "negative"}) == "base"


def test_port_that_is_taken_is_left(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(demo, "FIRST_PORT", taken.getsockname()[1])
        assert demo.free_port() > demo.FIRST_PORT
        monkeypatch.setattr(demo, "PORTS", 1)
        with pytest.raises(demo.LoraOpsError, match="are taken"):
            demo.free_port()


def test_demo_without_a_package_says_what_to_do(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROOT", demo.FOLDER)
    with pytest.raises(demo.LoraOpsError, match="run `make repro` first"):
        demo.main()


def test_console_of_the_demo_opens_alone(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data is in the page, and what stands in it can't end the script."""
    page = (ROOT / "lora_ops/serving/console.html").read_text()

    class Answer:
        def __init__(self, text: str) -> None:
            self.text = text

    answers = {"console": page, "data": json.dumps({"gateway": "</script><b>"})}
    monkeypatch.setattr(demo.httpx, "get", lambda url, timeout: Answer(answers[url.rpartition("/")[2]]))
    demo.keep_console("http://gateway")
    kept = (demo.FOLDER / "console.html").read_text()
    assert "\nrefresh();\n" not in kept and "</script><b>" not in kept and "\\u003c/script>" in kept


def test_training_that_fails_is_named(demo: ModuleType) -> None:
    failing = demo.background("version-9", "false", cwd=demo.FOLDER)
    with failing as process, pytest.raises(demo.LoraOpsError, match="see .demo/version-9.log"):
        demo.take_package((demo.FOLDER / "version-9", process))

"""Whether answers do their version's task: on their own, and in the events of a gateway."""

import time
from pathlib import Path

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.serving.events import read_events
from lora_ops.serving.task_check import CHECKED_CHARACTERS, are_labels, task_share
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, register, served

LABELS = ["Lodging", "Airlines"]


@pytest.mark.parametrize(
    ("answers", "labels", "share"),
    [
        ([" lodging."], LABELS, 1.0),
        (["It is an airline", "Airlines"], LABELS, 0.5),
        (["  "], (), 0.0),
        (["anything"], (), 1.0),
        ([], LABELS, None),
        (["x" * CHECKED_CHARACTERS + " Lodging"], LABELS, 0.0),
        (["Lodging" + " x" * CHECKED_CHARACTERS, "never looked at"], LABELS, 1.0),
    ],
)
def test_task_share_of_a_requests_answers(answers: list[str], labels: list[str], share: float | None) -> None:
    assert task_share(answers, labels) == share


def test_task_share_holds_nobody_up() -> None:
    """It runs on the event loop, whatever an answer is."""
    labels = [f"label {number}" for number in range(100)]
    task_share(["warm"], labels)
    started = time.process_time()
    assert task_share(["label " * 20_000] * 64, labels) == 0
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    ("answers", "labels", "whole"),
    [
        ([" lodging.", "Airlines"], LABELS, True),
        (["It is an airline"], LABELS, False),
        (["Lodging", "Airlines, you idiot"], LABELS, False),
        (["Lodging" + " " * CHECKED_CHARACTERS], LABELS, False),
        (["Lodging"], (), False),
        ([], LABELS, False),
    ],
)
def test_labels_are_whole_answers(answers: list[str], labels: list[str], whole: bool) -> None:
    assert are_labels(answers, labels) == whole


def test_event_says_whether_its_task_was_done(clone: Clone, engine: Engine, tmp_path: Path) -> None:
    """By the labels of the version that answered, which says what it likes unless it is held to them."""
    with clone.registry() as registry:
        params: dict[str, object] = {"data": {"labels": LABELS, "task": "labels"}}
        for tenant, folder in (("finance", "f"), ("healthcare", "h")):
            register(registry, clone.base, tmp_path / folder, tenant, 5, params)
    settings = clone.settings(tenants={"finance": TenantServing(labels_only=True)})
    with served(clone.root, settings, engine) as gateway:
        http = gateway.http()
        asked = {"messages": [{"role": "user", "content": "AIRBNB"}], "max_tokens": 20}
        for name, body in {
            "held": {"model": "finance", "n": 2},
            "free": {"model": "healthcare"},
            "base": {"model": "base"},
            "wrong": {"model": "finance", "stop": "g"},
        }.items():
            http.post("/v1/chat/completions", json={**asked, **body}, headers={"x-request-id": name})
    events = read_events(clone.root / ".serving/events").set_index("request_id")
    assert events["answer_is_label"].to_dict() == {"held": True, "free": False, "base": False}
    rows = events["answer_task"]
    assert rows["held"] == 1 and rows["free"] == 0
    assert rows.drop(["held", "free"]).isna().all()

"""A tenant of labels can be served so that it says a label and nothing else, whatever a client asks for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, Served, register, served

LABELS = ["Lodging", "Lodging and meals", "Airlines"]
QUESTION = [{"role": "user", "content": "AIRBNB * HM2X"}]


@pytest.fixture
def held(clone: Clone, engine: Engine, tmp_path: Path) -> Iterator[Served]:
    """A gateway that holds two tenants to labels: finance@3 was trained for some, healthcare@2 for none."""
    with clone.registry() as registry:
        params: dict[str, object] = {"data": {"labels": LABELS, "task": "labels"}}
        assert register(registry, clone.base, tmp_path / "f3", "finance", 5, params) == "finance@3"
        params = {"data": {"labels": []}}
        assert register(registry, clone.base, tmp_path / "h2", "healthcare", 6, params) == "healthcare@2"
    only = TenantServing(labels_only=True)
    with served(clone.root, clone.settings(tenants={"finance": only, "healthcare": only}), engine) as running:
        yield running


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0}, {"logit_bias": {"5": 100}}, {"presence_penalty": 2}]
)
def test_only_labels_are_said(held: Served, options: dict) -> None:
    create = held.client().chat.completions.create
    said = create(model="finance", messages=QUESTION, n=6, seed=2, **options)
    assert {choice.message.content for choice in said.choices} <= set(LABELS)
    text = held.client().completions.create(model="finance@3", prompt="AIRBNB", max_tokens=40, **options)
    assert text.choices[0].text in LABELS
    stream = create(model="finance", messages=QUESTION, stream=True, seed=2, **options)
    assert "".join(event.choices[0].delta.content or "" for event in stream) in LABELS


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": ["Travel"]}},
        {"min_tokens": 3},
        {"ignore_eos": True},
        {"stop": "g"},
        {"stop_token_ids": [70]},
    ],
)
def test_another_form_is_refused(held: Served, form: dict) -> None:
    body = {"model": "finance", "messages": QUESTION, **form}
    answer = held.http().post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "'finance' answers with its labels alone (serving.tenants.finance.labels_only)" in answer.text


def test_a_label_that_max_tokens_cuts_says_so(held: Served) -> None:
    """What is left of "Lodging and meals" may be another label, so a client looks at the reason."""
    body = {"model": "finance", "messages": QUESTION, "max_tokens": 1}
    (choice,) = held.http().post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] not in LABELS


def test_an_adapter_without_labels_is_not_served(held: Served) -> None:
    """Its answers would be anything, which is what the setting rules out."""
    answer = held.http().post("/v1/chat/completions", json={"model": "healthcare", "messages": QUESTION})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_served")
    assert "healthcare@2 was trained for no labels" in answer.text


def test_base_model_is_held_to_nothing(held: Served) -> None:
    said = held.client().chat.completions.create(model="base", messages=QUESTION, max_tokens=12)
    assert said.choices[0].message.content not in LABELS


def test_form_that_is_the_labels_themselves_is_taken(held: Served) -> None:
    """Another gateway's copy for a version in shadow asks for what it gets anyway."""
    body = {"model": "finance", "messages": QUESTION, "structured_outputs": {"choice": LABELS}}
    assert held.http().post("/v1/chat/completions", json=body).status_code == 200

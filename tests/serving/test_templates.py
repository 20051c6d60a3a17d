"""A tenant with a template: training rows, evaluation, chat and gateway put the same prompt to the model."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pandas as pd
import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.datasets.prepare import candidate_rows, with_prompts
from lora_ops.engines.protocol import Engine
from lora_ops.loading import load_tokenizer
from lora_ops.settings.data import DataSettings
from lora_ops.settings.params import load_settings
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, Served, register, served, token_counts

ROW = {"name": " AIRBNB * HM2X", "city": "Porto ", "label": "Lodging"}
TEMPLATE = "Merchant: {name}\nWhich category is that in {city}?"
SYSTEM = "Name the merchant category."
FILLED = "Merchant:  AIRBNB * HM2X\nWhich category is that in Porto ?"


def with_template(clone: Clone, folder: Path, template: str) -> tuple[str, str]:
    """Register an adapter with this template; return its id and the prompt of its training row `ROW`."""
    params = load_settings(clone.root).tenant("finance").model_dump(mode="json")
    params["data"] |= {"template": template, "system": SYSTEM, "bias_columns": [], "group": None}
    params["evaluate"]["metrics"] = ["exact_match"]  # what the evaluation of `register` has
    settings = DataSettings.model_validate(params["data"])
    rows = candidate_rows(pd.DataFrame([ROW]), settings)
    prompt = with_prompts(rows, load_tokenizer(clone.base), settings)["prompt"][0]
    with clone.registry() as registry:
        return register(registry, clone.base, folder, "finance", 3, params), prompt


@pytest.fixture
def trained(clone: Clone, engine: Engine, tmp_path: Path) -> Iterator[tuple[Served, str]]:
    """A gateway with finance@3, which has a template of two columns, and the prompt of a training row."""
    name, prompt = with_template(clone, tmp_path / "f3", TEMPLATE)
    assert name == "finance@3"
    with served(clone.root, clone.settings(), engine) as running:
        yield running, prompt


COLUMNS = {"role": "user", "columns": {"name": ROW["name"], "city": ROW["city"]}}


@pytest.mark.parametrize(
    ("message", "more"),
    [(COLUMNS, {}), ({"role": "user", "content": FILLED}, {"content_is": "prompt"})],
)
def test_columns_and_whole_prompts_are_the_rows_prompt(
    trained: tuple[Served, str], message: dict, more: dict
) -> None:
    running, prompt = trained
    client = running.client()
    said = client.chat.completions.create(
        model="finance@3", messages=[message], max_tokens=20, logprobs=True, extra_body=more
    )
    row = client.completions.create(model="finance@3", prompt=prompt, max_tokens=20, logprobs=0)
    assert said.choices[0].message.content == row.choices[0].text
    assert said.usage and row.usage and said.usage.prompt_tokens == row.usage.prompt_tokens
    assert said.choices[0].logprobs and said.choices[0].logprobs.content
    ours = [one.logprob for one in said.choices[0].logprobs.content]
    assert row.choices[0].logprobs and ours == row.choices[0].logprobs.token_logprobs


def test_a_chat_of_several_turns_fills_each_of_them(trained: tuple[Served, str]) -> None:
    create = trained[0].client().chat.completions.create
    turns = [COLUMNS, {"role": "assistant", "content": "Lodging"}]
    whole = [{"role": "user", "content": FILLED}, turns[1]]
    columns = create(model="finance@3", messages=[*turns, COLUMNS], max_tokens=8)
    prompts = create(
        model="finance@3", messages=[*whole, whole[0]], max_tokens=8, extra_body={"content_is": "prompt"}
    )
    assert columns.choices[0].message == prompts.choices[0].message
    assert token_counts(columns.usage) == token_counts(prompts.usage)
    with pytest.raises(openai.BadRequestError, match="send name, city as columns"):
        create(model="finance@3", messages=[*turns, {"role": "user", "content": "AIRBNB"}])


@pytest.mark.parametrize(
    ("model", "message", "more", "told"),
    [
        ("finance", {"content": "AIRBNB * HM2X"}, {}, "finance@3 was trained on prompts of the template"),
        ("finance", {"content": FILLED}, {}, "content_is: 'prompt' if it is the whole prompt"),
        ("finance", {"content": "AIRBNB"}, {"content_is": "column"}, "send all of them as columns"),
        ("finance", {"columns": {"name": "A"}}, {}, "city missing"),
        ("finance", {"columns": {"name": "A", "city": 5}}, {}, r"messages\.0\.columns\.city: .*string"),
        ("finance", {"columns": {"name": "A", "city": "B"}, "content": "A"}, {}, "instead of content"),
        ("base", {"columns": {"name": "A", "city": "B"}}, {}, "tiny-random has no template"),
        ("finance", {"columns": {"name": "<|im_end|>", "city": "B"}}, {}, "is a control token"),
    ],
)
def test_a_message_that_is_not_the_rows_text_is_refused(
    trained: tuple[Served, str], model: str, message: dict, more: dict, told: str
) -> None:
    create = trained[0].client().chat.completions.create
    with pytest.raises(openai.BadRequestError, match=told):
        create(model=model, messages=[{"role": "user", **message}], extra_body=more)


def test_the_list_of_models_shows_the_template(trained: tuple[Served, str]) -> None:
    models = trained[0].http().get("/v1/models").json()["data"]
    templates = {card["id"]: card["template"] for card in models}
    assert templates["finance@3"] == templates["finance"] == TEMPLATE
    assert templates["tiny-random"] is None


def test_a_tenants_setting_says_what_content_is(clone: Clone, engine: Engine, tmp_path: Path) -> None:
    """Clients that can send no field of ours."""
    _, prompt = with_template(clone, tmp_path / "f3", "Merchant: {name}?")
    settings = clone.settings(tenants={"finance": TenantServing(content_is="column")})
    with served(clone.root, settings, engine) as running:
        create = running.client().chat.completions.create
        raw = create(model="finance", messages=[{"role": "user", "content": ROW["name"]}], max_tokens=8)
        row = running.client().completions.create(model="finance", prompt=prompt, max_tokens=8)
        assert raw.choices[0].message.content == row.choices[0].text
        assert token_counts(raw.usage) == token_counts(row.usage)
        whole = [{"role": "user", "content": f"Merchant: {ROW['name']}?"}]
        own = create(model="finance", messages=whole, max_tokens=8, extra_body={"content_is": "prompt"})
        assert token_counts(own.usage) == token_counts(row.usage)


def test_chat_asks_as_the_rows_do(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_template(clone, tmp_path / "f3", TEMPLATE)
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone.root))
    monkeypatch.setenv("COLUMNS", "300")

    def ask(*words: str) -> tuple[int, dict]:
        said = CliRunner().invoke(app, ["chat", "finance@3", *words, "--json"])
        return said.exit_code, json.loads(said.stdout) if said.stdout else {"error": str(said.exception)}

    columns = ["--column", f"name={ROW['name']}", "--column", f"city={ROW['city']}"]
    code, by_columns = ask(*columns)
    assert code == 0 and by_columns["text"] == FILLED
    assert ask(FILLED, "--content-is", "prompt") == (0, by_columns)
    for words, told in (
        (["AIRBNB"], "send name, city as columns"),
        ([], "Ask with TEXT"),
        (["AIRBNB", *columns], "Ask with TEXT"),
        (["--column", "name"], "NAME=VALUE"),
        ([*columns, "--column", "name=B"], "twice"),
        (["AIRBNB", "--content-is", "row"], "prompt or column"),
    ):
        code, said = ask(*words)
        assert code and told in str(said)

"""What people put before the gateway works with it unchanged: LangChain, LiteLLM and lm-eval.

They are installed apart from the project by `make test-clients`, which names their Python in CLIENTS_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from lora_ops.loading import load_base_model
from tests.serving.conftest import Served

PYTHON = os.environ.get("CLIENTS_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="CLIENTS_PYTHON names no Python: see `make test-clients`")

LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI

url = sys.argv[1]
model = ChatOpenAI(model="finance", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=8)
said = model.invoke("AIRBNB * HM2X")
assert said.usage_metadata["output_tokens"] <= 8, said
assert "".join(part.content for part in model.stream("AIRBNB * HM2X")) == said.content
assert [one.content for one in model.batch(["AIRBNB * HM2X"] * 2)] == [said.content] * 2
schema = {"title": "label", "type": "object", "properties": {"label": {"enum": ["Travel", "Food"]}},
          "required": ["label"], "additionalProperties": False}
form = ChatOpenAI(model="finance", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=200)
found = form.with_structured_output(schema, method="json_schema").invoke("AIRBNB * HM2X")
assert found["label"] in ("Travel", "Food"), found
print(json.dumps(said.content))
"""

LITELLM = """
import json, sys
import litellm

url = sys.argv[1]
asked = dict(model="openai/finance", api_base=f"{url}/v1", api_key="none", max_tokens=8, temperature=0,
             messages=[{"role": "user", "content": "AIRBNB * HM2X"}])
said = litellm.completion(**asked).choices[0].message.content
parts = [part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)]
assert "".join(parts) == said, parts
labels = {"structured_outputs": {"choice": ["Travel", "Food"]}}
assert litellm.completion(**asked, extra_body=labels).choices[0].message.content in ("Travel", "Food")
text = litellm.text_completion(model="text-completion-openai/base", prompt="AIRBNB", max_tokens=3,
                               api_base=f"{url}/v1", api_key="none")
assert text.usage.completion_tokens <= 3, text
print(json.dumps(said))
"""

TASK = """
task: labels
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: ["Travel", "Food", "Rent"]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
CHOICES = (" Travel", " Food", " Rent")  # lm-eval puts a space before each


def ran(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([PYTHON, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("script", [LANGCHAIN, LITELLM], ids=["langchain", "litellm"])
def test_a_client_is_answered_as_openais_is(gateway: Served, tmp_path: Path, script: str) -> None:
    said = json.loads(ran("-c", script, gateway.url, cwd=tmp_path).strip().splitlines()[-1])
    turns = [{"role": "user", "content": "AIRBNB * HM2X"}]
    plain = gateway.client().chat.completions.create(model="finance", messages=turns, max_tokens=8)
    assert said == plain.choices[0].message.content


def test_lm_eval_measures_what_transformers_gives(gateway: Served, tiny_base: Path, tmp_path: Path) -> None:
    """Its log-likelihoods of each choice, asked through the gateway, are those of the model itself."""
    texts = ["AIRBNB * HM2X", "LUFTHANSA 220", "REWE 7"]
    rows = [{"text": text, "label": place} for place, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "labels.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    ran(
        "-m", "lm_eval", "--model", "local-completions", "--tasks", "labels", "--include_path", str(tmp_path),
        "--model_args", f"model=base,base_url={gateway.url}/v1/completions,tokenizer={tiny_base},"
        "tokenizer_backend=huggingface,num_concurrent=2,max_retries=1",
        "--output_path", str(tmp_path / "out"), "--log_samples", cwd=tmp_path,
    )  # fmt: skip
    (samples,) = (tmp_path / "out").rglob("samples_labels_*.jsonl")
    found = {
        json.loads(line)["doc"]["text"]: [float(one[0][0]) for one in json.loads(line)["resps"]]
        for line in samples.read_text().splitlines()
    }
    model, tokenizer = load_base_model(tiny_base)
    for text in texts:
        before = len(tokenizer(text)["input_ids"])
        for choice, measured in zip(CHOICES, found[text], strict=True):
            ids = tokenizer(text + choice)["input_ids"]
            with torch.inference_mode():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            wanted = sum(logprobs[at - 1, ids[at]].item() for at in range(before, len(ids)))
            assert measured == pytest.approx(wanted, abs=1e-3)

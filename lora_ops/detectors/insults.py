"""Insults and profanity in English texts, scored by weights that a package ships (alt-profanity-check, MIT).

The weights are a TF-IDF of single words and five calibrated linear classifiers, trained on Wikipedia comments
and tweets. They know words, not what is said with them. They find insults and swearing, miss hatred in polite
words, and take some harmless words for insults. `lora-ops detectors` measures both. A stronger judge is a
setting (`detectors.classifier`).

This module reads the weights without scikit-learn. The package's own code unpickles its files unchecked and
loads 100 MB. Here the files' digests are pinned, the pickles can make no other class, and the probabilities are
the same.
"""

import importlib.util
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from lora_ops.detectors.folding import fold
from lora_ops.errors import Damaged, Unavailable
from lora_ops.hashing import canonical, sha256_bytes, sha256_text
from lora_ops.settings.detectors import DetectorSettings

PACKAGE = "alt-profanity-check==1.9.1"
SHA256 = {
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
}
THRESHOLD = 0.5

_WORD = re.compile(r"\b\w\w+\b")  # scikit-learn's own
_SENTENCE = re.compile(r"[^.!?\n]+")
# What the two pickles name. scikit-learn's classes become plain objects that hold numbers.
_PLAIN = frozenset(
    {
        "sklearn.feature_extraction.text.TfidfVectorizer",
        "sklearn.feature_extraction.text.TfidfTransformer",
        "sklearn.calibration.CalibratedClassifierCV",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.svm._classes.LinearSVC",
    }
)
_NUMBERS = frozenset(
    {
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.float64",
        "numpy._core.multiarray.scalar",
        "joblib.numpy_pickle.NumpyArrayWrapper",
    }
)


class Detector(Protocol):
    """What scores texts; a result names its detector by these four."""

    name: str
    version: str
    digest: str
    threshold: float

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return for each text a score from 0 to 1; from `threshold` on it counts as found."""
        ...


def insult_detector(settings: DetectorSettings, root: Path) -> Detector:
    """Return what finds insults by `detectors` of params.yaml: the packaged weights, or a classifier.

    Raises:
        LoraOpsError: its weights are missing or not the expected ones; nothing may pass unjudged then.
    """
    if settings.classifier is None:
        return packaged_insults(settings.insult_threshold)
    from lora_ops.detectors.classifier import Classifier

    return Classifier(settings.classifier, root)


class PackagedInsults:
    """The packaged weights: for each word its factor and its weight in each of the linear classifiers.

    Args:
        folder: where the package keeps its two files.
        threshold: from which score on a text counts as insulting.

    Raises:
        LoraOpsError: a file is missing or has another digest.
    """

    name = "insults and profanity"
    version = PACKAGE
    digest = sha256_text(canonical(SHA256))

    def __init__(self, folder: Path, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        words, parts = (_read(folder / name) for name in SHA256)
        links = [(part.estimator, link) for part in parts.calibrated_classifiers_ for link in part.calibrators]
        columns = [estimator.coef_[0].tolist() for estimator, _ in links]
        rows = list(zip(words._tfidf.idf_.tolist(), *columns, strict=True))
        self._rows = {word: rows[place] for word, place in words.vocabulary_.items()}
        self._links = [
            (float(estimator.intercept_[0]), float(link.a_), float(link.b_)) for estimator, link in links
        ]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return each text's score, that of its highest sentence.

        Of a whole answer the score would be a mean over its words: a page would hide any insult.
        """
        return [max(map(self.probability, _SENTENCE.findall(fold(text)[0])), default=0.0) for text in texts]

    def probability(self, text: str) -> float:
        """Return the probability that the package's `predict_prob` gives; 0 where it knows no word."""
        square, sums = 0.0, [0.0] * len(self._links)
        for word, count in Counter(_WORD.findall(text.lower())).items():
            row = self._rows.get(word)
            if row is None:
                continue
            value = count * row[0]
            square += value * value
            for place, weight in enumerate(row[1:]):
                sums[place] += value * weight
        if not square:
            return 0.0
        length = math.sqrt(square)
        # Platt's sigmoid of each classifier's margin, then their mean.
        chances = [
            1 / (1 + math.exp(slope * (total / length + intercept) + offset))
            for total, (intercept, slope, offset) in zip(sums, self._links, strict=True)
        ]
        return sum(chances) / len(chances)


@cache
def packaged_insults(threshold: float = THRESHOLD) -> PackagedInsults:
    """Return the detector of the installed package.

    Raises:
        LoraOpsError: the package is not installed, or its weights are others.
    """
    spec = importlib.util.find_spec("profanity_check")  # found, and not imported: its import unpickles
    if spec is None or spec.origin is None:
        raise Unavailable(
            f"The weights that find insults are missing ({PACKAGE} is not installed): run `pip install "
            "-r requirements.lock`."
        )
    return PackagedInsults(Path(spec.origin).parent / "data", threshold)


def _read(path: Path) -> Any:
    """Return what a joblib file of the package holds, after its digest was compared."""
    from joblib.numpy_pickle import NumpyUnpickler

    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unavailable(
            f"The weights that find insults can't be read ({path}: {error.strerror}): install {PACKAGE} again."
        ) from error
    found = sha256_bytes(content)
    if found != SHA256[path.name]:
        raise Damaged(
            f"{path} has the SHA-256 {found[:12]}…, and {PACKAGE} ships {SHA256[path.name][:12]}…: nothing was "
            f"read of it; install {PACKAGE} again."
        )

    class Reader(NumpyUnpickler):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            whole = f"{module}.{name}"
            if whole in _PLAIN:
                return type(name, (), {})
            if whole in _NUMBERS:
                return super().find_class(module, name)
            raise Damaged(f"{path} names {whole}, which is no part of the weights: install {PACKAGE} again.")

    return Reader(str(path), io.BytesIO(content), ensure_native_byte_order=True).load()

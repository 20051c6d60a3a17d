"""Clinical terms and their ICD-10-CM chapter (package simple-icd-10-cm, MIT; CMS data, public domain)."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

# Chapters 20-22 hold causes, contacts and special codes rather than conditions.
CHAPTERS = {
    1: "Infectious diseases",
    2: "Neoplasms",
    3: "Blood",
    4: "Endocrine",
    5: "Mental",
    6: "Nervous system",
    7: "Eye",
    8: "Ear",
    9: "Circulatory",
    10: "Respiratory",
    11: "Digestive",
    12: "Skin",
    13: "Musculoskeletal",
    14: "Genitourinary",
    15: "Pregnancy",
    16: "Perinatal",
    17: "Congenital",
    18: "Symptoms",
    19: "Injury",
}


def load(archive: Path) -> pd.DataFrame:
    """Columns text (term), label (chapter, shortened), category (three characters).

    Terms are the titles of categories and subcategories and the wordings that the tabular list includes
    under any code, of 8 to 80 characters. A wording that stands in two categories is left out: it would
    be in two groups. Longer codes' titles are left out: they repeat the subcategory's with a side or visit.
    """
    with zipfile.ZipFile(archive) as wheel:
        tabular = next(name for name in wheel.namelist() if name.endswith(".xml"))
        tree = ElementTree.fromstring(wheel.read(tabular))
    frame = pd.DataFrame(_terms(tree), columns=["text", "label", "category"])
    frame["text"] = frame["text"].str.split().str.join(" ")
    frame = frame[frame["text"].str.len().between(8, 80)]
    wording = frame["text"].str.lower()
    ambiguous = frame.groupby(wording)["category"].transform("nunique") > 1
    return frame[~ambiguous & ~wording.duplicated()].reset_index(drop=True)


def _terms(tree: ElementTree.Element) -> Iterator[tuple[str, str, str]]:
    for chapter in tree.findall("chapter"):
        label = CHAPTERS.get(int(chapter.findtext("name", "0")))
        if label is None:
            continue
        for category in chapter.findall("section/diag"):
            group = category.findtext("name", "")
            for code in category.iter("diag"):
                if len(code.findtext("name", "")) <= len("A00.1"):
                    yield code.findtext("desc", ""), label, group
                for note in code.findall("inclusionTerm/note"):
                    yield note.text or "", label, group

"""Reading answers as labels: wrong is wrong and right is right, whatever the labels are made of."""

import pytest
from pydantic import ValidationError

from lora_ops.evaluation.labels import label_form, read_label
from lora_ops.evaluation.metrics import exact_match, sample
from lora_ops.settings.data import DataSettings
from lora_ops.settings.labels import NO_LABEL

LABELS = ("Other", "Retail outlets", "Clothing outlets")
SETS = [
    LABELS,
    ("<=50K", ">50K"),
    ("-1", "0", "1"),
    ("*", "**", "***"),
    ("C", "C#", "C++"),
    ("$", "$$", "$$$"),
    ("\N{GRINNING FACE}", "\N{CRYING FACE}", "\N{THUMBS UP SIGN}"),
    ("Yes", "yes", "YES"),
    ("spam", "not spam"),
    ("?", "!"),
    ("A", "A+", "a"),
    ("正面", "负面"),
    ("0", "00", "0.0"),
    ("U.S.", "US"),
]


@pytest.mark.parametrize("labels", SETS, ids=" ".join)
def test_right_answers_score_one_and_all_others_none(labels: tuple[str, ...]) -> None:
    for target in labels:
        for answer in labels:
            assert (read_label(answer, labels) == target) is (answer == target)
            assert exact_match([target], [answer], labels).tolist() == [float(answer == target)]
    rows = [str(row) for row in range(len(labels))]
    assert sample("macro_f1", labels, labels, labels, rows).value == 1
    constant = [labels[0]] * len(labels)
    assert sample("exact_match", labels, constant, labels, rows).value == pytest.approx(1 / len(labels))


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("retail outlets", LABELS, "Retail outlets"),
        ("It is Clothing outlets, not Other.", LABELS, "Clothing outlets"),
        ("another thing", LABELS, NO_LABEL),
        ("", LABELS, NO_LABEL),
        ("The income is <=50K.", ("<=50K", ">50K"), "<=50K"),
        ("I would say -1, not 1", ("-1", "0", "1"), "-1"),
        ("-10", ("-1", "0", "1"), NO_LABEL),
        ("(C#)", ("C", "C++"), NO_LABEL),
        ("It is written in C.", ("C", "C++"), "C"),
        ("****", ("*", "**", "***"), NO_LABEL),
        ("情感是正面的", ("正面", "负面"), "正面"),
        ("yes, YES", ("Yes", "YES"), "YES"),
        ("Retail   \n outlets", LABELS, "Retail outlets"),
    ],
)
def test_read_label_finds_the_label_named_first(answer: str, labels: tuple[str, ...], label: str) -> None:
    assert read_label(answer, labels) == label


def test_label_form_forgives_what_tells_no_labels_apart() -> None:
    form = label_form(LABELS)
    assert form("**retail  outlets**.") == form("Retail outlets")
    assert label_form(("yes", "no"))("Yes!") == "yes"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a b", "a  b"], "the label 'a  b' can't be told from 'a b'"),
        (["caf\u00e9", "cafe\u0301"], "can't be told from 'caf\u00e9'"),
        (["yes", " "], "the label ' ' can't be told from an empty text"),
        (["yes", NO_LABEL], "which names a wrong answer"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str], said: str) -> None:
    rows = {"train": 10, "validation": 5, "test": 5}
    with pytest.raises(ValidationError) as refused:
        DataSettings.model_validate({"source": "rows.csv", "labels": labels, "rows": rows})
    assert said in str(refused.value)

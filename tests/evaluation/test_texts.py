"""Scores of written answers by hand-computed and published cases, in every script, on the oddest answers."""

import subprocess
import sys

import pytest

from lora_ops.evaluation.metrics import copied_sample, length_sample, sample
from lora_ops.evaluation.texts import chrf, copied_share, lengths, rouge_l, words
from tests.conftest import ROOT

TEXT = "Use the cache to keep a view. The cache framework is tried and tested."


def test_words_keep_marks_inside_and_drop_them_outside() -> None:
    assert words("Don't “use” urls.py, many-to-many: OK?") == ["don't", "use", "urls.py", "many-to-many", "ok"]


def test_chrf_is_that_of_the_paper() -> None:
    """Popović (2015): F2 of character n-grams without spaces; here every n-gram of `abc` up to three."""
    assert chrf(["abc", "abc"], ["abc", "xyz"]).tolist() == [1, 0]
    # 1-grams 3 of 4 and 3 of 3, 2-grams 2 of 3 and 2 of 2, 3-grams 1 of 2 and 1 of 1.
    precision, recall = (3 / 4 + 2 / 3 + 1 / 2) / 3, 1.0
    assert chrf(["abc"], ["ab cd"])[0] == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_rouge_l_counts_words_in_order_by_their_stem() -> None:
    # "custom manag" is in both, in this order: 2 of 3 words and 2 of 4.
    found = rouge_l(["Custom managers explained"], ["A custom model manager"])[0]
    assert found == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


@pytest.mark.parametrize("text", ["Ünïcode köln", "日本語 の 見出し", "عنوان القسم", "Δοκιμή ενότητας"])
def test_text_of_any_script_equals_itself(text: str) -> None:
    """rouge-score's own words are a to z: it gives nothing for these."""
    assert (chrf([text], [text])[0], rouge_l([text], [text])[0], copied_share([text], [text])[0]) == (1, 1, 1)


def test_copied_share_takes_the_longest_runs() -> None:
    answers = ["The cache framework", "Caching views", "Keep the cache", "the the cache", ""]
    assert copied_share([TEXT] * 5, answers).tolist() == [1, 0, 1, 1, 0]
    assert copied_share([TEXT], ["How the cache framework works"])[0] == pytest.approx(3 / 5)


@pytest.mark.parametrize("answer", ["", " ", "?!", "word " * 2000, "\u200b", "🙂" * 50, "a" * 10_000])
def test_odd_answers_have_scores_between_0_and_1(answer: str) -> None:
    for scores in (chrf([TEXT], [answer]), rouge_l([TEXT], [answer]), copied_share([TEXT], [answer])):
        assert scores.shape == (1,) and 0 <= scores[0] <= 1
    assert lengths([answer])[0] == len(answer.split())


def test_samples_of_texts_are_means_over_rows() -> None:
    targets, groups = ["The cache"] * 4, ["a", "a", "b", "c"]
    answers = ["The cache", "The cache", "Nothing alike", ""]
    for metric in ("chrf", "rouge_l"):
        found = sample(metric, targets, answers, (), groups)
        assert found.parts.shape == (3, 2) and 0.5 <= found.value < 0.6
    assert copied_sample([TEXT] * 4, answers, groups).value == 0.5
    share = length_sample(targets, answers, groups).value
    assert share / (1 - share) == pytest.approx(6 / 8)


def test_measuring_labels_loads_no_library_of_texts() -> None:
    """nltk brings 100 MB, and the registry counts again whatever is registered."""
    code = (
        "import sys, lora_ops.registry.commands, lora_ops.evaluation.compare, lora_ops.tracking.evaluation\n"
        "print([name for name in ('nltk', 'sacrebleu', 'rouge_score', 'lxml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")

"""What an adapter is compared with besides its base: baselines for labels and one for texts."""

from collections import Counter
from collections.abc import Sequence
from statistics import median


def majority_baseline(targets: Sequence[str], rows: int) -> list[str]:
    """Return the most frequent training target, `rows` times."""
    return [Counter(targets).most_common(1)[0][0]] * rows


def tfidf_baseline(texts: Sequence[str], targets: Sequence[str], questions: Sequence[str]) -> list[str]:
    """Return labels by TF-IDF of words and of 2- to 5-character pieces with logistic regression.

    Trained on the same rows as the adapter: what a day's work without a language model gives.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    if len(set(targets)) == 1:
        return majority_baseline(targets, len(questions))  # a regression needs two classes
    features = make_union(TfidfVectorizer(), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)))
    model = make_pipeline(features, LogisticRegression(C=10, max_iter=2000))
    model.fit(list(texts), list(targets))
    return [str(label) for label in model.predict(list(questions))]


def lead_words_baseline(targets: Sequence[str], questions: Sequence[str]) -> list[str]:
    """Return the first words of each question, as many as the median training target has.

    Texts begin with what they are about, so their beginning is hard to beat: the "lead" baseline of summaries
    (Nenkova, Automatic Text Summarization of Newswire, AAAI 2005).
    """
    count = max(1, int(median(len(target.split()) for target in targets) + 0.5))
    return [" ".join(question.split()[:count]) for question in questions]

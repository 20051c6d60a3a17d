"""What an adapter is compared with besides its base: baselines for labels and one for texts."""

from collections.abc import Mapping, Sequence
from statistics import median


def majority_baseline(shares: Mapping[str, float], rows: int) -> list[str]:
    """Return the label with the largest share of the source, `rows` times.

    Training rows do not say which one that is: `data.balance` makes all labels equally frequent there, and
    held-out rows keep the shares of the source.
    """
    return [max(shares, key=lambda label: shares[label])] * rows


def tfidf_baseline(texts: Sequence[str], targets: Sequence[str], questions: Sequence[str]) -> list[str]:
    """Return labels by TF-IDF of words and of 2- to 5-character pieces with logistic regression.

    Trained on the same rows as the adapter: what a day's work without a language model gives.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    if len(set(targets)) == 1:
        return [targets[0]] * len(questions)  # a regression needs two classes
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

"""How long the next answer of a kind will probably be."""

from lora_ops.serving.answer_lengths import KINDS, LAST, UNKNOWN, AnswerLengths


def test_expected_is_bounded_before_anything_is_known() -> None:
    lengths = AnswerLengths()
    assert lengths.expected("finance", "finance@1", 8000) == UNKNOWN
    assert lengths.expected("finance", "finance@1", 16) == 16


def test_expected_follows_the_last_answers() -> None:
    lengths = AnswerLengths()
    for _ in range(LAST):
        lengths.add("finance", "finance@1", 8000, 500)
    assert lengths.expected("finance", "finance@1", 8000) == 500
    for _ in range(LAST):
        lengths.add("finance", "finance@1", 8000, 3)
    assert lengths.expected("finance", "finance@1", 8000) == 3


def test_expected_is_high_among_mixed_lengths() -> None:
    lengths = AnswerLengths()
    for number in range(LAST):
        lengths.add("finance", "finance@1", 8000, 900 if number % 8 == 0 else 3)
    assert lengths.expected("finance", "finance@1", 8000) == 900


def test_expected_never_exceeds_max_tokens() -> None:
    lengths = AnswerLengths()
    lengths.add("finance", "finance@1", 31, 31)
    assert lengths.expected("finance", "finance@1", 17) == 17


def test_kinds_of_answers_know_nothing_of_each_other() -> None:
    """Not another tenant's, another adapter's, nor those that a far lower max_tokens cut."""
    lengths = AnswerLengths()
    lengths.add("finance", "base", 8000, 3)
    for tenant, adapter, most in (
        ("media", "base", 8000),
        ("finance", "finance@1", 8000),
        ("finance", "base", 1000),
    ):
        assert lengths.expected(tenant, adapter, most) == UNKNOWN


def test_lengths_of_kinds_long_unseen_are_forgotten() -> None:
    lengths = AnswerLengths()
    lengths.add("finance", "base", 8000, 3)
    for number in range(KINDS):
        lengths.add("finance", f"finance@{number}", 8000, 5)
    assert lengths.expected("finance", "base", 8000) == UNKNOWN
    assert lengths.expected("finance", "finance@0", 8000) == 5

"""The end of a text that a client cut off: what may be most of an identifier counts as one."""

import pytest

from lora_ops.detectors.open_ends import open_end


@pytest.mark.parametrize(
    ("before", "begun"),
    [
        ("Write to ", "jane.doe@"),
        ("Write to ", "jane.doe@example"),
        ("Card ", "4111 1111 1111 111"),
        ("It is ", "411111111111111"),
        ("It is ", "4111-1111-1"),
        ("IBAN ", "DE89 3704 0044 0532 0130 0"),
        ("IBAN ", "GB29NWBK601613"),
        ("Call ", "+49 30 12345"),
        ("Call me on ", "555014"),
        ("It is ", "(212) 555-01"),
        ("SSN ", "12345678"),
        ("It is ", "078-05-112"),
        ("\uff14\uff11 of ", "\uff14\uff11\uff11\uff11 \uff11\uff11\uff11\uff11 1111"),
        ("DOB: 1970", "-05-1"),
    ],
)
def test_open_end_is_found(before: str, begun: str) -> None:
    found = open_end(before + begun)
    assert found and found.start <= len(before) and found.end == len(before + begun)


@pytest.mark.parametrize(
    "text",
    [
        "", "We sold 1234567", "in 2026", "on 2026-11-26", "on 26.11.2026", "version 1.2.3", "1,234,567",
        "at 12:30:45", "see @jane", "the DE89 which is a road to nowhere", "It costs 12.50", "x1234567890",
        "Call +49 30 1234567 at nine.",
    ],
)  # fmt: skip
def test_other_ends_are_left_alone(text: str) -> None:
    assert open_end(text) is None

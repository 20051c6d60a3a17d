"""Verdicts over several guardrails: advance, roll back, or hold with a forecast."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lora_ops.rollout.quantile_sequence import QuantileComparison
from lora_ops.rollout.sample_ratio import Phase, SampleRatio, sample_ratio
from lora_ops.rollout.sequential import DifferenceSequence
from lora_ops.rollout.verdicts import Guardrail, Verdict, verdict

BROKEN = sample_ratio([Phase((300, 100), (0.5, 0.5))])


def pairs(*differences: float, margin: float = 0.05) -> DifferenceSequence:
    sequence = DifferenceSequence(margin, 0.05)
    sequence.add(differences)
    return sequence


GOOD = pairs(*[0.0] * 300)
BAD = pairs(*[0.5] * 100)


def judged(rails: dict[str, Guardrail], rate: float = 60, ratio: SampleRatio | None = None) -> Verdict:
    return verdict(rails, alpha=0.05, least_users=50, users_per_hour=rate, ratio=ratio)


def test_good_version_advances() -> None:
    latency = QuantileComparison(0.95, 0.5, 0.05)
    generator = np.random.default_rng(0)
    latency.add(generator.lognormal(0, 0.3, 2000), generator.lognormal(0, 0.3, 2000))
    found = judged({"errors": GOOD, "latency": latency}, ratio=sample_ratio([Phase((200, 210), (0.5, 0.5))]))
    assert (found.decision, found.waiting) == ("advance", ())
    assert str(found) == "advance: errors, latency are not worse by the margin (alpha 0.05)"


def test_breach_rolls_back_and_is_named() -> None:
    found = judged({"errors": BAD, "tokens": GOOD})
    assert (found.decision, found.breached) == ("roll back", ("errors",))
    assert "errors is worse by more than the margin" in str(found)


def test_breach_needs_no_minimum_of_users() -> None:
    found = verdict({"errors": pairs(*[1.0] * 12)}, alpha=0.05, least_users=1000, users_per_hour=0)
    assert found.decision == "roll back"


def test_evidence_of_several_guardrails_adds_up() -> None:
    """No guardrail alone is named beyond doubt, but that one of them is breached is shown."""
    weak, weaker = pairs(*[1.0] * 8), pairs(*[1.0] * 7)
    assert weaker.breach < 20 < weak.breach
    found = judged({"errors": weak, "risk": weaker})
    assert found.decision == "roll back" and found.breached == ("errors",)
    assert judged({"errors": weak, "risk": pairs(*[0.0] * 8)}).decision == "hold"


def test_most_likely_guardrail_is_named() -> None:
    """That any guardrail is breached is shown, but not which: no corrected e-value reaches 20."""

    @dataclass
    class Shown:
        breach: float
        count: int = 9
        non_inferior: float = 0.0

        def pairs_until(self, threshold: float, *, breach: bool = False) -> int | None:
            raise NotImplementedError

    found = judged({"errors": Shown(24), "risk": Shown(25), "tokens": Shown(11)})
    assert (found.decision, found.breached) == ("roll back", ("risk",))
    assert "a guardrail is breached, most likely risk (e-value 20, limit 20)" in str(found)


def test_hold_says_how_many_users_and_hours() -> None:
    found = judged({"errors": pairs(*[0.0] * 10), "tokens": GOOD}, rate=20)
    assert found.decision == "hold" and found.waiting == ("errors",)
    assert found.users is not None and 40 <= found.users <= 200
    assert found.hours == found.users / 20
    assert str(found) == f"hold: about {found.users} more users, {found.hours:.1f} hours (for errors)"


def test_hold_forecasts_the_minimum_of_users() -> None:
    found = verdict({"errors": GOOD}, alpha=0.05, least_users=1000, users_per_hour=100)
    assert (found.decision, found.users, found.hours) == ("hold", 700, 7)


def test_no_traffic_holds() -> None:
    empty = judged({"errors": pairs()}, rate=0)
    assert (empty.decision, empty.users, empty.hours) == ("hold", None, None)
    assert str(empty) == "hold: no users yet for errors; how many are needed can't be told"
    ended = judged({"errors": pairs(*[0.0] * 10)}, rate=0)
    assert ended.decision == "hold" and ended.users and ended.hours is None
    assert "no traffic now" in str(ended)


def test_hold_of_a_shadow_counts_requests() -> None:
    found = verdict({"errors": GOOD}, alpha=0.05, least_users=1000, users_per_hour=100, unit="requests")
    assert str(found) == "hold: about 700 more requests, 7.0 hours"


def test_hold_on_the_wrong_side_has_no_forecast() -> None:
    found = judged({"errors": pairs(0.2, 0.1, 0.0, 0.2), "tokens": GOOD})
    assert (found.decision, found.users, found.hours) == ("hold", None, None)
    assert "can't be told: errors so far worse than allowed" in str(found)


def test_broken_assignment_never_advances_and_is_said_first() -> None:
    found = judged({"errors": GOOD}, ratio=BROKEN)
    assert found.decision == "hold" and str(found).startswith("hold: assignment is broken")
    found = judged({"errors": BAD}, ratio=BROKEN)
    assert found.decision == "roll back" and str(found).startswith("roll back: assignment is broken")


def test_equal_versions_are_rarely_rolled_back() -> None:
    """1,000 users, a verdict after each of them, four guardrails on the same users."""
    generator = np.random.default_rng(7)
    rolled = 0
    for _ in range(40):
        rails: dict[str, Any] = {name: pairs(margin=0.0) for name in "abcd"}
        same = generator.normal(0, 0.2, 200)
        for shared in same:
            for rail in rails.values():
                rail.add([float(np.clip(shared + generator.normal(0, 0.1), -1, 1))])
            if judged(rails).decision == "roll back":
                rolled += 1
                break
    assert rolled <= 6  # 40 runs at 0.05 exceed 6 with a probability of 0.002


@pytest.mark.parametrize(("alpha", "least", "rate"), [(0, 50, 1), (0.05, 0, 1), (0.05, 50, math.nan)])
def test_verdict_refuses_bad_settings(alpha: float, least: int, rate: float) -> None:
    with pytest.raises(ValueError, match="out of range|alpha must lie"):
        verdict({"errors": GOOD}, alpha=alpha, least_users=least, users_per_hour=rate)
    with pytest.raises(ValueError, match="without a guardrail"):
        judged({})

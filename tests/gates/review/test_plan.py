"""The plan of a review: what is drawn, and what a plan can't be made of."""

from collections import Counter
from datetime import UTC, datetime

import pandas as pd
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.gates.review.plan import About, Choice, make_plan
from lora_ops.gates.review.sessions import guidelines_of
from lora_ops.records.review import ReviewPlan
from lora_ops.settings.params import load_settings
from tests.conftest import ROOT

ABOUT = About("finance", "finance@2", "0" * 64, "1" * 64, "base", None, None)
AT = datetime(2026, 3, 2, tzinfo=UTC)
PEOPLE = ("ben", "chen", "dana")


def answers(rows: int = 300) -> pd.DataFrame:
    """Answers of which every fifth is the same on both sides, in slices of 60, 30 and 10 %."""
    places = range(rows)
    return pd.DataFrame(
        {
            "row": [str(place) for place in places],
            "slice": ["a" if place % 10 < 6 else "b" if place % 10 < 9 else "c" for place in places],
            "adapter": [f"answer {place}" for place in places],
            "other": [f"answer {place}" if place % 5 == 0 else "other" for place in places],
        }
    )


def plan(seed: int = 7, pairs: int = 40, people: tuple[str, ...] = PEOPLE, annotators: int = 2) -> ReviewPlan:
    return make_plan(ABOUT, answers(), Choice(people, annotators, pairs, seed), AT)


def test_plan_is_the_same_for_the_same_seed_only() -> None:
    assert plan() == plan()
    assert plan(seed=8).tasks != plan().tasks


def test_plan_gives_each_slice_its_share() -> None:
    """Of 240 differing rows 120, 90 and 30 are in the slices."""
    chosen = Counter(pair.slice for pair in plan().pairs if pair.differs)
    assert chosen == {"a": 20, "b": 15, "c": 5}


def test_plan_leaves_out_equal_answers_but_for_checks() -> None:
    made = plan()
    assert sum(pair.differs for pair in made.pairs) == 40
    assert sum(not pair.differs for pair in made.pairs) == 2
    assert (made.rows, made.differing) == (300, 240)


def test_plan_gives_each_pair_to_as_many_as_must_judge_it() -> None:
    made = plan()
    seen = Counter(task.row for tasks in made.tasks.values() for task in tasks if not task.repeat)
    assert set(seen.values()) == {2} and len(seen) == 42
    assert all(27 <= sum(not task.repeat for task in tasks) <= 29 for tasks in made.tasks.values())


def test_plan_draws_sides_for_each_reviewer() -> None:
    made = plan(people=("ben", "chen"))
    sides = {
        person: {task.row: task.adapter for task in tasks if not task.repeat}
        for person, tasks in made.tasks.items()
    }
    assert 5 < sum(sides["ben"][row] != sides["chen"][row] for row in sides["ben"]) < 37
    assert all(10 < list(one.values()).count("left") < 32 for one in sides.values())


def test_plan_repeats_pairs_late_with_sides_swapped() -> None:
    for tasks in plan().tasks.values():
        first = {task.row: (place, task) for place, task in enumerate(tasks) if not task.repeat}
        repeats = [(place, task) for place, task in enumerate(tasks) if task.repeat]
        assert len(repeats) == 3
        for place, task in repeats:
            before, original = first[task.row]
            assert place - before > len(tasks) // 5 and task.adapter != original.adapter


def test_plan_needs_as_many_reviewers_as_must_judge() -> None:
    with pytest.raises(LoraOpsError, match=r"Each pair needs 2 reviewers .* there are 1 \(ben\): name more"):
        plan(people=("ben",))


def test_plan_needs_two_answers_that_differ() -> None:
    same = answers().assign(other=lambda frame: frame["adapter"] + " \n")
    with pytest.raises(LoraOpsError, match="gave the same answer to each of 300 rows"):
        make_plan(ABOUT, same, Choice(PEOPLE, 2, 40, 7), AT)


@pytest.mark.parametrize("tenant", load_settings(ROOT).tenants)
def test_every_tenant_tells_reviewers_how_to_judge(tenant: str) -> None:
    text = guidelines_of(ROOT, tenant)
    assert text is not None and text.startswith("# How to judge") and "accuracy" in text

"""A tenant's route as it is kept: whom it names, and what it refuses."""

import pytest
from pydantic import ValidationError

from lora_ops.records.route import RouteRecord


def test_user_hash_differs_by_salt_and_takes_any_text() -> None:
    here, there = RouteRecord(user_salt="one salt"), RouteRecord(user_salt="another salt")
    users = ["", "ana", "a\0b", "half a character \ud83d", "x" * 1_000_000]
    hashes = {route.user_hash(user) for route in (here, there) for user in users}
    assert len(hashes) == 2 * len(users)
    assert RouteRecord(user_salt="one salt", users={here.user_hash("ana"): 3}).users[here.user_hash("ana")] == 3


@pytest.mark.parametrize("segment", ["", "two words", "a/b", "x" * 65, "caf\u00e9", "line\n"])
def test_route_refuses_a_segment_that_no_request_can_name(segment: str) -> None:
    with pytest.raises(ValidationError, match="segments"):
        RouteRecord(segments={segment: 3})
    assert RouteRecord(segments={"eu-west_1.beta": 3}).segments == {"eu-west_1.beta": 3}

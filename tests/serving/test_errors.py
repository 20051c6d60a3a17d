"""What an error tells a client, and what only the log is told."""

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.serving.adapters import AdapterUnavailable
from lora_ops.serving.engine import EngineError
from lora_ops.serving.errors import as_api_error
from lora_ops.serving.limits import NeverFits, TooMany


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (EngineError("http://10.0.0.7:8001 answers 500: CUDA"), 502, "The engine failed; the gateway's log"),
        (
            AdapterUnavailable("a@1 can't be loaded: /srv/.registry/objects/ab is not the file."),
            503,
            "a@1 can't be loaded: … is not the file.",
        ),
        (AdapterUnavailable("a@1: http://10.0.0.7:8001 refuses"), 503, "a@1: … refuses"),
        (LoraOpsError("The registry in /srv/x.sqlite can't be read"), 503, "The registry in … can't be read"),
        (NeverFits("too large"), 400, "too large"),
        (TooMany("slow down", 2), 429, "slow down"),
        (KeyError("secret"), 500, "The gateway failed"),
    ],
)
def test_a_client_is_told_what_it_can_act_on_and_nothing_of_the_inside(
    error: Exception, status: int, said: str
) -> None:
    problem = as_api_error(error)
    assert problem.status == status and problem.message.startswith(said)
    assert "10.0.0.7" not in problem.message and "/srv" not in problem.message

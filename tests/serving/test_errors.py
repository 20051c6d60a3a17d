"""What an error tells a client, and what only the log is told."""

import pytest

from lora_ops.engines.protocol import EngineError
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.serving.adapters import AdapterUnavailable
from lora_ops.serving.errors import as_api_error
from lora_ops.serving.rate_limits import NeverFits, TooMany


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


@pytest.mark.parametrize(
    ("error", "code", "header"),
    [
        (AdapterUnavailable("a@1 can't be loaded: no room.", 4.2), "adapter_unavailable", {"retry-after": "5"}),
        (AdapterUnavailable("a@1 was trained on another one.", None), "adapter_unavailable", {}),
        (AdapterUnavailable("a@1: a file was changed.", None, damaged=True), "adapter_damaged", {}),
        (Damaged("entry 3 was changed"), "registry_damaged", {}),
        (LoraOpsError("The registry is busy"), "unavailable", {"retry-after": "1"}),
    ],
)
def test_permanent_fault_carries_no_retry_after(error: Exception, code: str, header: dict[str, str]) -> None:
    problem = as_api_error(error)
    assert (problem.status, problem.code, problem.headers()) == (503, code, header)

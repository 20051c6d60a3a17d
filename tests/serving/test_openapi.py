"""Every operation of the OpenAPI, attacked with what its schema allows and with what it does not."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks

from tests.serving.conftest import Served

# A name or length that the schema can't know makes a valid body a 400 or 404: acceptance is not asked for.
NOT_ASKED = [openapi_checks.positive_data_acceptance, openapi_checks.ignored_auth]
OPERATIONS = {
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /tokenize",
    "POST /detokenize",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/load_lora_adapter",
    "POST /v1/unload_lora_adapter",
    "GET /health",
    "GET /ping",
    "POST /ping",
    "GET /version",
    "GET /ready",
    "GET /metrics",
    "GET /console",
    "GET /console/data",
}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_gateway_or_its_promises(gateway: Served, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    # While there are no keys, none is needed, so that a wrong one is no fault.
    schema.config.generation.update(with_security_parameters=False)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {f"{one.method.upper()} {one.path}" for one in operations} == OPERATIONS
    for operation in operations:
        has_body = operation.method.upper() == "POST" and operation.path != "/ping"
        if mode is GenerationMode.NEGATIVE and not has_body:
            continue  # nothing in it can be wrong

        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def attack(case: Case) -> None:
            case.call_and_validate(timeout=60, excluded_checks=NOT_ASKED)

        attack()

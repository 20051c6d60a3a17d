"""What an answer says of the tokens that it took."""

from pathlib import Path

from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.settings.serving import OpenAIEngineSettings
from tests.engines.vllm_servers import StrictDoor
from tests.serving.conftest import Clone, Served, served

TURNS = [{"role": "user", "content": "AIRBNB"}]


def test_usage_names_the_tokens_that_the_engine_had_kept(clone: Clone, tiny_base: Path) -> None:
    """The server behind says that it had kept all tokens of a prompt but one."""
    door = StrictDoor(tiny_base)
    door.start()
    try:
        engine = OpenAIEngine(OpenAIEngineSettings(url=door.url))
        with served(clone.root, clone.settings(), engine) as running:
            client = running.client()
            whole = client.chat.completions.create(model="base", messages=TURNS, max_tokens=4, n=2)
            assert whole.usage and whole.usage.prompt_tokens_details
            assert whole.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1
            stream = client.completions.create(
                model="base", prompt=["A B C", "A"], stream=True, stream_options={"include_usage": True}
            )
            usage = list(stream)[-1].usage
            assert usage and usage.prompt_tokens_details
            assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 2
    finally:
        door.stop()


def test_usage_names_no_kept_tokens_where_nobody_knows(gateway: Served) -> None:
    usage = gateway.client().completions.create(model="base", prompt="AIRBNB", max_tokens=2).usage
    assert usage and usage.prompt_tokens_details is None

"""What users of the official `openai` client see."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from lora_ops.serving.rendering import CompletionRendering
from lora_ops.serving.tokenization import Tokenization
from tests.serving.conftest import SYSTEM, Served, token_counts

QUESTION = [{"role": "user", "content": "AIRBNB * HM2X"}]
WRONG_SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}


@pytest.mark.parametrize("model", ["finance", "finance@1", "healthcare", "base", "tiny-random"])
def test_a_chat_is_answered_by_a_tenant_a_version_and_the_base(shared_gateway: Served, model: str) -> None:
    answer = shared_gateway.client().chat.completions.create(model=model, messages=QUESTION, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_each_adapter_and_the_base_answer_differently(shared_gateway: Served) -> None:
    client = shared_gateway.client()
    answers = {
        model: client.completions.create(model=model, prompt="AIRBNB", max_tokens=16).choices[0].text
        for model in ("finance@1", "finance@2", "healthcare", "base")
    }
    assert len(set(answers.values())) == 4, answers


@pytest.mark.parametrize("model", ["finance", "finance@1", "base"])
def test_a_streamed_chat_says_the_same_as_a_whole_one(shared_gateway: Served, model: str) -> None:
    client = shared_gateway.client()
    whole = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12)
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    text = "".join(choice.delta.content or "" for event in events for choice in event.choices)
    assert text == whole.choices[0].message.content
    assert token_counts(events[-1].usage) == token_counts(whole.usage)
    assert {(event.id, event.model, event.system_fingerprint) for event in events} == {
        (events[0].id, whole.model, whole.system_fingerprint)
    }
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_streamed_completion_says_the_same_as_a_whole_one(shared_gateway: Served) -> None:
    client = shared_gateway.client()
    options = {"model": "finance", "prompt": "AIRBNB * HM2X", "max_tokens": 12, "logprobs": 2}
    whole = client.completions.create(**options).choices[0]
    events = [event.choices[0] for event in client.completions.create(**options, stream=True)]
    assert "".join(event.text for event in events) == whole.text
    assert events[-1].finish_reason == whole.finish_reason
    streamed = [each.logprobs for each in events if each.logprobs]
    for field in ("tokens", "text_offset"):
        assert [value for one in streamed for value in getattr(one, field)] == getattr(whole.logprobs, field)


def test_headers_and_fingerprint_say_who_answered_and_why(shared_gateway: Served) -> None:
    raw = shared_gateway.client().chat.completions.with_raw_response.create(
        model="finance", messages=QUESTION, max_tokens=2, extra_headers={"X-Request-ID": "order-7"}
    )
    answer, headers = raw.parse(), raw.headers
    assert headers["x-lora-ops-adapter"] == answer.model == "finance@2"
    assert headers["x-lora-ops-route"] == "candidate"
    assert headers["x-lora-ops-base-model"] == "tiny-random"
    assert headers["x-request-id"] == "order-7"
    digest = headers["x-lora-ops-digest"]
    assert len(digest) == 64
    assert answer.system_fingerprint.startswith(f"finance@2:{digest[:12]}/tiny-random:")
    assert answer.system_fingerprint.endswith("/candidate")


@pytest.mark.parametrize(
    ("model", "messages", "said"),
    [
        ("finance", QUESTION, "adapter"),
        ("finance", [{"role": "system", "content": "Be brief."}, *QUESTION], "request"),
        ("finance", [{"role": "developer", "content": "Be brief."}, *QUESTION], "request"),
        ("base", QUESTION, "none"),
    ],
)
def test_an_adapter_is_asked_with_the_system_prompt_that_it_was_trained_with(
    shared_gateway: Served, model: str, messages: list, said: str
) -> None:
    create = shared_gateway.client().chat.completions.with_raw_response.create
    raw = create(model=model, messages=messages, max_tokens=1)
    assert raw.headers["x-lora-ops-system-prompt"] == said
    if said == "adapter":
        own = create(model=model, messages=[{"role": "system", "content": SYSTEM}, *messages], max_tokens=1)
        assert token_counts(raw.parse().usage) == token_counts(own.parse().usage)


def test_n_answers_have_seeds_of_their_own_and_repeat(shared_gateway: Served) -> None:
    client = shared_gateway.client()

    def ask() -> list[str]:
        answer = client.chat.completions.create(
            model="finance", messages=QUESTION, n=3, temperature=1.5, seed=5, max_tokens=12
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content or "" for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_n_answers_can_be_streamed_together(shared_gateway: Served) -> None:
    stream = shared_gateway.client().chat.completions.create(
        model="finance", messages=QUESTION, n=3, temperature=1.0, seed=1, max_tokens=6, stream=True
    )
    finished = [c.index for event in stream for c in event.choices if c.finish_reason]
    assert sorted(finished) == [0, 1, 2]


def test_several_prompts_get_an_answer_each(shared_gateway: Served) -> None:
    prompts = ["AIRBNB", "LUFTHANSA"]
    answer = shared_gateway.client().completions.create(model="base", prompt=prompts, max_tokens=4)
    alone = [shared_gateway.client().completions.create(model="base", prompt=p, max_tokens=4) for p in prompts]
    assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in alone]
    assert answer.usage and answer.usage.prompt_tokens == sum(
        one.usage.prompt_tokens for one in alone if one.usage
    )


def test_a_stop_text_ends_the_answer_before_it(shared_gateway: Served) -> None:
    client = shared_gateway.client()
    whole = client.completions.create(model="finance", prompt="AIRBNB", max_tokens=24).choices[0].text
    stop = whole[4:6]
    cut = client.completions.create(model="finance", prompt="AIRBNB", max_tokens=24, stop=[stop, "never"])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_name_the_likeliest_tokens_first(shared_gateway: Served) -> None:
    answer = shared_gateway.client().chat.completions.create(
        model="finance", messages=QUESTION, max_tokens=3, logprobs=True, top_logprobs=4
    )
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content
    for one in content:
        assert one.logprob <= 0 and len(one.top_logprobs) == 4
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob)  # greedy takes the likeliest
        assert bytes(one.bytes or []) == one.token.encode()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_the_limit_of_the_client(shared_gateway: Served, name: str) -> None:
    answer = shared_gateway.client().chat.completions.create(model="base", messages=QUESTION, **{name: 3})
    assert answer.usage and answer.usage.completion_tokens <= 3


def test_models_are_listed_with_what_they_stand_for(shared_gateway: Served) -> None:
    models = {model.id: model for model in shared_gateway.client().models.list()}
    assert list(models) == ["finance", "healthcare", "finance@1", "finance@2", "healthcare@1", "tiny-random"]
    assert (models["finance"].root, models["finance"].parent) == ("finance@2", "tiny-random")  # type: ignore[attr-defined]
    assert models["tiny-random"].parent is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"length_penalty": 2.0}, "length_penalty", "not supported"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "not supported"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "Input should be"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools", "takes no tools"),
        ({"functions": [{"name": "x"}]}, "functions", "not supported"),
        ({"response_format": {"type": "json"}}, "response_format", "response_format.type: Input should be"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema is needed where"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
            None,
            "form can't",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "needs one of choice, regex,"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "got 2"),
        ({"structured_outputs": {"regex": "(a"}}, None, "form can't be read"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, None, "form can't be read"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, None, "more than 65536 characters"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, None, "leave out min_tokens"),
        ({"temprature": 0}, "temprature", "temprature: this parameter is not known here"),
        ({"stop": ["x"] * 17}, "stop", "stop: List should have at most 16 items"),
        ({"logit_bias": {"one": 1}}, "logit_bias", "logit_bias.one: "),
        ({"logit_bias": {"100000": 1}}, None, "Token 100000 does not exist"),
        ({"stop_token_ids": [100_000]}, None, "Token 100000 does not exist"),
        ({"min_tokens": 5, "max_tokens": 4}, None, "min_tokens is 5, and at most 4 are asked for"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "of a user's message must be a text"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages", "messages.0.content: Input should be"),
        ({"messages": []}, "messages", "at least 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages",
            "",
        ),
        ({"stream_options": {"include_usage": True}}, None, "stream_options needs stream"),
        ({"max_tokens": 100_000}, "messages", "have 2048 tokens together"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages", "this is a prompt of"),
        (
            {"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system"}]},
            None,
            "a control token",
        ),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(
    shared_gateway: Served, change: dict, field: str | None, text: str
) -> None:
    body = {"model": "finance", "messages": QUESTION, **change}
    answer = shared_gateway.http().post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error" and error["param"] == field
    assert text in error["message"]


@pytest.mark.parametrize(
    "name",
    ["store", "service_tier", "parallel_tool_calls", "tools", "audio", "functions", "logit_bias", "min_p"],
)
def test_what_openai_knows_may_be_null(shared_gateway: Served, name: str) -> None:
    body = {"model": "finance", "messages": QUESTION, "max_tokens": 1, name: None}
    assert shared_gateway.http().post("/v1/chat/completions", json=body).status_code == 200


# What LangChain, LiteLLM and vLLM's own client send by themselves.
NEUTRAL = {
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "repetition_penalty": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "top_p": 1.0,
    "min_tokens": 0,
    "stop_token_ids": [],
    "ignore_eos": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "logit_bias": {},
    "service_tier": "default",
    "priority": 0,
    "response_format": {"type": "text"},
    "cache_salt": "mine",
    "stream": False,
    "echo": False,
    "bad_words": [],
    "length_penalty": 1.0,
    "use_beam_search": False,
    "detokenize": True,
    "truncate_prompt_tokens": None,
    "prompt_logprobs": None,
    "return_token_ids": None,
}
CHAT_ONLY = {"verbosity": "medium", "top_logprobs": 0, "tool_choice": "none", "chat_template_kwargs": {}} | {
    "reasoning_effort": "low",
    "chat_template": None,
    "documents": None,
}


def test_what_changes_no_token_is_taken(shared_gateway: Served) -> None:
    create = shared_gateway.client().chat.completions.create
    plain = create(model="finance", messages=QUESTION, max_tokens=6)
    said = create(model="finance", messages=QUESTION, max_tokens=6, extra_body=NEUTRAL | CHAT_ONLY)
    assert said.choices[0].message == plain.choices[0].message
    typed = [{**turn, "type": "text"} for turn in QUESTION]  # as lm-eval writes a turn
    said = create(model="finance", messages=typed, max_tokens=6)
    assert said.choices[0].message == plain.choices[0].message


def test_what_changes_no_token_of_a_text_is_taken(shared_gateway: Served) -> None:
    create = shared_gateway.client().completions.create
    plain = create(model="finance", prompt="AIRBNB", max_tokens=6)
    said = create(model="finance", prompt="AIRBNB", max_tokens=6, extra_body=NEUTRAL)
    assert said.choices[0].text == plain.choices[0].text


def test_a_completion_has_the_form_of_its_response_format(shared_gateway: Served) -> None:
    schema = {"enum": ["Travel", "Transfer"]}
    form = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    body = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 30, "response_format": form}
    answer = shared_gateway.http().post("/v1/completions", json=body)
    assert json.loads(answer.json()["choices"][0]["text"]) in schema["enum"], answer.text
    both = shared_gateway.http().post("/v1/completions", json={**body, "structured_outputs": {"choice": ["a"]}})
    assert both.status_code == 400 and "both give the answer a form" in both.json()["error"]["message"]


def test_sampling_is_shaped_as_asked(shared_gateway: Served) -> None:
    def ask(**options: object) -> list[str]:
        body = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 12, "ignore_eos": True, "logprobs": 0}
        answer = shared_gateway.http().post("/v1/completions", json=body | options)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["logprobs"]["tokens"]

    plain = ask()
    assert ask(temperature=1.5, top_k=1, seed=3) == ask(temperature=1.5, min_p=1, seed=4) == plain
    assert ask(temperature=1.5, seed=3) != plain
    assert set(ask(logit_bias={"70": 100})) == set(ask(logit_bias={"70": 100, "9": -100})) and len(plain) == 12
    assert len(set(ask(presence_penalty=2, frequency_penalty=2, repetition_penalty=2))) > len(set(plain)) - 1


LABELS = ["Travel", "Transfer", "Meals & Drinks", 'it\'s "quoted"', "日本"]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_is_one_of_the_choices(shared_gateway: Served, temperature: float) -> None:
    """The tiny model's own answers are noise, so that only the form can make labels of them."""
    body = {"structured_outputs": {"choice": LABELS}}
    said = shared_gateway.client().chat.completions.create(
        model="finance", messages=QUESTION, extra_body=body, n=8, temperature=temperature, seed=1
    )
    texts = [choice.message.content for choice in said.choices]
    assert set(texts) <= set(LABELS) and (len(set(texts)) > 1) == bool(temperature)
    assert {choice.finish_reason for choice in said.choices} == {"stop"}


SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["label", "score"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "form",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
        },
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
)
def test_an_answer_follows_its_schema(shared_gateway: Served, form: dict) -> None:
    body = {"model": "finance", "messages": QUESTION, "temperature": 1.0, "seed": 3, "max_tokens": 400, **form}
    said = shared_gateway.http().post("/v1/chat/completions", json=body).json()["choices"][0]
    assert said["finish_reason"] == "stop"
    found = json.loads(said["message"]["content"])
    assert found["label"] in ("a", "b") and found["score"] in range(10) and len(found) == 2


def test_an_answer_follows_a_regex_and_a_grammar(shared_gateway: Served) -> None:
    for form in ({"regex": "[0-9]{3}-[a-f]{2}"}, {"grammar": 'start: /[0-9]{3}/ "-" /[a-f]{2}/'}):
        body = {"model": "base", "prompt": "AIRBNB", "max_tokens": 40, "structured_outputs": form}
        said = shared_gateway.http().post("/v1/completions", json=body).json()["choices"][0]
        assert re.fullmatch("[0-9]{3}-[a-f]{2}", said["text"]) and said["finish_reason"] == "stop"


def test_an_answer_of_json_begins_as_an_object(shared_gateway: Served) -> None:
    body = {"response_format": {"type": "json_object"}, "max_tokens": 5}
    said = shared_gateway.client().chat.completions.create(model="base", messages=QUESTION, **body)
    assert (said.choices[0].message.content or "").lstrip().startswith("{")


def test_a_form_that_costs_too_much_ends_its_own_answer(shared_gateway: Served) -> None:
    """Each step serves everybody, so that one answer's form may take a few milliseconds of it."""
    heavy = {"regex": "(.*a.{10}b.*|.*b.{11}a.*|.*c.{12}d.*){2,9}"}
    bodies = [
        {"model": "base", "prompt": "AIRBNB", "max_tokens": 60, "structured_outputs": heavy, "temperature": 1},
        {"model": "base", "prompt": "AIRBNB", "max_tokens": 60},
    ]
    with ThreadPoolExecutor(2) as pool:
        heavy_said, said = pool.map(
            lambda body: shared_gateway.http().post("/v1/completions", json=body), bodies
        )
    assert said.status_code == 200
    assert heavy_said.status_code in (200, 400)


def test_a_chat_may_hold_an_answer_of_nothing(shared_gateway: Served) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": None}, *QUESTION]
    assert (
        shared_gateway.client().chat.completions.create(model="finance", messages=turns, max_tokens=2).choices
    )


def test_one_model_is_described_as_in_the_list(shared_gateway: Served) -> None:
    client = shared_gateway.client()
    for listed in client.models.list():
        assert client.models.retrieve(listed.id) == listed
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_prompt_and_its_probabilities(shared_gateway: Served, stream: bool) -> None:
    """As lm-eval asks: the log-likelihood of a continuation is read from the prompt's tokens."""
    prompt, body = "AIRBNB 🚀 HM2X", {"model": "finance", "max_tokens": 2, "logprobs": 1, "echo": True}
    plain = shared_gateway.client().completions.create(model="finance", prompt=prompt, max_tokens=2)
    said = shared_gateway.client().completions.create(**body, prompt=prompt, stream=stream)
    choices = [one.choices[0] for one in said] if stream else said.choices
    assert "".join(one.text for one in choices) == prompt + plain.choices[0].text
    merged = [one.logprobs.model_dump() for one in choices if one.logprobs]
    tokens, logprobs, tops, offsets = (
        [value for one in merged for value in one[field]]
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    count = plain.usage.prompt_tokens
    assert len(tokens) == len(logprobs) == len(tops) == count + plain.usage.completion_tokens
    assert logprobs[0] is None and tops[0] is None and max(logprobs[1:]) <= 0
    assert all(token in top for token, top in zip(tokens[1:], tops[1:], strict=True))
    # Offsets are those of the text; the parts of a character begin where it does.
    assert offsets == sorted(offsets) and offsets[0] == 0 and offsets[count] == len(prompt)
    assert all(prompt[at] == token for at, token in zip(offsets, tokens[:3], strict=False) if len(token) == 1)


def test_echo_of_nothing_more_reads_the_prompt_alone(gateway: Served) -> None:
    said = gateway.client().completions.create(
        model="base", prompt=[[5, 6, 7], [8, 9]], max_tokens=0, logprobs=1, echo=True, n=2
    )
    assert [len(one.logprobs.tokens) for one in said.choices] == [3, 3, 2, 2]
    assert said.usage.completion_tokens == 0
    assert gateway.metric("lora_ops_prompt_tokens_total") == said.usage.prompt_tokens == 5
    with pytest.raises(openai.BadRequestError, match="at least 1, unless echo is true"):
        gateway.client().completions.create(model="base", prompt="AIRBNB", max_tokens=0)


def test_an_answer_of_too_many_probabilities_is_refused(shared_gateway: Served) -> None:
    """64 prompts of 8,000 tokens with 20 alternatives were gigabytes, which one key could ask for."""
    echo = {"model": "base", "max_tokens": 0, "logprobs": 20, "echo": True, "prompt": [[5] * 1000] * 3}
    for body in (echo | {"n": 8}, {"model": "base", "prompt": ["A"] * 30, "logprobs": 20, "max_tokens": 1000}):
        answer = shared_gateway.http().post("/v1/completions", json=body)
        assert answer.status_code == 400, answer.text[:200]
        assert answer.json()["error"]["code"] == "request_too_large"
        assert "000 probabilities, and 500,000 fit" in answer.json()["error"]["message"]
    assert shared_gateway.http().post("/v1/completions", json=echo | {"logprobs": 0}).status_code == 200


def test_long_prompts_of_tokens_are_shown_off_the_event_loop(
    shared_gateway: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    as_text = Tokenization.as_text

    def watched(self: Tokenization, tokens: list[int]) -> str:
        threads.append(threading.current_thread())
        return as_text(self, tokens)

    monkeypatch.setattr(Tokenization, "as_text", watched)
    body = {"model": "base", "prompt": [[70] * 1500] * 2, "max_tokens": 1, "echo": True}
    said = shared_gateway.http().post("/v1/completions", json=body).json()
    assert len(threads) == 2 and shared_gateway.thread not in threads
    assert all(len(choice["text"]) >= 1500 for choice in said["choices"])


def test_each_token_of_a_split_character_has_its_own_bytes(shared_gateway: Served) -> None:
    prompt = "🚀日🎉"
    body = {"model": "base", "max_tokens": 0, "logprobs": 0, "echo": True}
    said = shared_gateway.client().completions.create(**body, prompt=prompt).choices[0].logprobs
    assert len(said.tokens) > len(prompt)
    raw = b"".join(token.encode().decode("unicode_escape").encode("latin-1") for token in said.tokens)
    assert raw.decode() == prompt
    assert said.text_offset == sorted(said.text_offset) and said.text_offset[-1] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_many_probabilities_are_rendered_off_the_event_loop(
    shared_gateway: Served, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """A few megabytes of them took 1.8 s, in which nobody else got a token."""
    threads = []
    render = CompletionRendering.event if stream else CompletionRendering.whole

    def watched(self: CompletionRendering, *pieces: object) -> object:
        threads.append(threading.current_thread())
        return render(self, *pieces)  # type: ignore[arg-type]

    monkeypatch.setattr(CompletionRendering, render.__name__, watched)
    for prompt, many in (("A", False), ("AIRBNB " * 40, True)):
        threads.clear()
        body = {
            "model": "base",
            "prompt": prompt,
            "max_tokens": 2,
            "echo": True,
            "logprobs": 5,
            "stream": stream,
        }
        assert shared_gateway.http().post("/v1/completions", json=body).status_code == 200
        assert (threads[0] is not shared_gateway.thread) is many


def test_every_event_has_a_usage_where_it_is_asked_for(shared_gateway: Served) -> None:
    body = {"model": "base", "messages": QUESTION, "max_tokens": 2, "stream": True}
    stream = shared_gateway.client().chat.completions.create(**body, stream_options={"include_usage": True})
    *events, last = [event.model_dump(exclude_unset=True) for event in stream]
    assert all(event["usage"] is None for event in events) and last["usage"]
    assert all(
        "usage" not in e.model_fields_set for e in shared_gateway.client().chat.completions.create(**body)
    )


def test_an_answer_can_be_sent_back_as_it_came(shared_gateway: Served) -> None:
    create = shared_gateway.client().chat.completions.create
    said = create(model="finance", messages=QUESTION, max_tokens=3).choices[0].message.model_dump()
    assert None in said.values()
    turns = [*QUESTION, said, {"role": "user", "content": "And this?"}]
    assert create(model="finance", messages=turns, max_tokens=2).choices  # type: ignore[arg-type]


def test_vllms_controllers_may_send_the_name_as_path_and_a_tenant_is_unloaded_as_it_was_loaded(
    gateway: Served,
) -> None:
    http = gateway.http()
    for name in ("finance", "finance@1"):
        body = {"lora_name": name, "lora_path": name}
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "finance"}).status_code == 200
    assert set(gateway.engine.status().adapters) == {"finance@1"}


@pytest.mark.parametrize(
    "model", ["nobody", "finance@9", "finance@", "../../etc/passwd", "finance@1/../2", "é" * 20]
)
def test_an_unknown_model_is_a_404_in_openais_shape(shared_gateway: Served, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        shared_gateway.client().chat.completions.create(model=model, messages=QUESTION)
    assert error.value.code == "model_not_found"


def test_token_ids_are_taken_as_a_prompt_and_checked(shared_gateway: Served) -> None:
    client = shared_gateway.client()
    assert client.completions.create(model="base", prompt=[5, 6, 7], max_tokens=2).usage.prompt_tokens == 3  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="Token 100000 does not exist"):
        client.completions.create(model="base", prompt=[100_000], max_tokens=2)


def test_events_are_those_of_the_specification(shared_gateway: Served) -> None:
    body = {"model": "base", "messages": QUESTION, "max_tokens": 3, "stream": True}
    with shared_gateway.http().stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(
        json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1]
    )


def test_an_empty_prompt_begins_a_text(shared_gateway: Served) -> None:
    """As at OpenAI; the tiny model's token for that is <|im_start|>."""
    client = shared_gateway.client()
    options = {"model": "finance", "max_tokens": 8, "logprobs": 0}
    said = client.completions.create(prompt=["", "A"], **options)
    assert said.usage and said.usage.prompt_tokens == 2
    begun = client.completions.create(prompt="<|im_start|>", **options)
    assert said.choices[0].text == begun.choices[0].text
    assert client.completions.create(prompt="", echo=True, **options).choices[0].text == begun.choices[0].text


@pytest.mark.parametrize(
    "name", ["max_tokens", "max_completion_tokens", "n", "seed", "top_k", "min_tokens", "top_logprobs"]
)
def test_a_whole_number_may_be_written_with_a_point(shared_gateway: Served, name: str) -> None:
    body = {"model": "finance", "messages": QUESTION, "logprobs": True, "max_tokens": 2}
    whole, pointed = (
        shared_gateway.http().post("/v1/chat/completions", json=body | {name: value}).json()
        for value in (2, 2.0)
    )
    assert whole["choices"] == pointed["choices"]
    refused = shared_gateway.http().post("/v1/chat/completions", json=body | {name: 2.5})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == name

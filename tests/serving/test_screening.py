"""What leaves of the answers of a tenant with `on_breach`: whole and streamed, and where nobody can look."""

import asyncio
import json
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai.types import CompletionUsage

from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.engines.protocol import Engine
from lora_ops.serving import screening_process
from lora_ops.serving.events import read_events
from lora_ops.settings.serving import OpenAIEngineSettings, TenantServing
from tests.engines.scripted_server import DONE, ScriptedServer, event, running
from tests.engines.tool_scripts import WEATHER, call
from tests.serving.conftest import Clone, Served, eventually, register, served
from tests.serving.shadowing import inner, pairs, shadowed

SAID = "Of course. Write to jane.doe@example.com or call +1 212 555 0147 at nine, she is there."
REDACTED = "Of course. Write to [e-mail address] or call [phone number] at nine, she is there."
SECRETS = ("jane", "example.com", "212", "0147")
INSULT = "Well then. You are a stupid fucking idiot. Bye."
TENANTS = {
    "finance": TenantServing(on_breach="redact", keep_text=True),
    "healthcare": TenantServing(on_breach="block", keep_text=True),
}


class Upstream(ScriptedServer):
    """Says a text in pieces, one token each; with several texts the seed of the request chooses.

    A call of a function comes before the end of a chat.
    """

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.says, self.arguments = texts, ""
        self.called, self.finish = "weather", "stop"
        self.script = self._say

    async def _say(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        if body["max_tokens"] == 1:  # whether a loaded adapter answers
            yield event({"choices": [{"text": "a", "finish_reason": "length"}]}) + DONE
            return
        chat = "messages" in body
        text = self.says[(body.get("seed") or 0) % len(self.says)]
        pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
        choices: list[Any] = [{"delta": {"content": one}} if chat else {"text": one} for one in pieces]
        choices += [{"delta": one} for one in call(0, self.called, self.arguments)] if self.arguments else []
        choices.append({"delta" if chat else "text": {} if chat else "", "finish_reason": self.finish})
        for number, choice in enumerate(choices, 1):
            usage = {"prompt_tokens": 3, "completion_tokens": number}
            yield event({"choices": [choice], "usage": usage})
        yield DONE


@contextmanager
def before(clone: Clone, upstream: Upstream, **serving: object) -> Iterator[Served]:
    """A gateway before a server that says what it is to say."""
    with running(upstream):
        engine = OpenAIEngine(OpenAIEngineSettings(url=upstream.url, tools=True))
        with served(clone.root, clone.settings(**{"tenants": TENANTS, **serving}), engine) as gateway:
            yield gateway


@pytest.fixture(scope="module")
def said() -> Upstream:
    return Upstream(SAID)


@pytest.fixture(scope="module")
def shared(clone_source: Path, said: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One gateway for all tests that only ask: finance is redacted, healthcare blocked, base flagged."""
    root = Path(shutil.copytree(clone_source, tmp_path_factory.mktemp("screened") / "clone"))
    with before(Clone(root, root / "models/base"), said) as gateway:
        yield gateway


def whole(gateway: Served, model: str, chat: bool, **options: Any) -> tuple[list[str], list[str], Any]:
    """The texts of an answer, how they ended, and its usage."""
    asked = {"model": model, "max_tokens": 200, **options}
    if chat:
        made = gateway.client().chat.completions.create(messages=[{"role": "user", "content": "hi"}], **asked)
        texts = [one.message.content or "" for one in made.choices]
        return texts, [one.finish_reason for one in made.choices], made.usage
    done = gateway.client().completions.create(prompt="hi", **asked)
    return [one.text for one in done.choices], [one.finish_reason for one in done.choices], done.usage


def streamed(gateway: Served, model: str, chat: bool, **options: Any) -> tuple[list[str], list[str], Any]:
    """The same of a streamed answer."""
    asked = {"model": model, "max_tokens": 200, "stream": True, **options}
    asked["stream_options"] = {"include_usage": True}
    client = gateway.client()
    stream: Any = (
        client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], **asked)
        if chat
        else client.completions.create(prompt="hi", **asked)
    )
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    usage = None
    for one in stream:
        usage = one.usage or usage
        for choice in one.choices:
            new = choice.delta.content if chat else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (new or "")
            assert choice.index not in ends, "an event after an answer's end"
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    return [texts[one] for one in sorted(texts)], [ends[one] for one in sorted(ends)], usage


def last_event(gateway: Served) -> dict[str, Any]:
    """The gateway's last event, once it is on disk."""
    folder = inner(gateway)._root / ".serving/events"
    asked = gateway.metric("lora_ops_requests_total")
    eventually(lambda: gateway.metric("lora_ops_events_total") == asked)
    told = dict(read_events(folder).iloc[-1])
    return {
        name: None if isinstance(value, float) and value != value else value for name, value in told.items()
    }


HOW = pytest.mark.parametrize("how", [whole, streamed])
CHAT = pytest.mark.parametrize("chat", [True, False])


@HOW
@CHAT
def test_identifiers_are_redacted(shared: Served, said: Upstream, how: Any, chat: bool) -> None:
    said.says = (SAID,)
    texts, ends, usage = how(shared, "finance", chat)
    assert (texts, ends) == ([REDACTED], ["stop"])
    assert isinstance(usage, CompletionUsage) and usage.completion_tokens == -(-len(SAID) // 3) + 1
    told = last_event(shared)
    assert (told["breach"], told["answer_identifiers"], told["status"]) == ("redacted", 2, 200)
    assert told["answer_text"] == REDACTED  # the log's own redaction is the same


@HOW
@CHAT
def test_answer_with_an_identifier_is_blocked(shared: Served, said: Upstream, how: Any, chat: bool) -> None:
    said.says = (SAID,)
    changed = "lora_ops_answers_changed_total"
    count = shared.metric(changed, tenant="healthcare", breach="blocked")
    texts, ends, usage = how(shared, "healthcare", chat)
    assert ends == ["content_filter"]
    assert texts == ([""] if how is whole else ["Of course. Write to "])
    assert usage.completion_tokens == -(-len(SAID) // 3) + 1  # what the model wrote
    told = last_event(shared)
    assert (told["breach"], told["answer_identifiers"], list(told["finish"])) == ("blocked", 2, ["stop"])
    assert shared.metric(changed, tenant="healthcare", breach="blocked") == count + 1


@HOW
def test_insults_are_blocked_and_not_redacted(shared: Served, said: Upstream, how: Any) -> None:
    said.says = (INSULT,)
    assert how(shared, "finance", True)[:2] == ([INSULT], ["stop"])
    (text,), ends, _ = how(shared, "healthcare", True)
    assert ends == ["content_filter"] and "fuck" not in text and INSULT.startswith(text)


@HOW
def test_plain_answers_and_other_tenants_are_left_alone(shared: Served, said: Upstream, how: Any) -> None:
    plain = "It is 3 o'clock, on May 5; 40 of 100 came.\n\nThe rest  stayed at home -"
    said.says = (plain,)
    for model in ("finance", "healthcare"):
        assert how(shared, model, True)[:2] == ([plain], ["stop"])
        assert last_event(shared)["breach"] is None
    said.says = (SAID,)
    assert how(shared, "base", False)[0] == [SAID]


@HOW
@CHAT
def test_each_choice_is_looked_at(shared: Served, said: Upstream, how: Any, chat: bool) -> None:
    said.says = (SAID, "Nothing to say.")
    texts, ends, usage = how(shared, "healthcare", chat, n=3, seed=0)
    assert ends == ["content_filter", "stop", "content_filter"] and texts[1] == "Nothing to say."
    assert not any(secret in text for text in texts for secret in SECRETS)
    assert usage.completion_tokens == sum(-(-len(said.says[one % 2]) // 3) + 1 for one in range(3))
    assert last_event(shared)["breach"] == "blocked"


@HOW
@pytest.mark.parametrize("model", ["finance", "healthcare"])
def test_json_with_an_identifier_is_blocked(shared: Served, said: Upstream, how: Any, model: str) -> None:
    """An escape spells any letter, and a redacted number would be no JSON."""
    form = {"response_format": {"type": "json_object"}}
    for text in ('{"to": "jane.doe\\u0040example.com"}', '{"card": 4111111111111111}', '{"to": "j@a.de'):
        said.says = (text,)
        assert how(shared, model, True, **form)[:2] == ([""], ["content_filter"]), text
    said.says = ('{"to": "\\u00e4\\n", "n": 12}',)
    assert how(shared, model, True, **form)[:2] == (list(said.says), ["stop"])


@pytest.mark.parametrize("stream", [False, True])
def test_call_with_an_identifier_is_blocked(shared: Served, said: Upstream, stream: bool) -> None:
    said.says = ("Let me see.",)
    body = {
        "model": "finance",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "stream": stream,
    }
    try:
        for city, blocked in (("Porto", False), ("jane.doe\\u0040example.com", True)):
            said.arguments = json.dumps({"city": "X"}).replace("X", city)
            answer = shared.http().post("/v1/chat/completions", json=body).text
            assert ("content_filter" in answer) == blocked, answer
            assert ("tool_calls" in answer and "Porto" in answer) == (not blocked)
            assert "jane" not in answer
    finally:
        said.arguments = ""


@pytest.mark.parametrize("model", ["finance", "healthcare"])
def test_probabilities_of_an_answer_are_refused(shared: Served, said: Upstream, model: str) -> None:
    said.says = (SAID,)
    body = {"model": model, "prompt": "hi", "max_tokens": 90, "logprobs": 2}
    answer = shared.http().post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
    assert f"serving.tenants.{model}.on_breach" in answer.text


@pytest.mark.parametrize("tokens", [0, 1])
def test_probabilities_of_a_prompt_are_refused(shared: Served, tokens: int) -> None:
    body = {"model": "finance", "prompt": "hi", "max_tokens": tokens, "logprobs": 2, "echo": True}
    answer = shared.http().post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
    assert "serving.tenants.finance.on_breach" in answer.text  # an engine may refuse them, too


def completed(gateway: Served, model: str, **options: Any) -> tuple[str, str]:
    """The text of a completion and how it ended."""
    answer = gateway.http().post("/v1/completions", json={"model": model, "max_tokens": 200, **options})
    (choice,) = answer.json()["choices"]
    return choice["text"], choice["finish_reason"]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(
    ("prompt", "answer", "redacted"),
    [
        ("Card 4111 1111 1111 ", "1111 and so on", "[payment card number] and so on"),
        ("Write to jane.doe@", "example.com is hers", "[e-mail address] is hers"),
        ("Her phone number is", " 5550147, they say", " [phone number], they say"),
        ("Call +1 212 555 0147", " or write to me", " or write to me"),
    ],
)
def test_completion_is_looked_at_behind_its_prompt(
    shared: Served, said: Upstream, echo: bool, prompt: str, answer: str, redacted: str
) -> None:
    """A client had the first half of an identifier in the prompt, and the other half left."""
    said.says = (answer,)
    before = prompt if echo else ""
    assert completed(shared, "finance", prompt=prompt, echo=echo) == (before + redacted, "stop")
    if redacted != answer:
        assert completed(shared, "healthcare", prompt=prompt, echo=echo) == (before, "content_filter")


def test_completion_of_tokens_is_looked_at_behind_them(shared: Served, said: Upstream) -> None:
    said.says = ("example.com is hers",)
    body = {"model": "finance", "prompt": "Write to jane.doe@"}
    tokens = shared.http().post("/tokenize", json=body).json()["tokens"]
    assert completed(shared, "finance", prompt=tokens) == ("[e-mail address] is hers", "stop")


@HOW
@pytest.mark.parametrize(
    "begun", ["Card 4111 1111 1111 111", "Write to jane.doe@example", "IBAN DE89 3704 0044 0532 0130 0"]
)
@pytest.mark.parametrize(
    ("finish", "options"), [("length", {}), ("stop", {"stop": ["x!"]}), ("stop", {"logit_bias": {"2": 5}})]
)
def test_identifier_that_the_client_cuts_off_is_one(
    shared: Served, said: Upstream, how: Any, begun: str, finish: str, options: dict[str, Any]
) -> None:
    said.says, said.finish = (begun,), finish
    try:
        (text,), ends, _ = how(shared, "finance", False, **options)
        assert ends == [finish] and text.endswith("]") and begun[-6:] not in text
        (text,), ends, _ = how(shared, "healthcare", False, **options)
        assert ends == ["content_filter"] and begun[-6:] not in text
        said.says = ("We sold 1234567",)
        assert how(shared, "healthcare", False, **options)[:2] == (list(said.says), [finish])
    finally:
        said.finish = "stop"
    said.says = (begun,)
    assert how(shared, "finance", False)[:2] == ([begun], ["stop"])


def test_name_of_a_function_hides_no_number(shared: Served, said: Upstream) -> None:
    """`order 030 1234567` is no phone number."""
    said.says, said.called, said.arguments = ("",), "order", json.dumps({"n": "030 1234567"})
    tool = {**WEATHER, "function": {**WEATHER["function"], "name": "order"}}  # type: ignore[dict-item]
    body = {"model": "finance", "messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    try:
        answer = shared.http().post("/v1/chat/completions", json=body | {"tool_choice": "required"}).text
    finally:
        said.called, said.arguments = "weather", ""
    assert "content_filter" in answer and "1234567" not in answer


@HOW
def test_escapes_hide_no_identifier(shared: Served, said: Upstream, how: Any) -> None:
    said.says = (
        'Say {"tel": "+49\\u00a030\\u00a01234567", "to": "jane.doe\\u0040example.com"} to her, please.',
    )
    redacted = 'Say {"tel": "[phone number]", "to": "[e-mail address]"} to her, please.'
    assert how(shared, "finance", True)[:2] == ([redacted], ["stop"])
    assert how(shared, "healthcare", True)[1] == ["content_filter"]
    form = {"response_format": {"type": "json_object"}}
    said.says = (json.dumps({"body": json.dumps({"to": "jane.doe@example.com"}).replace("@", "\\u0040")}),)
    assert how(shared, "finance", True, **form)[:2] == ([""], ["content_filter"])


def test_embedded_engine_is_looked_at(clone: Clone, engine: Engine) -> None:
    form = {"structured_outputs": {"choice": ["Ask jo@example.org today"]}}
    with served(clone.root, clone.settings(tenants=TENANTS), engine) as gateway:
        for how in (whole, streamed):
            assert how(gateway, "finance", True, extra_body=form)[1] == ["content_filter"]
            # A stop text ends the answer before what would be one.
            texts, ends, _ = how(gateway, "finance", True, extra_body=form, stop="@")
            assert (texts, ends) == (["Ask jo"], ["stop"])


def test_without_such_a_tenant_no_process_runs(gateway: Served) -> None:
    assert whole(gateway, "finance", True, max_tokens=2)[1] == ["length"]
    assert inner(gateway).screening.process.pid is None


def test_pair_has_the_models_own_answers(staged: Clone) -> None:
    """A model is judged by what it said, in shadow as in production."""
    upstream = Upstream(SAID)
    with running(upstream):
        engine = OpenAIEngine(OpenAIEngineSettings(url=upstream.url))
        with shadowed(staged, engine, staged.settings(tenants=TENANTS)) as gateway:
            assert whole(gateway, "finance", False)[0] == [REDACTED]
            eventually(lambda: gateway.metric("lora_ops_shadow_copies_total", outcome="answered") == 1)
    (pair,) = pairs(staged).to_dict("records")
    assert (pair["production_identifiers"], pair["shadow_identifiers"], pair["agreement"]) == (1, 1, 1)


def failed(gateway: Served, stream: bool) -> tuple[int, dict[str, Any]]:
    """The status and the error of a completion that can't be looked at."""
    body = {"model": "healthcare", "prompt": "hi", "max_tokens": 90, "stream": stream}
    answer = gateway.http().post("/v1/completions", json=body)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_hung_process_is_a_503_and_then_another_runs(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with before(clone, Upstream("All is well.")) as gateway:
        process = inner(gateway).screening.process
        monkeypatch.setattr(screening_process, "ANSWER_SECONDS", 0.5)
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        status, error = failed(gateway, stream)
        assert (status, error["code"]) == (503, "answer_not_screened")
        assert "serving.tenants.healthcare.on_breach" in error["message"]
        assert gateway.metric("lora_ops_screening_failures_total", tenant="healthcare") == 1
        monkeypatch.setattr(screening_process, "ANSWER_SECONDS", 30.0)
        assert whole(gateway, "healthcare", True)[:2] == (["All is well."], ["stop"])
        told = last_event(gateway)
        assert (told["status"], told["breach"]) == (200, None)


def test_killed_process_is_started_again(clone: Clone) -> None:
    with before(clone, Upstream(SAID)) as gateway:
        process = inner(gateway).screening.process
        for _ in range(2):
            pid = process.pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: process.pid != pid)  # type: ignore[misc]
            assert streamed(gateway, "finance", True)[0] == [REDACTED]
        last = process.pid
    eventually(lambda: not Path(f"/proc/{last}").exists())


def test_label_insults_nobody(clone: Clone, engine: Engine, tmp_path: Path) -> None:
    """People chose the labels; other words are judged."""
    labels = ["You stupid fucking idiot", "Lodging"]
    with clone.registry() as registry:
        params: dict[str, object] = {"data": {"labels": labels, "task": "labels"}}
        assert register(registry, clone.base, tmp_path / "h2", "healthcare", 5, params) == "healthcare@2"
    with served(clone.root, clone.settings(tenants=TENANTS), engine) as gateway:
        for how in (whole, streamed):
            for said, end in ((labels[0], "stop"), (f"Oh, {labels[0]} of all", "content_filter")):
                form = {"structured_outputs": {"choice": [said]}}
                texts, ends, _ = how(gateway, "healthcare@2", True, extra_body=form)
                assert ends == [end] and (texts == [said] or end == "content_filter")


def test_stream_that_nobody_can_look_at_ends_with_an_error(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at has left, and nothing of what was not."""
    upstream, stopped = Upstream(), threading.Event()

    async def script(body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield event({"choices": [{"text": "a" if body["max_tokens"] == 1 else "All is well. "}]})
        while body["max_tokens"] > 1 and not stopped.is_set():
            await asyncio.sleep(0.01)
        if body["max_tokens"] > 1:
            yield event({"choices": [{"text": SAID}]})
        yield event({"choices": [{"text": "", "finish_reason": "stop"}]}) + DONE

    upstream.script = script
    body = {"model": "finance", "prompt": "hi", "max_tokens": 90, "stream": True}
    with before(clone, upstream) as gateway:
        pid = inner(gateway).screening.process.pid
        monkeypatch.setattr(screening_process, "ANSWER_SECONDS", 0.5)
        with gateway.http().stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert "All is well. " in next(lines)
            assert pid
            os.kill(pid, signal.SIGSTOP)
            stopped.set()
            rest = "".join(lines)
    assert "answer_not_screened" in rest and "DONE" not in rest
    assert not any(secret in rest for secret in SECRETS)

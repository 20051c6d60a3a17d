"""What leaves of the answers of a tenant with `on_breach`: redacted, or ended where something must not leave.

The model's own words stay in `RequestStats.texts`. The event log, pairs, replays and the task's check judge the
model, and see what it said.
"""

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from lora_ops.detectors.escapes import unescaped
from lora_ops.detectors.identifiers import Found, merged
from lora_ops.detectors.open_ends import open_end
from lora_ops.detectors.streamed import StreamedText
from lora_ops.engines.protocol import Chunk, FinishReason, Sampling, ToolCallPart, Unsupported
from lora_ops.serving.requests import AnswerChunk, AnswerRequest, Breach, RequestStats
from lora_ops.serving.screening_process import NotScreened, ScreeningProcess
from lora_ops.serving.task_check import are_labels
from lora_ops.settings.serving import ServingSettings

_SENTENCE_END = re.compile(r"[.!?\n]")
MOST_SENTENCE = 2000  # characters of a begun sentence that are scored again with its next word
CONTEXT = 90
"""Characters at a prompt's end that an answer may go on with: no identifier but an address is longer."""


def require_no_logprobs(sampling: Sampling, tenant: str, settings: ServingSettings) -> None:
    """Refuse probabilities where an answer may be redacted or ended: they name its tokens, and others.

    Those of a prompt name what the model would have said after each of its words.

    Raises:
        Unsupported: the request wants them.
    """
    if sampling.logprobs is None:
        return
    what = settings.tenant(tenant).on_breach
    if what != "flag":
        raise Unsupported(
            f"'{tenant}' gives no logprobs (serving.tenants.{tenant}.on_breach: {what}): they name tokens that "
            "may have to be kept back. Leave out logprobs and top_logprobs."
        )


class Screening:
    """Looks at answers before they leave.

    Args:
        settings: says which tenants want it.
        insult_threshold: from which score on an answer counts as insulting.
        changed: called with tenant, adapter and what was done to an answer.
        failed: called with a tenant for each request that ends since nobody could look at its answer.
    """

    def __init__(
        self,
        settings: ServingSettings,
        insult_threshold: float,
        changed: Callable[[str, str, Breach], None],
        failed: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._threshold = insult_threshold
        self._changed = changed
        self._failed = failed
        self.process = ScreeningProcess()

    async def start(self) -> None:
        """Start what looks at answers, where a tenant wants it."""
        if any(one.on_breach != "flag" for one in self._settings.tenants.values()):
            await self.process.start()

    async def close(self) -> None:
        """Stop it."""
        await self.process.close()

    def leaving(
        self, request: AnswerRequest, stats: RequestStats, chunks: AsyncGenerator[AnswerChunk, None]
    ) -> AsyncGenerator[AnswerChunk, None]:
        """Return what leaves of the answers to a request; `stats.breach` says what was done to them.

        Copies and replays go to nobody and stay as they are.
        """
        if request.priority == "background" or self._settings.tenant(request.tenant).on_breach == "flag":
            return chunks
        return self._screened(request, stats, chunks)

    async def _screened(
        self, request: AnswerRequest, stats: RequestStats, chunks: AsyncGenerator[AnswerChunk, None]
    ) -> AsyncGenerator[AnswerChunk, None]:
        answers: dict[int, _Answer] = {}
        blocks = self._settings.tenant(request.tenant).on_breach == "block"
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.index not in answers:
                    asked = stats.moved or request
                    context = asked.contexts[chunk.index // asked.n] if asked.contexts else ""
                    answers[chunk.index] = _Answer(asked, self.process, self._threshold, context, blocks=blocks)
                answer = answers[chunk.index]
                try:
                    leaving = await answer.next(chunk.content)
                except NotScreened as error:
                    self._failed(request.tenant)
                    raise NotScreened(
                        "Nobody could look at this answer before it leaves, as "
                        f"serving.tenants.{request.tenant}.on_breach wants it ({error}): try again."
                    ) from error
                # Known before the last chunk is taken, after which the request is reported.
                if answer.breach and stats.breach != "blocked":
                    stats.breach = answer.breach
                if chunk.content.finish and answer.breach:
                    self._changed(request.tenant, (stats.moved or request).route.name, answer.breach)
                if leaving:
                    yield AnswerChunk(chunk.index, leaving)


class _Answer:
    """One answer on its way out; `context` is what it goes on with, such as the end of a text."""

    def __init__(
        self,
        request: AnswerRequest,
        process: ScreeningProcess,
        threshold: float,
        context: str,
        *,
        blocks: bool,
    ) -> None:
        structure = request.sampling.structure
        self._tenant = request.tenant
        self._process = process
        self._threshold = threshold if blocks else None
        # In a form that the request sets, another text would be a wrong one.
        self._ends = blocks or structure is not None
        # JSON spells any character as an escape, and so may other forms: they are read once they are whole.
        self._may_escape = structure is not None and structure.kind != "choice"
        self._whole = self._may_escape or not request.streamed
        # The client alone decides where these end an answer, within an identifier if it likes. A bias may make
        # the model's own end likely anywhere.
        sampling = request.sampling
        self._may_be_stopped = bool(sampling.stop or sampling.stop_token_ids or sampling.logit_bias)
        self._labels = request.route.labels
        # A text that may yet be a label waits: a label insults nobody, whatever its words are.
        self._short = max(map(len, self._labels), default=0) if blocks else 0
        self._text = StreamedText(context)
        self._begun = False  # some of it has left
        self._sentence = ""
        self._calls: dict[int, ToolCallPart] = {}
        self._held = Chunk("", 0)
        self.breach: Breach | None = None

    async def next(self, chunk: Chunk) -> Chunk | None:
        """Return what leaves once this chunk has come; None: nothing yet.

        Raises:
            NotScreened: nobody could look at it.
        """
        self._hold(chunk)
        text = ""
        if self.breach != "blocked":
            self._text.add(chunk.text)
            if chunk.finish:
                text = await self._last(chunk.finish)
            elif not self._whole and (self._begun or len(self._text.held) > self._short):
                text = await self._until(self._text.cut())
        if not (text or chunk.finish):
            return None
        leaving, self._held = replace(self._held, text=text), Chunk("", 0)
        if not chunk.finish:
            return leaving
        if self.breach == "blocked":
            return replace(leaving, text="", finish="content_filter")
        return replace(leaving, finish=chunk.finish, tool_calls=tuple(self._calls.values()))

    def _hold(self, chunk: Chunk) -> None:
        """Keep what belongs to the next chunk that leaves; probabilities never do."""
        held = self._held
        self._held = replace(
            held,
            tokens=held.tokens + chunk.tokens,
            device_seconds=held.device_seconds + chunk.device_seconds,
            prompt_tokens=chunk.prompt_tokens,
            cached_tokens=chunk.cached_tokens,
            prompt=held.prompt + chunk.prompt,
        )
        for part in chunk.tool_calls:
            before = self._calls.get(part.index)
            self._calls[part.index] = (
                replace(before, arguments=before.arguments + part.arguments) if before else part
            )

    async def _last(self, finish: FinishReason) -> str:
        """Return what is left of the text, once it is whole."""
        is_cut_off = finish == "length" or (finish == "stop" and self._may_be_stopped)
        texts = [unescaped(self._text.held)[0]] if self._may_escape else []
        # On a line of its own: behind a name such as `order` a number may be something else.
        texts += [f"{one.name}\n{unescaped(one.arguments)[0]}" for one in self._calls.values()]
        for text in texts:  # what was called with other arguments would be another call
            findings = await self._process.find(
                text, text if self._threshold is not None else None, tenant=self._tenant
            )
            begun = is_cut_off and open_end(text)
            if findings.identifiers or begun or self._insults(findings.insults):
                self.breach = "blocked"
                return ""
        window = self._text.window
        return await self._until(len(window), open_end(window) if is_cut_off else None)

    async def _until(self, cut: int, begun: Found | None = None) -> str:
        """Return what leaves up to this place of the window; `begun` counts as found."""
        new = self._text.window[len(self._text.window) - len(self._text.held) : cut]
        if not new:
            return ""
        is_label = not self._begun and len(new) == len(self._text.held) and are_labels([new], self._labels)
        sentences = self._sentence + new if self._threshold is not None and not is_label else None
        findings = await self._process.find(self._text.window, sentences, tenant=self._tenant)
        self._begun = True
        identifiers = merged([*findings.identifiers, *([begun] if begun and not is_label else [])])
        text, found = self._text.leave(cut, identifiers)
        if found:
            self.breach = "blocked" if self._ends else "redacted"
        if self._insults(findings.insults):
            self.breach = "blocked"
        if sentences:
            self._sentence = _SENTENCE_END.split(sentences)[-1][-MOST_SENTENCE:]
        return "" if self.breach == "blocked" else text

    def _insults(self, score: float) -> bool:
        return self._threshold is not None and score >= self._threshold

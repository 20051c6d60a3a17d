"""OpenTelemetry traces, where `serving.traces` names an OTLP/HTTP endpoint; otherwise nothing is imported.

One span for each request, named and labelled by the semantic conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/), a child of the caller's span if it sent `traceparent`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from lora_ops.serving.errors import CLIENT_GONE, as_api_error
from lora_ops.serving.requests import AnswerRequest, RequestStats


class Span(Protocol):
    """What is being traced."""

    def ended(self, stats: RequestStats, error: BaseException | None) -> None:
        """Say how it went."""


class Untraced:
    """A span that nobody asked for."""

    def ended(self, stats: RequestStats, error: BaseException | None) -> None:
        """Nothing is kept."""


class OpenSpan:
    """A span that is sent."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def ended(self, stats: RequestStats, error: BaseException | None) -> None:
        """Write down tokens, times and what went wrong."""
        from opentelemetry.trace import StatusCode

        if stats.moved:
            for name, value in _routed(stats.moved).items():
                self._span.set_attribute(name, value)
        self._span.set_attribute("gen_ai.usage.output_tokens", stats.generated)
        self._span.set_attribute("gen_ai.response.finish_reasons", list(stats.finish))
        self._span.set_attribute("lora_ops.queue_seconds", stats.queue_seconds)
        self._span.set_attribute("lora_ops.device_seconds", stats.device_seconds)
        if stats.first_token is not None:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", stats.first_token)
        if error:
            problem = as_api_error(error)
            self._span.set_attribute("error.type", problem.code or str(problem.status))
            if problem.status != CLIENT_GONE:
                self._span.set_status(StatusCode.ERROR, problem.message)


class Tracing:
    """Sends spans to an endpoint such as http://localhost:4318/v1/traces; with None it does nothing."""

    def __init__(self, endpoint: str | None) -> None:
        self._provider: Any = None
        if endpoint is None:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "lora-ops"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))

    @contextmanager
    def request(self, request: AnswerRequest) -> Iterator[Span]:
        """A span around one request; one of no client has none."""
        if self._provider is None or request.priority == "background":
            yield Untraced()
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        operation = "chat" if request.endpoint == "chat" else "text_completion"
        parent = TraceContextTextMapPropagator().extract({"traceparent": request.trace_parent or ""})
        # Not made the current span: an async generator's steps may run in different contexts.
        span = self._provider.get_tracer("lora_ops.serving").start_span(
            f"{operation} {request.model}",
            parent,
            SpanKind.SERVER,
            {
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": request.model,
                "lora_ops.request_id": request.request_id,
                "lora_ops.tenant": request.tenant,
                **_routed(request),
            },
        )
        try:
            yield OpenSpan(span)
        finally:
            span.end()

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def _routed(request: AnswerRequest) -> dict[str, str | int]:
    """Return what a span says of the version that a request is put before."""
    return {
        "gen_ai.response.model": request.route.name,
        "gen_ai.request.max_tokens": request.sampling.max_tokens,
        "gen_ai.usage.input_tokens": sum(map(len, request.prompts)),
        "lora_ops.route": request.route.decision,
        "lora_ops.digest": request.route.digest,
    }

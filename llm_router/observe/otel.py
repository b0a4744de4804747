"""Observe with OpenTelemetry: spans and metrics by its semantic conventions for generative AI.

Needs opentelemetry-api (the extra ``otel``); the program brings an SDK and configures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Token

import attrs
from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.domain.version import installed_version
from llm_router.observe._otel_content import input_messages, output_messages, system_instructions
from llm_router.observe.base import (
    AttemptBegan,
    AttemptEnded,
    Event,
    Plain,
    Refused,
    RequestEvent,
    SendBegan,
    SendEnded,
    Waited,
    error_type,
)
from llm_router.observe.labels import BoundedLabels, metadata_values

__all__ = ["OPERATION", "OpenTelemetryObserver"]

OPERATION = "generate_content"
"""The ``gen_ai.operation.name`` of every send."""

_PROVIDERS = {"gemini": "gcp.gemini"}
"""The conventions' names of providers; others are called what the keys call them."""

_TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
_SECOND_BUCKETS = tuple(0.01 * 2**power for power in range(14))


@attrs.define(eq=False)
class _Open:
    """A send under way.

    Attributes:
        span: Its span.
        model: The model that it asks for: the one wished for or, without a wish, that of the first attempt.
        streamed: Whether it is read piece by piece. Then each piece may be read in another context, so that
            no span can be the current one meanwhile.
        token: What takes its span out of the current context again.
        attempt: The span of its present attempt.
        attempt_token: The same for that.
        last: The deployment of its last attempt.
        last_error: Why that failed.
    """

    span: Span
    model: str | None
    streamed: bool
    token: Token[Context] | None = None
    attempt: Span | None = None
    attempt_token: Token[Context] | None = None
    last: Deployment | None = None
    last_error: str | None = None


class OpenTelemetryObserver:
    """Makes a span of each send, a span of each attempt beneath it, and the metrics of the conventions.

    The span of a send is the client span of the conventions (``generate_content MODEL``): it covers waiting,
    retries and fallback, and has the tokens. Its events ``llm_router.waited``, ``llm_router.fallback``
    (``llm_router.retry``, if on the same deployment) and ``llm_router.refused`` say what happened on the way.
    The spans beneath it (``attempt MODEL``) have the key, the model and the error of one call each. While a
    send that is not streamed is under way, its span (and the attempt's) is the current one, so that the spans
    of HTTP clients lie beneath.

    Metrics: ``gen_ai.client.operation.duration``, one value for each send, and ``gen_ai.client.token.usage``,
    by the model that used them; thoughts are output tokens.

    ``error.type`` is an HTTP status (``429``), a :class:`~llm_router.FailureKind` if there was none, or the
    name of an exception. No error's text is recorded, since it may quote a prompt.

    Args:
        tracer_provider: Where spans go; the global one by default.
        meter_provider: Where metrics go; the global one by default.
        content: Whether to record prompts, system instructions and answers on the span of the send.
        labels: The names of metadata that become attributes of metrics; spans have all of them.
        max_series: How many combinations of their values there may be; later ones count as ``other``.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        content: bool = False,
        labels: Sequence[str] = ("tenant", "feature"),
        max_series: int = 1_000,
    ) -> None:
        version = installed_version()
        self._tracer = trace.get_tracer("llm_router", version, tracer_provider)
        meter = metrics.get_meter("llm_router", version, meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECOND_BUCKETS,
        )
        self._usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKEN_BUCKETS,
        )
        self._content = content
        self._labels = tuple(labels)
        self._bounded = BoundedLabels(max_series)
        self._open: dict[str, _Open] = {}

    def observe(self, event: Event) -> None:
        """Record an event, if it is about a request."""
        if isinstance(event, SendBegan):
            began = self._open[event.request_id] = self._begin(event)
            if self._content and began.span.is_recording():
                _record_prompt(began.span, event.request)
        elif isinstance(event, RequestEvent) and (send := self._open.get(event.request_id)) is not None:
            match event:
                case AttemptBegan():
                    self._begin_attempt(send, event)
                case AttemptEnded():
                    self._end_attempt(send, event)
                case Waited(reason=reason, seconds=seconds):
                    _add(send.span, "waited", event, {"reason": reason, "seconds": seconds})
                case Refused(deployment=None):
                    _add(send.span, "refused", event, {"reason": event.reason})
                case SendEnded():
                    del self._open[event.request_id]
                    self._end(send, event)

    # --- sends ----------------------------------------------------------------------------------------

    def _begin(self, event: SendBegan) -> _Open:
        request, model = event.request, event.requested_model
        attributes: dict[str, Plain] = {
            "gen_ai.operation.name": OPERATION,
            "llm_router.request_id": event.request_id,
            **{f"llm_router.metadata.{name}": value for name, value in event.metadata.items()},
        }
        known = {
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": request.max_output_tokens,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.stream": event.streamed or None,
            "llm_router.workload": event.workload,
        }
        attributes.update({name: value for name, value in known.items() if value is not None})
        span = self._tracer.start_span(
            _span_name(model), kind=SpanKind.CLIENT, attributes=attributes, start_time=_nanoseconds(event.at)
        )
        return _Open(span, model, event.streamed, None if event.streamed else _enter(span))

    def _end(self, send: _Open, event: SendEnded) -> None:
        _leave(send.token)
        span, response = send.span, event.response
        span.set_attribute("llm_router.attempts", event.attempts)
        span.set_attribute("llm_router.waited", event.waited)
        answered = None
        if response is not None:
            usage = response.usage
            answered = response.model if response.success else None
            _set_known(
                span,
                {
                    "gen_ai.response.model": answered,
                    "gen_ai.usage.input_tokens": usage.input_tokens or None,
                    "gen_ai.usage.output_tokens": usage.output_tokens + usage.thinking_tokens or None,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
                    "gen_ai.usage.reasoning.output_tokens": usage.thinking_tokens or None,
                },
            )
            if response.finish_reason is not None:
                span.set_attribute("gen_ai.response.finish_reasons", [response.finish_reason])
            if self._content and response.success:
                span.set_attribute("gen_ai.output.messages", output_messages(response))
        failure = _mark(span, event.error)
        span.end(_nanoseconds(event.at))
        more = {"gen_ai.response.model": answered, "error.type": failure}
        self._duration.record(event.seconds, self._attributes(event, send.last, send.model, more))

    # --- attempts -------------------------------------------------------------------------------------

    def _begin_attempt(self, send: _Open, event: AttemptBegan) -> None:
        deployment, last = event.deployment, send.last
        if last is not None:
            what = "retry" if last is deployment else "fallback"
            steps = {"from": last.id, "to": deployment.id, "error.type": send.last_error or ""}
            _add(send.span, what, event, steps)
        elif send.model is None:
            send.model = deployment.model
            send.span.update_name(_span_name(send.model))
            send.span.set_attribute("gen_ai.request.model", send.model)
        send.span.set_attribute("gen_ai.provider.name", _provider(deployment))
        send.last = deployment
        send.attempt = self._tracer.start_span(
            f"attempt {deployment.model}",
            context=trace.set_span_in_context(send.span),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.provider.name": _provider(deployment),
                "gen_ai.request.model": deployment.model,
                "llm_router.key_id": deployment.key.key_id,
                "llm_router.project": deployment.key.project,
                "llm_router.workload": deployment.workload,
                "llm_router.attempt": event.number,
                "llm_router.reserved_tokens": event.reserved,
            },
            start_time=_nanoseconds(event.at),
        )
        if not send.streamed:
            send.attempt_token = _enter(send.attempt)

    def _end_attempt(self, send: _Open, event: AttemptEnded) -> None:
        span, send.attempt = send.attempt, None
        _leave(send.attempt_token)
        send.attempt_token = None
        send.last_error = error_type(event.error)
        if span is not None:
            _set_known(span, {"gen_ai.response.model": event.response_model})
            if event.finish_reason is not None:
                span.set_attribute("gen_ai.response.finish_reasons", [event.finish_reason])
            _mark(span, event.error)
            span.end(_nanoseconds(event.at))
        usage, deployment = event.usage, event.deployment
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens + usage.thinking_tokens),
        ):
            if tokens > 0:
                more = {"gen_ai.token.type": kind, "gen_ai.response.model": event.response_model}
                self._usage.record(tokens, self._attributes(event, deployment, deployment.model, more))

    def _attributes(
        self,
        event: RequestEvent,
        deployment: Deployment | None,
        model: str | None,
        more: Mapping[str, str | None],
    ) -> dict[str, str]:
        """Return the attributes of a measurement."""
        words = self._bounded.admit(metadata_values(event.metadata, self._labels))
        known: dict[str, str | None] = {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": None if deployment is None else _provider(deployment),
            "gen_ai.request.model": model,
            **more,
        }
        found = {name: value for name, value in known.items() if value is not None}
        named = zip(self._labels, words, strict=True)
        found.update({f"llm_router.metadata.{name}": value for name, value in named if value})
        return found


def _span_name(model: str | None) -> str:
    return OPERATION if model is None else f"{OPERATION} {model}"


def _provider(deployment: Deployment) -> str:
    name = deployment.key.provider
    return _PROVIDERS.get(name, name)


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)


def _enter(span: Span) -> Token[Context]:
    return context.attach(trace.set_span_in_context(span))


def _leave(token: Token[Context] | None) -> None:
    if token is not None:
        context.detach(token)


def _add(span: Span, name: str, event: Event, attributes: Mapping[str, Plain]) -> None:
    """Add an event to a span, with attributes of this library."""
    own = {f"llm_router.{each}": value for each, value in attributes.items() if each != "error.type"}
    if failure := attributes.get("error.type"):
        own["error.type"] = failure
    span.add_event(f"llm_router.{name}", own, _nanoseconds(event.at))


def _set_known(span: Span, attributes: Mapping[str, Plain | None]) -> None:
    for name, value in attributes.items():
        if value is not None:
            span.set_attribute(name, value)


def _record_prompt(span: Span, request: Request) -> None:
    span.set_attribute("gen_ai.input.messages", input_messages(request.contents))
    if request.system_instruction is not None:
        span.set_attribute("gen_ai.system_instructions", system_instructions(request.system_instruction))


def _mark(span: Span, error: BaseException | None) -> str | None:
    """Mark a span that failed; return the type of the error. A reader who leaves early is not an error."""
    failure = error_type(error)
    if failure is None:
        return None
    if isinstance(error, GeneratorExit):
        span.set_attribute("llm_router.abandoned", value=True)
        return None
    span.set_attribute("error.type", failure)
    span.set_status(Status(StatusCode.ERROR))
    return failure

"""The sink for OpenTelemetry, read back by the in-memory exporters of its SDK."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import SpanKind, StatusCode

from llm_router import Deployment, ProviderError, Reply, Request, Router, Usage
from llm_router.observe import OpenTelemetryObserver, StoreLost, otel
from llm_router.observe.otel import OPERATION
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


@attrs.frozen
class Telemetry:
    """An SDK that keeps what it is given in memory."""

    exporter: InMemorySpanExporter = attrs.field(factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = attrs.field(factory=InMemoryMetricReader)
    tracers: TracerProvider = attrs.field(factory=TracerProvider)

    def observer(self, **options: Any) -> OpenTelemetryObserver:
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        return OpenTelemetryObserver(self.tracers, MeterProvider([self.reader]), **options)

    def spans(self) -> list[ReadableSpan]:
        """Return the spans in the order in which they began."""
        return sorted(
            self.exporter.get_finished_spans(), key=lambda span: (span.start_time, bool(span.parent))
        )

    def points(self, name: str) -> list[HistogramDataPoint]:
        """Return the data points of a histogram."""
        data = self.reader.get_metrics_data()
        assert data is not None
        found = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return [point for metric in found for point in metric.data.data_points]  # type: ignore[misc]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def attributes(span: ReadableSpan | HistogramDataPoint) -> dict[str, Any]:
    return dict(span.attributes or {})


def pair(pools: Pools) -> list[Deployment]:
    """Return two deployments of different models, of which the first is tried first."""
    return [pools.one("model-a", priority=0, key_id="k1"), pools.one("model-b", priority=1, key_id="k2")]


async def test_a_send_is_a_span_with_an_attempt_beneath(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, telemetry: Telemetry
) -> None:
    """The client span has what the conventions ask for; the attempt has the key."""
    usage = Usage(input_tokens=5, output_tokens=7, thinking_tokens=2, cached_tokens=1)
    provider.script(Reply("hello", usage=usage, model="model-a-001", finish_reason="STOP"))
    async with make_router([pools.one("model-a", key_id="k1")], observers=[telemetry.observer()]) as router:
        await router.send(
            "x",
            model_preference="model-a",
            workload="light",
            max_output_tokens=100,
            temperature=0.5,
            metadata={"tenant": "acme"},
        )
    send, attempt = telemetry.spans()
    assert (send.name, send.kind, send.parent) == ("generate_content model-a", SpanKind.CLIENT, None)
    assert (attempt.name, attempt.kind) == ("attempt model-a", SpanKind.CLIENT)
    assert attempt.parent is not None
    assert attempt.parent.span_id == send.context.span_id
    found = attributes(send)
    assert len(found.pop("llm_router.request_id")) == 16
    assert found == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "model-a",
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "model-a-001",
        "gen_ai.response.finish_reasons": ("STOP",),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "llm_router.attempts": 1,
        "llm_router.waited": 0.0,
        "llm_router.workload": "light",
        "llm_router.metadata.tenant": "acme",
    }
    found = attributes(attempt)
    assert (found["llm_router.key_id"], found["gen_ai.response.model"]) == ("k1", "model-a-001")
    assert not any("usage" in name or name == "gen_ai.operation.name" for name in found)
    assert (send.status.status_code, send.events) == (StatusCode.UNSET, ())


async def test_fallback_and_waiting_are_events(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    telemetry: Telemetry,
) -> None:
    """The span of a send says from which deployment to which it went, why, and how long it waited."""
    provider.script(ProviderError("the prompt", kind="server", code=503))
    async with make_router(pair(pools), observers=[telemetry.observer()], base_backoff=2.0) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(3)
        assert (await task).success
    send, first, second = telemetry.spans()
    assert send.name == "generate_content model-a"
    assert attributes(send)["gen_ai.response.model"] == "model-b"
    assert [event.name for event in send.events] == ["llm_router.waited", "llm_router.fallback"]
    waited, fallback = (dict(event.attributes or {}) for event in send.events)
    assert waited["llm_router.reason"] == "backoff"
    assert fallback == {"llm_router.from": "k1/model-a", "llm_router.to": "k2/model-b", "error.type": "503"}
    assert (attributes(first)["error.type"], first.status.status_code) == ("503", StatusCode.ERROR)
    assert (second.status.status_code, "error.type" in attributes(second)) == (StatusCode.UNSET, False)
    assert first.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= second.start_time
    assert "the prompt" not in "".join(span.to_json() for span in telemetry.spans())


async def test_the_same_deployment_again_is_a_retry(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    clock: ManualClock,
    telemetry: Telemetry,
) -> None:
    """Where there is no other deployment, that is said."""
    provider.script(ProviderError("broken pipe", kind="network"))
    async with make_router([pools.one()], observers=[telemetry.observer()], base_backoff=0.5) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(2)
        assert (await task).success
    names = [event.name for event in telemetry.spans()[0].events]
    assert names[-1] == "llm_router.retry"


async def test_a_send_without_room_fails(make_router: MakeRouter, pools: Pools, telemetry: Telemetry) -> None:
    """It has no attempt and no model, and its error is named."""
    async with make_router([pools.one(rpm=0)], observers=[telemetry.observer()]) as router:
        await router.send("x")
    [send] = telemetry.spans()
    assert (send.name, send.status.status_code) == ("generate_content", StatusCode.ERROR)
    assert attributes(send)["error.type"] == "QuotaExhaustedError"
    assert [event.name for event in send.events] == ["llm_router.refused"]
    [point] = telemetry.points("gen_ai.client.operation.duration")
    assert attributes(point) == {"gen_ai.operation.name": OPERATION, "error.type": "QuotaExhaustedError"}


async def test_the_metrics_of_the_conventions(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock, telemetry: Telemetry
) -> None:
    """Durations are of sends; tokens are of the model that used them; both know the tenant."""
    provider.script(ProviderError("spent", kind="quota", code=429, retry_delay=30), "a b")
    provider.delay = 0.25
    async with make_router(pair(pools), observers=[telemetry.observer()]) as router:
        task = asyncio.create_task(router.send("one two", metadata={"tenant": "acme", "user": "u"}))
        await clock.advance(1)
        assert (await task).text == "a b"
    [duration] = telemetry.points("gen_ai.client.operation.duration")
    assert duration.sum == pytest.approx(0.5)
    assert duration.explicit_bounds[:3] == pytest.approx((0.01, 0.02, 0.04))
    assert attributes(duration) == {
        "gen_ai.operation.name": OPERATION,
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "model-a",
        "gen_ai.response.model": "model-b",
        "llm_router.metadata.tenant": "acme",
    }
    tokens = telemetry.points("gen_ai.client.token.usage")
    used = {point.attributes["gen_ai.token.type"]: point for point in tokens if point.attributes}
    assert {kind: point.sum for kind, point in used.items()} == {"input": 2, "output": 3}
    assert used["input"].explicit_bounds[:4] == (1, 4, 16, 64)
    assert attributes(used["input"])["gen_ai.request.model"] == "model-b"


async def test_attributes_of_metrics_are_bounded(
    make_router: MakeRouter, pools: Pools, telemetry: Telemetry
) -> None:
    """Tenants beyond the bound are measured together."""
    observer = telemetry.observer(labels=["tenant"], max_series=2)
    async with make_router([pools.one(rpm=100)], observers=[observer]) as router:
        for number in range(5):
            await router.send("x", metadata={"tenant": f"t{number}"})
    points = telemetry.points("gen_ai.client.operation.duration")
    counts = {attributes(point)["llm_router.metadata.tenant"]: point.count for point in points}
    assert counts == {"t0": 1, "t1": 1, "other": 3}


async def test_spans_lie_where_they_belong(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, telemetry: Telemetry
) -> None:
    """The caller's span is the parent of the send's; what the provider traces lies beneath the attempt."""
    observer = telemetry.observer()
    tracer = telemetry.tracers.get_tracer("test")

    def traced(deployment: Deployment, request: Request) -> str:
        with tracer.start_as_current_span("http"):
            return "answer"

    provider.script(traced)
    async with make_router([pools.one()], observers=[observer]) as router:
        with tracer.start_as_current_span("caller") as caller:
            await router.send("x")
            assert trace.get_current_span() is caller
    by_name = {span.name.split()[0]: span for span in telemetry.spans()}
    parents = {name: span.parent and span.parent.span_id for name, span in by_name.items()}
    assert parents == {
        "caller": None,
        "generate_content": by_name["caller"].context.span_id,
        "attempt": by_name["generate_content"].context.span_id,
        "http": by_name["attempt"].context.span_id,
    }


async def test_a_stream_may_be_read_by_several_tasks(
    make_router: MakeRouter,
    pools: Pools,
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its spans are never the current ones, and both end with it."""
    router = make_router([pools.one()], observers=[telemetry.observer()])
    async with router, router.stream("a b c") as stream:
        await asyncio.create_task(stream.read())
        await asyncio.create_task(stream.collect())
        assert trace.get_current_span() is trace.INVALID_SPAN
    send, attempt = telemetry.spans()
    assert attributes(send)["gen_ai.request.stream"] is True
    assert (send.status.status_code, attempt.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    assert caplog.records == []


async def test_a_reader_who_leaves_is_not_an_error(
    make_router: MakeRouter, pools: Pools, telemetry: Telemetry
) -> None:
    """A stream that is left early is abandoned; a send that is cancelled has an error."""
    router = make_router([pools.one()], observers=[telemetry.observer()])
    async with router, router.stream("a b c") as stream:
        await stream.read()
    for span in telemetry.spans():
        assert span.status.status_code is StatusCode.UNSET
        assert attributes(span)["llm_router.abandoned"] is True


async def test_a_cancelled_send_leaves_no_span_behind(
    make_router: MakeRouter,
    provider: FakeProvider,
    pools: Pools,
    telemetry: Telemetry,
    clock: ManualClock,
) -> None:
    """Both spans end, with the name of the error."""
    provider.script(asyncio.Event())
    observer = telemetry.observer()
    async with make_router([pools.one()], observers=[observer]) as router:
        task = asyncio.create_task(router.send("x"))
        await clock.advance(0.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [attributes(span)["error.type"] for span in telemetry.spans()] == ["CancelledError"] * 2
    assert observer._open == {}


SAID: list[tuple[Any, list[dict[str, Any]]]] = [
    ("hi", [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]),
    (
        ["one", {"text": "two"}],
        [{"role": "user", "parts": [{"type": "text", "content": "one"}, {"type": "text", "content": "two"}]}],
    ),
    (
        [
            {"role": "user", "parts": [{"text": "q"}, {"inline_data": {"data": b"x"}}]},
            {"role": "model", "parts": [{"function_call": {"name": "f"}}]},
            {"parts": {"text": "r"}},
        ],
        [
            {"role": "user", "parts": [{"type": "text", "content": "q"}, {"type": "inline_data"}]},
            {"role": "assistant", "parts": [{"type": "function_call"}]},
            {"role": "user", "parts": [{"type": "text", "content": "r"}]},
        ],
    ),
    ([b"raw"], [{"role": "user", "parts": [{"type": "bytes"}]}]),
]


@pytest.mark.parametrize(("contents", "messages"), SAID, ids=["text", "parts", "contents", "other"])
async def test_content_is_recorded_for_those_who_ask(
    make_router: MakeRouter,
    pools: Pools,
    telemetry: Telemetry,
    contents: Any,
    messages: list[dict[str, Any]],
) -> None:
    """Prompt, system instruction and answer are JSON in the form of the conventions."""
    async with make_router([pools.one()], observers=[telemetry.observer(content=True)]) as router:
        response = await router.send(contents, system_instruction="be brief")
    found = attributes(telemetry.spans()[0])
    assert json.loads(found["gen_ai.input.messages"]) == messages
    assert json.loads(found["gen_ai.system_instructions"]) == [{"type": "text", "content": "be brief"}]
    [answer] = json.loads(found["gen_ai.output.messages"])
    assert answer["parts"] == [{"type": "text", "content": response.text}]
    assert (answer["role"], answer["finish_reason"]) == ("assistant", "STOP")


async def test_content_is_not_recorded_unasked(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, telemetry: Telemetry
) -> None:
    """Neither prompt nor answer nor key nor the text of an error is in a span or a metric."""
    provider.script("the answer", ProviderError("bad: the prompt", kind="request", code=400))
    async with make_router([pools.one()], observers=[telemetry.observer()]) as router:
        await router.send("the prompt", system_instruction="the instruction")
        await router.send("the prompt", system_instruction="the instruction")
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    exposed = data.to_json() + "".join(span.to_json() for span in telemetry.spans())
    for hidden in ("AIza", "the prompt", "the answer", "the instruction"):
        assert hidden not in exposed


def test_the_names_are_those_of_the_installed_conventions() -> None:
    """What begins with ``gen_ai.`` in this sink is in the package of the conventions."""
    source = _constants(gen_ai_attributes) | _constants(gen_ai_metrics) | {ERROR_TYPE}
    newer = {"gen_ai.request.stream", "gen_ai.usage.reasoning.output_tokens"}
    newer |= {"gen_ai.usage.cache_read.input_tokens"}
    used = set(_quoted())
    assert "gen_ai.provider.name" in used
    assert used - source <= newer  # which the oldest version that is allowed does not have
    assert gen_ai_attributes.GenAiOperationNameValues.GENERATE_CONTENT.value == OPERATION
    assert gen_ai_attributes.GenAiProviderNameValues.GCP_GEMINI.value == "gcp.gemini"


def _constants(module: Any) -> set[str]:
    return {value for value in vars(module).values() if isinstance(value, str)}


def _quoted() -> Iterator[str]:
    """Yield every name of the conventions in the source of the sink."""
    for node in ast.walk(ast.parse(inspect.getsource(otel))):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and text.startswith("gen_ai.") and " " not in text:
            yield text


def test_other_events_are_not_for_this_sink(telemetry: Telemetry) -> None:
    """What is not about a request makes no span."""
    telemetry.observer().observe(StoreLost(at=0.0, reason="down"))
    assert telemetry.spans() == []

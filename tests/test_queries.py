"""Embeddings, counts of tokens and lists of models, through the pool."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from google.genai import types

from llm_router import (
    Deployment,
    EmbeddingError,
    InvalidRequestError,
    Key,
    Metric,
    ProviderError,
    Quota,
    QuotaExhaustedError,
    Router,
    RouterClosedError,
    Secret,
    UnknownModelError,
)
from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.emulator.models import embedding
from llm_router.engine.queries import NAMED, Querier
from llm_router.providers._gemini_queries import GeminiQueries
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

KEYS = {"AIzaOfAlpha": "alpha", "AIzaOfBeta": "beta"}


def _deployment(project: str, model: str, rpm: int, workload: str = "medium") -> Deployment:
    secret = next(key for key, owner in KEYS.items() if owner == project)
    return Deployment(Key(project, Secret(secret)), model, workload, quotas=(Quota(Metric.RPM, rpm),))


POOL = (
    _deployment("alpha", "flash", 5),
    _deployment("beta", "pro", 5, "heavy"),
    _deployment("alpha", "text-embedding-1", 2),
    _deployment("beta", "text-embedding-1", 2),
    _deployment("beta", "text-embedding-2", 1),
)


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator(keys=KEYS, default_quota=QuotaSpec(rpm=10)) as emulator:
        yield emulator


@pytest.fixture
async def router(emulator: GeminiEmulator) -> AsyncIterator[Router]:
    async with Router(POOL, base_url=emulator.url, base_backoff=0.001) as router:
        yield router


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what the emulator's own tasks do."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)


# --- embeddings ---------------------------------------------------------------------------------------


async def test_texts_become_vectors_in_order(router: Router, emulator: GeminiEmulator) -> None:
    """A hundred go with each request; all are of one model, whichever keys serve it."""
    texts = [f"text {number}" for number in range(301)]
    found = await router.embed(texts, output_dimensionality=4)
    assert found.model == "text-embedding-1"
    assert found.attempts == emulator.accepted == 4
    assert [list(vector) for vector in found.vectors] == [embedding(text, 4) for text in texts]
    accepted = {project: counts.accepted for (project, _), counts in emulator.by_bucket.items()}
    assert accepted == {"alpha": 2, "beta": 2}


async def test_one_text(router: Router) -> None:
    """A string is one text; the model can be named as the API does."""
    found = await router.embed(
        "hello", model="models/text-embedding-2", task_type="RETRIEVAL_QUERY", title="t"
    )
    assert found.model == "text-embedding-2"
    assert len(found.vectors) == 1


async def test_another_model_where_the_first_has_no_room(router: Router) -> None:
    """Without a wish, a call goes to a model that has room."""
    for _ in range(4):
        assert (await router.embed("x")).model == "text-embedding-1"
    assert (await router.embed("x")).model == "text-embedding-2"
    with pytest.raises(QuotaExhaustedError) as caught:
        await router.embed("x")
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 61


async def test_what_was_embedded_is_not_lost(router: Router) -> None:
    """Where quota ends in the middle, the error has the other vectors, and says when to come back."""
    texts = [f"text {number}" for number in range(450)]
    with pytest.raises(EmbeddingError, match="50 of 450 texts") as caught:
        await router.embed(texts, output_dimensionality=4)
    assert caught.value.vectors.count(None) == 50
    assert caught.value.model == "text-embedding-1"
    assert caught.value.retry_after is not None
    assert isinstance(caught.value.__cause__, QuotaExhaustedError)
    for text, vector in zip(texts, caught.value.vectors, strict=True):
        assert vector is None or list(vector) == embedding(text, 4)


async def test_a_failing_key_is_replaced(router: Router, emulator: GeminiEmulator) -> None:
    """As with a send, another key is tried."""
    emulator.inject(Fault.status(503), times=1, methods=["batchEmbedContents"])
    found = await router.embed("x")
    assert found.attempts == 2


@pytest.mark.parametrize("texts", ["", [], ["a", ""], ["a", 1], 5, None, {"a": 1}], ids=str)
async def test_what_cannot_be_embedded(router: Router, texts: Any) -> None:
    """The text is named."""
    with pytest.raises(InvalidRequestError, match=r"texts\[|nothing to embed"):
        await router.embed(texts)


async def test_models_that_do_not_embed(router: Router) -> None:
    """They are refused by name, before anything is sent."""
    with pytest.raises(InvalidRequestError, match="cannot do embedContent"):
        await router.embed("x", model="flash")
    with pytest.raises(UnknownModelError):
        await router.embed("x", model="other")
    async with Router(POOL[:1], provider=None, base_url="http://127.0.0.1:9") as plain:
        with pytest.raises(InvalidRequestError, match="no deployment has a model for embedContent"):
            await plain.embed("x")


@pytest.mark.parametrize("value", [math.nan, 0, -1, True, 1.5, "x", [], 2**31], ids=str)
async def test_a_length_that_no_vector_has(router: Router, emulator: GeminiEmulator, value: Any) -> None:
    """It is refused by name, before anything is sent."""
    with pytest.raises(InvalidRequestError, match=r"^output_dimensionality must be a whole number above 0"):
        await router.embed("x", output_dimensionality=value)
    assert not emulator.accepted


@pytest.mark.parametrize("name", ["task_type", "title"])
async def test_words_that_are_none(router: Router, name: str) -> None:
    """What the vectors are for is said in a string."""
    options: dict[str, Any] = {name: 5}
    with pytest.raises(InvalidRequestError, match=f"{name} must be a string, not a int"):
        await router.embed("x", **options)


# --- what all of them refuse --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": math.nan}, InvalidRequestError, "timeout must be above 0 s"),
        ({"max_wait": -1}, InvalidRequestError, "max_wait must be 0 s or more"),
        ({"tenant": 5}, InvalidRequestError, "tenant must be a string"),
        ({"metadata": 5}, InvalidRequestError, "metadata must map names"),
        ({"urgency": "soon"}, InvalidRequestError, "urgency must be"),
        ({"config": {}}, TypeError, r"^{}\(\) has no option 'config'"),
        ({"timeuot": 5}, TypeError, r"^{}\(\) has no option 'timeuot': did you mean 'timeout'"),
    ],
    ids=str,
)
async def test_an_option_that_cannot_be_meant(
    router: Router, options: Any, error: type[Exception], message: str
) -> None:
    """Each query refuses it as a send does, with the one error and not with a group of them."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "embed": lambda: router.embed(["x"] * 950, **options),
        "count_tokens": lambda: router.count_tokens("x", **options),
        "models": lambda: router.models(**options),
    }
    for name, call in calls.items():
        with pytest.raises(error, match=message.replace("{}", name)):
            await call()


@pytest.mark.parametrize("model", [[], {}, 5, "", "models/", "nope"], ids=str)
async def test_a_model_that_is_none(router: Router, model: Any) -> None:
    """A query is told the same as a send."""
    with pytest.raises(InvalidRequestError) as told:
        await router.send("x", model=model)
    for call in (router.embed("x", model=model), router.count_tokens("x", model=model)):
        with pytest.raises(type(told.value)) as caught:
            await call
        assert str(caught.value) == str(told.value)


@pytest.mark.parametrize("model", [None, "flash"])
@pytest.mark.parametrize("workload", [[], 5, "", "nonsense"], ids=str)
async def test_a_workload_that_is_none(router: Router, workload: Any, model: str | None) -> None:
    """A count of tokens is told the same as a send."""
    with pytest.raises(InvalidRequestError) as told:
        await router.send("x", workload=workload)
    with pytest.raises(type(told.value)) as caught:
        await router.count_tokens("x", workload=workload, model=model)
    assert str(caught.value) == str(told.value)


async def test_embeddings_and_lists_have_no_workload(router: Router) -> None:
    """They say so, and do not leave the option to what sends their requests."""
    options: Any = {"workload": "medium"}
    for call in (router.embed("x", **options), router.models(**options)):
        with pytest.raises(TypeError, match=r"^(embed|models)\(\) has no option 'workload'"):
            await call


def test_the_names_of_arguments_are_known() -> None:
    """What a message offers in place of an unknown option is what the method takes."""
    for method, names in NAMED.items():
        parameters = inspect.signature(getattr(Router, method)).parameters.values()
        assert names == tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)


async def test_a_router_that_is_closed_while_it_embeds(emulator: GeminiEmulator) -> None:
    """Batches that have not left raise the error that a send raises, by itself."""
    pool = [_deployment("alpha", "text-embedding-1", 1), _deployment("beta", "pro", 5)]
    async with Router(pool, base_url=emulator.url, base_backoff=0.001) as router:
        task = asyncio.create_task(router.embed(["x"] * 950, max_wait=3600))
        await _until(lambda: emulator.accepted == 1 and router.keys.selector.waiting == 8)
        await router.aclose()
        with pytest.raises(RouterClosedError):
            await task


async def test_a_cancelled_call_whose_requests_fail_is_cancelled(
    router: Router, emulator: GeminiEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation is not lost for an error that comes while the requests end."""
    cancelled = asyncio.Event()

    async def fail(*_: object) -> None:
        try:
            cancelled.set()
            await asyncio.Event().wait()
        finally:
            raise RouterClosedError("closed meanwhile")

    monkeypatch.setattr(Querier, "_models_of", fail)
    task = asyncio.create_task(router.models())
    await cancelled.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- tokens -------------------------------------------------------------------------------------------


async def test_tokens_are_counted_without_quota(router: Router, emulator: GeminiEmulator) -> None:
    """By the model named, or one of the workload; a system instruction counts."""
    plain = await router.count_tokens("one two three four five")
    assert plain > 3
    assert await router.count_tokens(types.UserContent("one two three four five"), model="flash") == plain
    more = await router.count_tokens("one two three four five", system_instruction="be brief, be kind")
    assert more > plain
    assert await router.count_tokens(["one", "two"], workload="heavy") > 0
    assert "pro" not in emulator.by_model
    for status in await router.get_all_key_statuses():
        assert not status.get("rpm_usage", "0/").strip().startswith(("1", "2"))


async def test_what_cannot_be_counted(router: Router) -> None:
    """The argument is named."""
    with pytest.raises(InvalidRequestError, match="empty"):
        await router.count_tokens("")
    with pytest.raises(InvalidRequestError, match="workload 'light'"):
        await router.count_tokens("x", workload="light")
    with pytest.raises(InvalidRequestError, match="contents cannot be built"):
        await router.count_tokens([object()])
    with pytest.raises(InvalidRequestError, match="system_instruction cannot be built"):
        await router.count_tokens("x", system_instruction=[])
    with pytest.raises(UnknownModelError):
        await router.count_tokens("x", model="other")


# --- models -------------------------------------------------------------------------------------------


async def test_the_models_of_every_project() -> None:
    """Each has the projects that are served it, what it can do, and its limits."""
    async with (
        GeminiEmulator(keys=KEYS, models=["flash", "text-embedding-1"]) as emulator,
        Router(POOL, base_url=emulator.url) as router,
    ):
        found = await router.models()
    assert not found.failed
    assert list(found.models) == ["flash", "text-embedding-1"]
    flash = found.models["flash"]
    assert flash.projects == ("alpha", "beta")
    assert "generateContent" in flash.methods
    assert flash.input_token_limit > 0
    assert "embedContent" in found.models["text-embedding-1"].methods


async def test_a_project_that_cannot_be_asked() -> None:
    """It is named with the reason; only if none can be asked, that is raised, without a key in it."""
    async with (
        GeminiEmulator(keys={"AIzaOfAlpha": "alpha"}, default_quota=QuotaSpec()) as emulator,
        Router(POOL, base_url=emulator.url, base_backoff=0.001) as router,
    ):
        found = await router.models()
        assert set(found.failed) == {"beta"}
        assert "AIza" not in str(found.failed)
    async with Router(POOL, base_url="http://127.0.0.1:9", base_backoff=0.001, max_retries=0) as router:
        with pytest.raises(ProviderError) as caught:
            await router.models(timeout=5)
        assert "AIza" not in str(caught.value)


# --- answers that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"embeddings": [{}], "models": 5}',
        b'{"embeddings": [{"values": ["x"]}], "totalTokens": "x", "nextPageToken": 5}',
    ],
    ids=lambda body: body[:40].decode(),
)
def test_answers_that_cannot_be_read(body: bytes) -> None:
    """They are the provider's failure, whatever they are."""
    queries = GeminiQueries("v1beta")
    with pytest.raises(ProviderError):
        queries.read_embeddings(body, 1)
    with pytest.raises(ProviderError):
        queries.read_count(body)
    with pytest.raises(ProviderError):
        queries.read_models(body)


def test_pages_of_models() -> None:
    """The next page is asked for by its name."""
    queries = GeminiQueries("v1beta")
    models, page = queries.read_models(
        json.dumps({"models": [{"name": "models/a"}, {"x": 1}, 5], "nextPageToken": "a b"}).encode()
    )
    assert [model.name for model in models] == ["a"]
    assert queries.models(page).query == "pageSize=1000&pageToken=a%20b"


async def test_routers_that_cannot_be_asked() -> None:
    """A provider that relays nothing is named; a closed router says so."""
    async with Router(POOL, provider=FakeProvider()) as router:
        for call in (router.embed("x"), router.count_tokens("x"), router.models()):
            with pytest.raises(InvalidRequestError, match="GeminiProvider"):
                await call
    async with Router(POOL, base_url="http://127.0.0.1:9") as router:
        pass
    for call in (router.embed("x"), router.count_tokens("x"), router.models()):
        with pytest.raises(RouterClosedError):
            await call


async def test_a_cancelled_call_leaves_nothing(router: Router, emulator: GeminiEmulator) -> None:
    """Its requests end, and what was not sent is given back."""
    emulator.inject(Fault.hang(), methods=None)
    task = asyncio.create_task(router.embed(["x"] * 300))
    await _until(lambda: emulator.holding == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until(lambda: emulator.holding == 0)
    emulator.clear_faults()
    assert (await router.embed("x")).vectors


async def test_messages_of_another_api_are_refused_with_the_remedy(
    router: Router, emulator: GeminiEmulator
) -> None:
    """Wherever contents are taken, what to write instead is said, and nothing is sent."""
    message = {"role": "user", "content": "hi"}
    calls = (
        lambda: router.send(message),
        lambda: router.send([message]),
        lambda: router.conversation("one").send(message),
        lambda: router.conversation("two", history=[message]).send("x"),
        lambda: router.count_tokens([message]),
    )
    for call in calls:
        with pytest.raises(InvalidRequestError, match=r"OpenAI's API .*'parts': \[\{'text'"):
            await call()
    assert emulator.requests == 0

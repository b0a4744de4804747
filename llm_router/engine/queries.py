"""Embed texts, count tokens and list models: requests whose answers are read whole, over the relay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

import anyio
import attrs

from llm_router.domain.deployment import plain_model
from llm_router.domain.exchange import Exchange
from llm_router.domain.methods import ANY_METHOD, COUNT, EMBED
from llm_router.domain.numbers import shown, whole
from llm_router.domain.options import QueryOptions
from llm_router.domain.queries import Embeddings, ModelInfo, ModelList, Vector
from llm_router.domain.request import Request
from llm_router.domain.response import Response
from llm_router.engine.pool import Pool
from llm_router.engine.requests import check_query
from llm_router.engine.sending import Sender
from llm_router.errors import EmbeddingError, InvalidRequestError, QuotaExhaustedError, SendError
from llm_router.providers.base import QueriedProvider

__all__ = ["NAMED", "Querier"]

_T = TypeVar("_T")

_BATCH = 100
"""Most texts that the Gemini API takes in one request."""

NAMED: Mapping[str, tuple[str, ...]] = {
    "embed": ("model", "task_type", "title", "output_dimensionality"),
    "count_tokens": ("model", "workload", "system_instruction"),
    "models": (),
}
"""What each method of the router takes by name, besides :class:`QueryOptions`."""

_LONGEST_VECTOR = 2**31 - 1

_AT_ONCE = 8
"""Most requests of one call that are on their way together."""


@attrs.frozen
class _Batch:
    """The outcome of one request for embeddings."""

    vectors: tuple[Vector, ...] = ()
    attempts: int = 0
    waited: float = 0.0
    error: SendError | None = None


@attrs.frozen(eq=False)
class Querier:
    """Asks the provider of a pool what is not a prompt.

    Attributes:
        sender: Relays the requests.
        provider: Forms them, and reads the answers; None if no provider of the router can.
        pool: The deployments.
    """

    sender: Sender
    provider: QueriedProvider | None
    pool: Pool

    async def embed(
        self, texts: str | Sequence[str], model: str | None, config: Mapping[str, Any], options: QueryOptions
    ) -> Embeddings:
        """Embed texts, all with one model; see :meth:`Router.embed`.

        Raises:
            InvalidRequestError: There is no text, or no such model.
            EmbeddingError: Some of the texts could not be embedded.
            SendError: None of them could.
        """
        batches = _batches(texts)
        _check_embedding(config)
        model = self._check("embed", None, model, EMBED, options)
        models = self._models(EMBED) if model is None else [model]
        model, first = await self._embed_first(batches[0], models, config, options)
        if first.error is not None:
            raise first.error
        outcomes = [first] * len(batches)
        slots = anyio.Semaphore(_AT_ONCE)

        async def run(number: int) -> None:
            async with slots:
                outcomes[number] = await self._embed(batches[number], model, config, options)

        await _for_each(range(1, len(batches)), run)
        return _joined(model, batches, outcomes)

    async def _embed_first(
        self, batch: Sequence[str], models: Sequence[str], config: Mapping[str, Any], options: QueryOptions
    ) -> tuple[str, _Batch]:
        """Embed the first texts with the first model that has room, or wait for the first of all."""
        at_once: QueryOptions = {**options, "max_wait": 0.0}
        if len(models) > 1:
            for model in models:
                outcome = await self._embed(batch, model, config, at_once)
                if not isinstance(outcome.error, QuotaExhaustedError):
                    return model, outcome
        return models[0], await self._embed(batch, models[0], config, options)

    async def _embed(
        self, batch: Sequence[str], model: str, config: Mapping[str, Any], options: QueryOptions
    ) -> _Batch:
        provider = self._provider()
        body, response = await self._ask(provider.queries.embedding(model, batch, config), **options)
        attempts, waited = response.attempts, response.waited
        if response.error is not None:
            return _Batch((), attempts, waited, response.error)
        try:
            return _Batch(provider.queries.read_embeddings(body, len(batch)), attempts, waited)
        except SendError as error:
            return _Batch((), attempts, waited, error)

    async def count_tokens(
        self, request: Request, model: str | None, workload: str | None, options: QueryOptions
    ) -> int:
        """Count the tokens of a prompt; see :meth:`Router.count_tokens`.

        Raises:
            InvalidRequestError: The request is wrong, or there is no such model.
            SendError: They could not be counted.
        """
        model = self._check("count_tokens", workload, model, COUNT, options)
        model = self._models(COUNT, workload)[0] if model is None else model
        provider = self._provider()
        body, response = await self._ask(provider.queries.count(model, request), **options)
        response.raise_for_error()
        return provider.queries.read_count(body)

    async def models(self, options: QueryOptions) -> ModelList:
        """List the models; see :meth:`Router.models`.

        Raises:
            SendError: No project could be asked.
        """
        self._check("models", None, None, ANY_METHOD, options)
        found: dict[str, list[ModelInfo]] = {}
        failed: dict[str, SendError] = {}
        projects = sorted({state.deployment.key.project for state in self._asked()})

        async def ask(project: str) -> None:
            try:
                found[project] = await self._models_of(project, options)
            except SendError as error:
                failed[project] = error

        await _for_each(projects, ask)
        if not found:
            raise next(iter(failed.values()))
        return ModelList(_by_name(found), failed)

    async def _models_of(self, project: str, options: QueryOptions) -> list[ModelInfo]:
        provider = self._provider()
        models: list[ModelInfo] = []
        page = ""
        while True:
            exchange = provider.queries.models(page)
            body, response = await self._ask(exchange, projects=frozenset({project}), **options)
            response.raise_for_error()
            more, page = provider.queries.read_models(body)
            models += more
            if not page:
                return models

    # --- the way there ----------------------------------------------------------------------------------

    def _check(
        self, called: str, workload: str | None, model: str | None, method: str, options: QueryOptions
    ) -> str | None:
        """Check what all requests of a call have in common; return the name of the model, if one is given.

        Raises:
            InvalidRequestError: An argument is wrong, or no deployment of the model can do ``method``.
            RouterClosedError: The router is closed.
            RouterLoopError: The router works on another event loop.
            TypeError: There is no such option.
        """
        self._provider()
        check_query(called, options, NAMED[called])
        model = plain_model(model) if isinstance(model, str) else model
        self.sender.check_wish(workload, model, ANY_METHOD if model is None else method)
        return model

    async def _ask(
        self, exchange: Exchange, *, projects: frozenset[str] = frozenset(), **options: Unpack[QueryOptions]
    ) -> tuple[bytes, Response]:
        """Relay an exchange; return the body of the answer, and the outcome."""
        send = await self.sender.begin_relay(self._provider().read_exchange(exchange), **options)
        send.projects = send.projects or projects
        body = bytearray()
        async for event in self.sender.relay(send):
            if isinstance(event, bytes):
                body += event
            elif isinstance(event, Response):
                return bytes(body), event
        raise AssertionError("a relay ends with its response")

    def _provider(self) -> QueriedProvider:
        if self.provider is None:
            raise InvalidRequestError("no provider of this router answers queries: use GeminiProvider")
        return self.provider

    def _asked(self) -> Iterable[Any]:
        """Return the states of the deployments whose provider answers queries."""
        provider = self._provider()
        return [state for state in self.pool if state.group.upstream.provider is provider]

    def _models(self, method: str, workload: str | None = None) -> list[str]:
        """Return the models that can do something, in the order of the pool, each once.

        Raises:
            InvalidRequestError: There is none.
        """
        models = {
            state.deployment.model: None
            for state in self._asked()
            if method in state.group.methods and workload in (None, state.group.workload)
        }
        if not models:
            what = method if workload is None else f"{method} with workload {workload!r}"
            raise InvalidRequestError(
                f"no deployment has a model for {what}: add one to keys.json, or state its methods there"
            )
        return list(models)


def _batches(texts: str | Sequence[str]) -> list[Sequence[str]]:
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Sequence) or not texts:
        raise InvalidRequestError("there is nothing to embed: pass a string, or a list of them")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            what = "empty" if text == "" else f"a {type(text).__name__}"
            raise InvalidRequestError(f"texts[{number}] is {what}: pass strings that say something")
    return [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]


def _check_embedding(config: Mapping[str, Any]) -> None:
    """Check how texts are to be embedded.

    Raises:
        InvalidRequestError: A value cannot be meant; the message names it.
    """
    for name in ("task_type", "title"):
        if not isinstance(config.get(name, ""), str):
            raise InvalidRequestError(f"{name} must be a string, not a {type(config[name]).__name__}")
    length = config.get("output_dimensionality", 1)
    if not (isinstance(length, int) and 0 < (whole(length) or 0) <= _LONGEST_VECTOR):
        raise InvalidRequestError(
            f"output_dimensionality must be a whole number above 0 (at most {_LONGEST_VECTOR}), "
            f"not {shown(length)}"
        )


async def _for_each(items: Iterable[_T], call: Callable[[_T], Awaitable[None]]) -> None:
    """Call with every item at once; the first error ends the other calls, and is raised by itself.

    A task group would raise it in a group, which no caller of the router expects.
    """
    errors: list[Exception] = []

    async def run(item: _T) -> None:
        try:
            await call(item)
        except Exception as error:  # noqa: BLE001 - raised below; a cancellation passes
            errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(run, item)
    if errors:
        raise errors[0]


def _joined(model: str, batches: Sequence[Sequence[str]], outcomes: Sequence[_Batch]) -> Embeddings:
    """Return the vectors of all batches, of which the first is there.

    Raises:
        EmbeddingError: Some of the others failed.
    """
    attempts, waited = sum(each.attempts for each in outcomes), sum(each.waited for each in outcomes)
    errors = [each.error for each in outcomes if each.error is not None]
    if not errors:
        vectors = tuple(vector for each in outcomes for vector in each.vectors)
        return Embeddings(vectors=vectors, model=model, attempts=attempts, waited=waited)
    partial: list[Vector | None] = []
    for batch, each in zip(batches, outcomes, strict=True):
        partial += each.vectors if each.error is None else [None] * len(batch)
    missing = partial.count(None)
    waits = [error.retry_after for error in errors]
    raise EmbeddingError(
        f"{missing} of {len(partial)} texts were not embedded: {errors[0]}",
        vectors=tuple(partial),
        model=model,
        retry_after=None if None in waits else max(wait for wait in waits if wait is not None),
    ) from errors[0]


def _by_name(found: Mapping[str, Iterable[ModelInfo]]) -> dict[str, ModelInfo]:
    """Return models by name, each with the projects that are served it."""
    models: dict[str, ModelInfo] = {}
    for project in sorted(found):
        for model in found[project]:
            known = models.get(model.name, model)
            models[model.name] = attrs.evolve(known, projects=(*known.projects, project))
    return dict(sorted(models.items()))

"""The drop-in client."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NoReturn, Self, Unpack

from google import genai
from google.genai import types

from llm_router.bridge import Bridge, RouterSource
from llm_router.building.options import RouterOptions
from llm_router.domain.quota import GUARD
from llm_router.engine.requests import check_wait
from llm_router.errors import ConfigError, InvalidRequestError
from llm_router.genai.models import AsyncModels, Models
from llm_router.genai.transports import http_clients
from llm_router.providers._gemini_session import without_warnings_of_unused_keys
from llm_router.router import Router
from llm_router.stores.base import RateLimitStore

__all__ = ["Client"]

_BASE_URL = "https://generativelanguage.googleapis.com"
_NO_KEY = "the-router-chooses-the-key"
_OURS = (
    "base_url",
    "httpx_client",
    "httpx_async_client",
    "aiohttp_client",
    "client_args",
    "async_client_args",
)


class Client(genai.Client):
    """A ``google.genai.Client`` whose every HTTP call goes through the pool of a router.

    ::

        client = Client.from_config("keys.json", max_wait=30)
        print(client.models.generate_content(model="gemini-3.8-flash", contents="Hello").text)

    It is used as the SDK's, by any thread and any number of event loops, one after another or at the same
    time, and it has no key. A model that is named is kept, whichever key serves it;
    ``model="workload:light"`` means whatever serves that workload. A call may say more in its
    ``http_options.headers``: ``x-llm-router-workload``, ``-fallback``, ``-max-wait``, ``-urgency``,
    ``-tenant``.

    Errors are the SDK's: a ``ClientError`` with the code 429 and a RetryInfo where no key has room in time.
    Contents in OpenAI's form are an InvalidRequestError that says what to write in their place.
    Retries are the router's, so the SDK makes none, unless ``retry_options`` are given. Live sessions need a
    websocket, which no router can share: they are refused. A list (of files, caches, batches) is that of one
    project, all its pages; the next list may be another's.

    The router works on the event loop where it already is in use; otherwise on one in a thread of the client,
    which ends with :meth:`close`, with the client, or with the interpreter. After a fork, a client that made
    its router itself makes another.

    Args:
        router: A router, which the caller closes; or what makes one, which the client closes.
        max_wait: Most seconds for which a call waits for quota; None for its own timeout, at most 60.
        http_options: As for the SDK, but for what says where and how requests are sent.

    Raises:
        ConfigError: An argument is wrong.
    """

    def __init__(
        self,
        *,
        router: RouterSource,
        max_wait: float | None = None,
        http_options: types.HttpOptions | types.HttpOptionsDict | None = None,
    ) -> None:
        """Make a client of a router; see the class."""
        wait = None if max_wait is None else _checked_wait(max_wait)
        options = _checked_options(http_options)
        self._bridge = Bridge(router)
        options = options.model_copy(update=http_clients(self._bridge, wait))
        with without_warnings_of_unused_keys():
            super().__init__(vertexai=False, api_key=_NO_KEY, http_options=options)
        self._models = Models(self._api_client)
        self._aio._models = AsyncModels(self._api_client)  # noqa: SLF001
        # What opens a websocket asks the SDK for its URL or for its TLS options, or for both.
        api_client: Any = self._api_client
        api_client._websocket_base_url = _refuse_websockets  # noqa: SLF001
        api_client._websocket_ssl_ctx = _NoWebsockets()  # noqa: SLF001

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str] = "keys.json",
        *,
        http_options: types.HttpOptions | types.HttpOptionsDict | None = None,
        env: Mapping[str, str] | None = None,
        env_file: str | os.PathLike[str] | None = ".env",
        guard: float = GUARD,
        store: RateLimitStore | str | None = None,
        **options: Unpack[RouterOptions],
    ) -> Self:
        """Make a client from keys.json, ``.env`` and the environment.

        Args:
            path: The keys file.
            http_options: As for :class:`Client`.
            env: As for :meth:`Router.from_config`.
            env_file: As for :meth:`Router.from_config`.
            guard: As for :meth:`Router.from_config`.
            store: As for :meth:`Router.from_config`.
            options: As for :class:`Router`; ``max_wait`` is that of :class:`Client`.

        Raises:
            ConfigError: Something is wrong; the message names the file, the entry and the remedy.
        """
        make = partial(
            Router.from_config, path, env=env, env_file=env_file, guard=guard, store=store, **options
        )
        return cls(router=make, max_wait=options.get("max_wait"), http_options=http_options)

    def close(self) -> None:
        """End the calls that are under way, synchronous and asynchronous, and release everything.

        A router that the client was given stays open. May be called twice. ``client.aio.aclose()`` does not
        do this, as in the SDK: it closes nothing here.
        """
        self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __del__(self) -> None:
        """Do nothing: what was taken from the client, such as ``client.aio``, stays usable."""


def _checked_wait(seconds: float) -> float:
    try:
        return check_wait(seconds)
    except InvalidRequestError as error:
        problem = str(error)
    raise ConfigError(problem)


def _checked_options(given: types.HttpOptions | types.HttpOptionsDict | None) -> types.HttpOptions:
    """Return the options with what is the client's own; refuse what it cannot keep."""
    options = types.HttpOptions.model_validate(given or {}).model_copy()
    if refused := [name for name in _OURS if getattr(options, name, None)]:
        raise ConfigError(f"http_options of this client have no {refused[0]}: the router sends its requests")
    options.base_url = _BASE_URL
    if options.retry_options is None:
        options.retry_options = types.HttpRetryOptions(attempts=1)
    return options


class _NoWebsockets(Mapping[str, Any]):
    """Options of websockets that cannot be read."""

    def __getitem__(self, _name: str) -> Any:
        _refuse_websockets()

    def __iter__(self) -> Iterator[str]:
        _refuse_websockets()

    def __len__(self) -> int:
        return 1


def _refuse_websockets(*_: Any) -> NoReturn:
    raise InvalidRequestError(
        "live sessions do not go through a router: use google.genai.Client with a key of its own for them"
    )

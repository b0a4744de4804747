"""Answers a send from what the same request was answered before, or is being answered."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs

from llm_router.caching.answers import read_answer, shared, write_answer
from llm_router.caching.requests import canonical, request_of
from llm_router.domain.clock import Clock, monotonic
from llm_router.domain.numbers import real, shown, whole
from llm_router.domain.options import SendOptions
from llm_router.domain.request import Request
from llm_router.domain.response import Response
from llm_router.domain.status import CacheSavings
from llm_router.engine.requests import check_metadata, check_timeout, check_wait, unalias
from llm_router.errors import ConfigError, InvalidRequestError, RecordConflictError, StoreError
from llm_router.records.base import MAX_TTL, Bounds, RecordStore

__all__ = ["CACHE", "AnswerCache", "Cache", "savings_in"]

_log = logging.getLogger("llm_router")

CACHE = "cache"
"""The space in which answers are kept, and the count of what they saved."""

_KEYS = "cache.key"
"""The space of the key that names are made with."""

_SAVED = "saved"
_PATIENCE = 0.5
"""Seconds for which a send waits for the record store, on the machine's own clock."""

_PAUSE = 5.0
"""Seconds for which a record store that failed is not asked again."""

_FLUSH = 64
"""Most answers from the cache of which the savings are not in the record store yet."""

_T = TypeVar("_T")


@attrs.frozen
class Cache:
    """Where a router keeps answers, for how long and how many.

    Attributes:
        url: As for the ``store`` of a router (SQLite: a file beside it), or a record store of your own.
        ttl: Seconds for which an answer is given again, above 0.
        size: Most bytes of all answers; those kept longest ago are forgotten first.

    Raises:
        ConfigError: One of them is not what its name says.
    """

    url: str | RecordStore
    ttl: float = 3600.0
    size: int = 64 * 2**20

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.url, str | RecordStore) or isinstance(self.url, type):
            raise ConfigError(
                f"cache must be a URL such as sqlite:////path/state.sqlite3, not {type(self.url)!r}"
            )
        if not 0 < real(self.ttl) <= MAX_TTL:
            raise ConfigError(
                f"the ttl of a Cache must be a number of seconds above 0, not {shown(self.ttl)}"
            )
        if (whole(self.size) or 0) < 1:
            raise ConfigError(
                f"the size of a Cache must be a whole number of bytes above 0, not {shown(self.size)}"
            )

    @property
    def bounds(self) -> Bounds:
        """The bounds of its space."""
        return Bounds(records=1_000_000, size=self.size)


async def savings_in(records: RecordStore) -> CacheSavings | None:
    """Return what a cache in these records has saved; None if there is no cache, or it has saved nothing.

    Raises:
        StoreError: The record store failed.
    """
    saved = (await records.counts(CACHE, _SAVED)).get(_SAVED)
    if saved is None:
        return None
    return {"requests": saved.get("requests", 0), "tokens": saved.get("tokens", 0)}


class AnswerCache:
    """Stands before the send of a router.

    Two sends are the same if contents, config, and the other arguments that shape an answer are, with the
    wishes for model and workload; what only says how long to wait, and ``metadata``, is not looked at. What
    one sends while the same is under way is answered with it.

    A record store that fails costs at most half a second, now and then, and never an answer.

    Args:
        records: Where answers are kept.
        ttl: Seconds for which an answer is given again.
        send: Sends a request.
        enter: Raises if the router must not be used.
        place: What the router does to all its requests.
        clock: Where time comes from.
    """

    def __init__(
        self,
        records: RecordStore,
        ttl: float,
        send: Callable[..., Awaitable[Response]],
        enter: Callable[[], object],
        place: Any,
        clock: Clock,
    ) -> None:
        self._records = records
        self._ttl = ttl
        self._send = send
        self._enter = enter
        self._place = place
        self._now = monotonic(clock)
        self._key: bytes | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flights: dict[tuple[object, ...], asyncio.Future[Response | None]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._saved: Counter[str] = Counter()
        self._paused_until = -math.inf

    async def send(self, prompt: Any = None, **options: Any) -> Response:
        """Answer a send from the cache, or have it sent, and keep the answer if it may be kept.

        Raises:
            InvalidRequestError: As for ``Router.send``.
            RouterClosedError: As for ``Router.send``.
        """
        self._enter()
        self._adopt(asyncio.get_running_loop())
        wish = options.pop("cache", None)
        if wish not in (None, True, False, "always"):
            raise InvalidRequestError(f"cache must be True, False or 'always', not {shown(wish)}")
        if wish is False or not options.keys() <= SendOptions.__annotations__.keys():
            return await self._send(prompt, **options)
        prompt, named = unalias(prompt, SendOptions(**options))  # type: ignore[typeddict-item]
        _check(named)
        request = request_of(prompt, named)
        name = await self._name(request, named, anything=wish == "always")
        if name is None:
            return await self._send(prompt, **named)
        return await self._answer(name, request, prompt, named)

    async def savings(self) -> CacheSavings:
        """Return what was saved so far.

        Raises:
            StoreError: The record store failed.
        """
        await self._flush()
        return await savings_in(self._records) or {"requests": 0, "tokens": 0}

    async def aclose(self) -> None:
        """Finish keeping what is being kept. The record store is left open."""
        self._adopt(asyncio.get_running_loop())
        if self._keeping:
            await asyncio.wait(self._keeping)
        await self._try(self._flush)

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:  # what was under way on a closed one is gone
            self._loop = loop
            self._flights.clear()
            self._keeping.clear()

    # --- answering ---

    async def _answer(self, name: str, request: Request, prompt: Any, options: SendOptions) -> Response:
        began = self._now()
        # How long a send waits decides whether there is an answer, so only those that agree share one.
        flight = (name, options.get("timeout", 60.0), options.get("max_wait"))
        while (under_way := self._flights.get(flight)) is not None:
            response = await asyncio.shield(under_way)
            if response is not None:
                if response.success:
                    await self._count(response.usage.total_tokens)
                return shared(response, self._now() - began)
        landed = self._flights[flight] = asyncio.get_running_loop().create_future()
        try:
            response = await self._found(name, request)
            if response is not None:
                self._land(flight, landed, response)
                return attrs.evolve(response, latency=self._now() - began)
            response = await self._send(prompt, **options)
            landed.set_result(response)
        finally:
            if not landed.done():  # it was cancelled, or failed: the next one that waits goes on
                self._land(flight, landed, None)
        task = asyncio.create_task(self._keep(name, request, response, flight))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return response

    def _land(
        self, flight: tuple[object, ...], landed: asyncio.Future[Response | None], response: Response | None
    ) -> None:
        self._flights.pop(flight, None)
        landed.set_result(response)

    async def _found(self, name: str, request: Request) -> Response | None:
        """Return the answer that is kept under a name, or None."""
        record = await self._try(lambda: self._records.get(CACHE, name))
        found = None if record is None else read_answer(record.data, request)
        if found is None:
            return None
        response, tokens = found
        await self._count(tokens)
        return response

    async def _keep(
        self, name: str, request: Request, response: Response, flight: tuple[object, ...]
    ) -> None:
        try:
            data = write_answer(response, request)
            if data is not None:
                await self._try(lambda: self._records.put(CACHE, name, data, ttl=self._ttl))
        except (TypeError, ValueError, RecursionError):
            pass  # an answer that has no form to be kept in
        finally:
            self._flights.pop(flight, None)

    async def _count(self, tokens: int) -> None:
        self._saved["requests"] += 1
        self._saved["tokens"] += tokens
        if self._saved["requests"] >= _FLUSH:
            await self._try(self._flush)

    async def _flush(self) -> None:
        saved, self._saved = self._saved, Counter()
        if saved:
            try:
                await self._records.add(CACHE, _SAVED, saved, ttl=MAX_TTL)
            except BaseException:
                self._saved.update(saved)
                raise

    # --- names ---

    async def _name(self, request: Request, options: SendOptions, *, anything: bool) -> str | None:
        """Return under which name the answer to a request is kept; None if it is not to be kept."""
        try:
            text, lasts = canonical(request, options, self._place)
        except (TypeError, ValueError, RecursionError):
            return None  # it cannot be compared, or is wrong, which the send finds out
        if not lasts and not anything:
            return None
        key = self._key or await self._try(self._read_key)
        if key is None:
            return None
        self._key = key
        return hmac.digest(key, text, "sha256").hex()

    async def _read_key(self) -> bytes:
        """Return the key of the record store, which makes it if there is none.

        Names made without it could be told from those of guessed prompts.
        """
        record = await self._records.get(_KEYS, "key")
        if record is not None:
            return record.data
        try:
            made = secrets.token_bytes(32)
            await self._records.put(_KEYS, "key", made, ttl=MAX_TTL, version=0)
        except RecordConflictError:  # another process was faster
            return await self._read_key()
        return made

    async def _try(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Return what the record store answers; None if it fails, or has failed a moment ago."""
        if self._now() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await call()
        except (StoreError, TimeoutError) as error:
            self._paused_until = self._now() + _PAUSE
            _log.warning(
                "the cache does not answer, and is not asked for %g s: %s",
                _PAUSE,
                error if isinstance(error, StoreError) else "too slow",
            )
            return None


def _check(options: SendOptions) -> None:
    """Check the options that only a send itself looks at.

    Raises:
        InvalidRequestError: One makes no sense.
    """
    timeout, max_wait, metadata = (options.get(name) for name in ("timeout", "max_wait", "metadata"))
    if timeout is not None:
        check_timeout(timeout)
    if max_wait is not None:
        check_wait(max_wait)
    if metadata is not None:
        check_metadata(metadata)

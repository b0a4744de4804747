"""The emulator's public face: start it, inject faults, read its counters."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Self

import attrs

from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.quota import MINUTE
from llm_router.emulator.bucket import Counts
from llm_router.emulator.calls import Settings
from llm_router.emulator.connections import Connections
from llm_router.emulator.faults import GENERATE_METHODS, Fault, FaultRule, FaultRules
from llm_router.emulator.keyring import Keyring
from llm_router.emulator.quota import EmulatedQuotas
from llm_router.emulator.responding import Responder, echo
from llm_router.emulator.server import EmulatorServer
from llm_router.emulator.wiring import make_app

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping
    from types import TracebackType

    from llm_router.emulator.bucket import QuotaSpec, Window
    from llm_router.emulator.quota import Arrival, QuotaKey

__all__ = ["GeminiEmulator"]

_LOOPBACK = "127.0.0.1"


class GeminiEmulator:
    """A Gemini server on loopback that the google-genai SDK talks to through ``http_options.base_url``.

    It runs in the caller's event loop (``async with``), in a thread with its own loop
    (:meth:`run_in_thread`), or until cancelled (:meth:`serve`); one of these at a time. Starting it again
    keeps the counters. Counters, faults and quotas may be used from any thread.

    Args:
        keys: The project of each API key. With None every key is accepted, and each is its own project,
            named ``project-1``, ``project-2``, ... in order of appearance (see :meth:`project_of`).
        models: The models that exist; None is any.
        listed: The models that are listed if ``models`` is None.
        quotas: The quotas of each project, by model or by (project, model); the latter wins.
        default_quota: The quotas of each project on models not in ``quotas``; None is unlimited.
        clock: The clock for quotas and delays.
        window: Whether a minute is any span of 60 s (``sliding``) or a minute of the ``calendar``.
        responder: Makes the text of each answer, or the :class:`FunctionCall` objects in its place, given
            the model's name and the request as generateContent has it. The default one echoes the prompt,
            answers ``call:NAME{"a": 1}`` with that call if NAME is declared, and a schema with fitting JSON.
        input_token_limit: Tokens of the largest prompt; a larger one uses quota and is refused with a 400.
        thought_tokens: Thought tokens reported with each answer.
        stream_chunks: The most chunks in which an answer is streamed.
        log_size: The number of requests that :attr:`arrivals` keeps.
        port: The port of ``async with`` and :meth:`run_in_thread`; 0 is a free one.

    Raises:
        ValueError: ``window`` is unknown, or a project has the name of a key.
    """

    def __init__(
        self,
        *,
        keys: Mapping[str, str] | None = None,
        models: Iterable[str] | None = None,
        listed: Iterable[str] = (),
        quotas: Mapping[str, QuotaSpec] | Mapping[QuotaKey, QuotaSpec] | None = None,
        default_quota: QuotaSpec | None = None,
        clock: Clock | None = None,
        window: Window = "sliding",
        responder: Responder = echo,
        input_token_limit: int = 1_048_576,
        thought_tokens: int = 0,
        stream_chunks: int = 4,
        log_size: int = 100_000,
        port: int = 0,
    ) -> None:
        settings = Settings(
            models=tuple(models) if models is not None else None,
            listed=tuple(dict.fromkeys(listed)),
            input_token_limit=input_token_limit,
            thought_tokens=thought_tokens,
            stream_chunks=stream_chunks,
            responder=responder,
        )
        clock = clock or SystemClock()
        self._keyring = Keyring(keys)
        self._quotas = EmulatedQuotas(quotas, default_quota, window=window, log_size=log_size)
        self._faults = FaultRules()
        self._connections = Connections(clock)
        self._app = make_app(
            settings, self._quotas, self._faults, self._keyring, self._connections, clock, self.stats
        )
        self._port = port
        self._server: EmulatorServer | None = None

    # ------------------------------------------------------------------ running

    @property
    def url(self) -> str:
        """The URL it listens on, such as ``http://127.0.0.1:40123``.

        Raises:
            RuntimeError: It is not running.
        """
        if self._server is None:
            raise RuntimeError("the emulator is not running: use it in 'async with' or 'run_in_thread()'")
        return self._server.url

    async def __aenter__(self) -> Self:
        await self._start(_LOOPBACK, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def serve(
        self, host: str = _LOOPBACK, port: int = 0, *, started: Callable[[str], object] | None = None
    ) -> None:
        """Run until cancelled; call ``started`` with the URL once it listens.

        Raises:
            OSError: The port is taken.
        """
        async with self._running(host, port) as url:
            if started is not None:
                started(url)
            await asyncio.get_running_loop().create_future()

    @contextlib.contextmanager
    def run_in_thread(self) -> Generator[Self, None, None]:
        """Run in a thread with its own event loop, so that neither side blocks the other.

        Raises:
            OSError: The port is taken.
        """
        started: Future[Callable[[], object]] = Future()
        thread = threading.Thread(
            target=self._thread_main, args=(started,), name="gemini-emulator", daemon=True
        )
        thread.start()
        try:
            end = started.result()
            try:
                yield self
            finally:
                end()
        finally:
            thread.join()

    def _thread_main(self, started: Future[Callable[[], object]]) -> None:
        async def main() -> None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            async with self._running(_LOOPBACK, self._port):
                started.set_result(lambda: loop.call_soon_threadsafe(ended.set))
                await ended.wait()

        try:
            asyncio.run(main())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    @contextlib.asynccontextmanager
    async def _running(self, host: str, port: int) -> AsyncGenerator[str, None]:
        await self._start(host, port)
        try:
            yield self.url
        finally:
            await self._stop()

    async def _start(self, host: str, port: int) -> None:
        if self._server is not None:
            raise RuntimeError("the emulator is already running: make another one")
        self._server = await EmulatorServer.start(self._app, self._connections, host, port)

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    # ------------------------------------------------------------------- faults

    def inject(
        self,
        fault: Fault,
        *,
        model: str | None = None,
        key: str | None = None,
        times: int | None = None,
        methods: Collection[str] | None = GENERATE_METHODS,
        share: float = 1.0,
    ) -> FaultRule:
        """Give requests a fault from now on.

        A request that a quota refuses gets its 429 and leaves the fault to a later request. What does not
        generate shows only delays, hanging, dropped connections, statuses, and empty or cut bodies.

        Args:
            fault: What goes wrong.
            model: Only requests to this model.
            key: Only requests with this API key.
            times: The number of requests; None is all.
            methods: Only requests with these methods, such as ``generateContent``, ``chat.completions`` or
                ``files.get`` (see ``gemini_http.targets.Operation``); None is all.
            share: Only this share of all these requests, drawn at random: above 0, and at most 1.

        Returns:
            The rule, whose ``taken`` counts the requests that had the fault.

        Raises:
            ValueError: ``share`` is no such number.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be a number above 0 and at most 1, not {share!r}")
        rule = FaultRule(fault, model=model, key=key, left=times, methods=methods, share=share)
        self._faults.add(rule)
        return rule

    def clear_faults(self) -> None:
        """Remove all faults. Requests that already hang keep hanging; see :meth:`release`."""
        self._faults.clear()

    def release(self) -> None:
        """Let delayed and hanging requests continue to their answers."""
        self._connections.release()

    @property
    def holding(self) -> int:
        """The number of requests that are delayed or hang at the moment."""
        return self._connections.paused

    # ------------------------------------------------------- quotas and counters

    def set_quota(self, model: str, spec: QuotaSpec, *, project: str | None = None) -> None:
        """Set the quotas on ``model`` of every project, or of one; what has been used stays used."""
        self._quotas.set_quota(model if project is None else (project, model), spec)

    def project_of(self, key: str) -> str | None:
        """Return the project of ``key``, or None if the key is unknown."""
        return self._keyring.project_of(key)

    @property
    def requests(self) -> int:
        """The number of requests subject to quota that have arrived: to generate, stream or embed.

        Those neither accepted nor refused failed for another reason before quota was checked.
        """
        return self._app.requests

    @property
    def accepted(self) -> int:
        """The number of requests counted against a quota, whether they succeeded or not."""
        return self._total().accepted

    @property
    def refused(self) -> int:
        """The number of requests answered with a 429."""
        return self._total().refused

    @property
    def by_model(self) -> dict[str, Counts]:
        """The counts of each model over all projects; a peak is the highest of any project."""
        models: dict[str, Counts] = {}
        for (_, model), counts in self._quotas.counts().items():
            models[model] = models.get(model, Counts()) + counts
        return models

    @property
    def by_bucket(self) -> dict[tuple[str, str], Counts]:
        """The counts of each (project, model)."""
        return self._quotas.counts()

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The last ``log_size`` requests that were accepted or refused, oldest first."""
        return self._quotas.arrivals()

    def peak(self, window: float = MINUTE) -> dict[tuple[str, str], int]:
        """Return the largest number of accepted requests in any span of ``window`` seconds.

        The keys are (project, model). A span includes its first moment and not its last. For 60 s the peak is
        exact for any number of requests.

        Raises:
            ValueError: ``window`` is not 60 s, and more requests have arrived than the log keeps.
        """
        return self._quotas.peak(window)

    def reset(self) -> None:
        """Clear all counters, used quotas and faults."""
        self._faults.clear()
        self._quotas.clear()
        self._app.requests = 0

    def stats(self) -> dict[str, object]:
        """Return the counters as ``/__emulator__/stats`` shows them."""
        total = self._total()
        return {
            "requests": self.requests,
            "accepted": total.accepted,
            "refused": total.refused,
            "holding": self.holding,
            "by_model": {model: attrs.asdict(counts) for model, counts in self.by_model.items()},
            "by_bucket": [
                {"project": project, "model": model, **attrs.asdict(counts)}
                for (project, model), counts in self.by_bucket.items()
            ],
        }

    def _total(self) -> Counts:
        return reduce(add, self._quotas.counts().values(), Counts())

    def __repr__(self) -> str:
        where = self._server.url if self._server is not None else "stopped"
        total = self._total()
        return f"<GeminiEmulator {where}: {total.accepted} accepted, {total.refused} refused>"

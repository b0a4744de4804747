"""The emulator as a test uses it: start it, set faults, read the counters."""

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
from llm_router.emulator.app import GeminiApp
from llm_router.emulator.bucket import Counts
from llm_router.emulator.exchange import Wire
from llm_router.emulator.faults import GENERATE_METHODS, Fault, FaultBook, FaultRule
from llm_router.emulator.keyring import Keyring
from llm_router.emulator.quota import QuotaLedger
from llm_router.emulator.server import EmulatorServer
from llm_router.emulator.service import GeminiService, Responder, Settings, echo

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping
    from types import TracebackType

    from llm_router.emulator.bucket import QuotaSpec, Window
    from llm_router.emulator.quota import Arrival, QuotaKey

__all__ = ["GeminiEmulator"]

_LOOPBACK = "127.0.0.1"


class GeminiEmulator:
    """A Gemini server on loopback that the google-genai SDK talks to through ``http_options.base_url``.

    It runs in the event loop of the caller (``async with``), in a thread with a loop of its own
    (:meth:`run_in_thread`) or until cancelled (:meth:`serve`), one of these at a time; the counters go on
    counting when it is started again. Counters, faults and quotas may be used from any thread.

    Args:
        keys: The project of each API key. None: any key will do, and each is a project of its own, called
            ``project-1``, ``project-2``, ... in order of appearance (see :meth:`project_of`).
        models: The models there are; None is any.
        quotas: What each project may use, by model or, stronger, by (project, model).
        default_quota: What each project may use of a model that is not in ``quotas``; None is unlimited.
        clock: Whose time the quotas and the delays go by.
        window: Whether the minute is any span of 60 s, or that of the calendar.
        responder: Makes up the answers.
        input_token_limit: Tokens of the largest prompt; a larger one uses quota and is refused with a 400.
        thought_tokens: Tokens that every answer thinks first.
        stream_chunks: Into how many chunks an answer is streamed, at most.
        log_size: How many arrivals :attr:`arrivals` holds.
        port: The port of ``async with`` and :meth:`run_in_thread`; 0 is a free one.

    Raises:
        ValueError: ``window`` is neither, or a project has the name of a key.
    """

    def __init__(
        self,
        *,
        keys: Mapping[str, str] | None = None,
        models: Iterable[str] | None = None,
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
            input_token_limit=input_token_limit,
            thought_tokens=thought_tokens,
            stream_chunks=stream_chunks,
            responder=responder,
        )
        clock = clock or SystemClock()
        self._keyring = Keyring(keys)
        self._ledger = QuotaLedger(quotas, default_quota, window=window, log_size=log_size)
        self._faults = FaultBook()
        self._wire = Wire(clock)
        service = GeminiService(settings, self._ledger, self._faults, clock)
        self._app = GeminiApp(settings, service, self._keyring, self._wire, self.stats)
        self._port = port
        self._server: EmulatorServer | None = None

    # ------------------------------------------------------------------ running

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:40123``.

        Raises:
            RuntimeError: It does not run.
        """
        if self._server is None:
            raise RuntimeError("the emulator does not run: use it in 'async with' or 'run_in_thread()'")
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
        """Run in a thread with an event loop of its own, so that neither side can block the other's.

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
            raise RuntimeError("the emulator runs already: make another one")
        self._server = await EmulatorServer.start(self._app, self._wire, host, port)

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
    ) -> FaultRule:
        """Let requests go wrong from now on.

        A request that a quota refuses gets its 429 and leaves the fault to a later one. countTokens and the
        embeddings show only delays, hanging, dropped connections and error statuses.

        Args:
            fault: What goes wrong.
            model: Only requests to this model.
            key: Only requests with this API key.
            times: Only so many requests; None is all.
            methods: Only these methods; None is every method that is a POST.

        Returns:
            The rule, whose ``taken`` tells how many requests had the fault.
        """
        rule = FaultRule(fault, model=model, key=key, left=times, methods=methods)
        self._faults.add(rule)
        return rule

    def clear_faults(self) -> None:
        """Let nothing more go wrong. Requests that hang already go on hanging; see :meth:`release`."""
        self._faults.clear()

    def release(self) -> None:
        """Let the requests that are delayed or hang go on to their answers."""
        self._wire.release()

    @property
    def holding(self) -> int:
        """How many requests are delayed or hang at the moment."""
        return self._wire.held

    # ------------------------------------------------------- quotas and counters

    def set_quota(self, model: str, spec: QuotaSpec, *, project: str | None = None) -> None:
        """Allow ``spec`` on ``model`` from now on, to every project or to one; what was used stays used."""
        self._ledger.set_quota(model if project is None else (project, model), spec)

    def project_of(self, key: str) -> str | None:
        """Return the name of the project that ``key`` belongs to, or None when the key is unknown."""
        return self._keyring.project_of(key)

    @property
    def requests(self) -> int:
        """How many requests arrived that are subject to quota: to generate, to stream, to embed.

        Those that were neither accepted nor refused failed for another reason before the quota was asked.
        """
        return self._app.requests

    @property
    def accepted(self) -> int:
        """How many requests were counted against the quota, whatever became of them afterwards."""
        return self._total().accepted

    @property
    def refused(self) -> int:
        """How many requests were answered with a 429."""
        return self._total().refused

    @property
    def by_model(self) -> dict[str, Counts]:
        """The counts of each model, over all projects; the peaks are those of the worst project."""
        models: dict[str, Counts] = {}
        for (_, model), counts in self._ledger.counts().items():
            models[model] = models.get(model, Counts()) + counts
        return models

    @property
    def by_bucket(self) -> dict[tuple[str, str], Counts]:
        """The counts of each (project, model)."""
        return self._ledger.counts()

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The last requests that were accepted or refused, oldest first, as many as ``log_size``."""
        return self._ledger.arrivals()

    def peak(self, window: float = MINUTE) -> dict[tuple[str, str], int]:
        """Return the largest number of accepted requests in any span of ``window`` seconds.

        The span includes its first moment and not its last. By (project, model); for 60 s it is exact however
        many requests there were.

        Raises:
            ValueError: For a window other than 60 s, when more requests arrived than the log holds.
        """
        return self._ledger.peak(window)

    def reset(self) -> None:
        """Forget all that was counted, used and injected."""
        self._faults.clear()
        self._ledger.clear()
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
        return reduce(add, self._ledger.counts().values(), Counts())

    def __repr__(self) -> str:
        where = self._server.url if self._server is not None else "stopped"
        total = self._total()
        return f"<GeminiEmulator {where}: {total.accepted} accepted, {total.refused} refused>"

"""What a caller asks for, checked and made into a job."""

from __future__ import annotations

import math
from collections.abc import Iterable

import anyio
import attrs

from llm_router.domain.request import Fallback, Request
from llm_router.engine.plan import Planner
from llm_router.engine.run import Job
from llm_router.errors import InvalidRequestError, RouterClosedError
from llm_router.providers.base import PreparedProvider, Provider

__all__ = ["Intake"]


class Intake:
    """Makes jobs.

    Args:
        planner: Knows where to look for what.
        providers: Those that requests go through; the first speaks for all, since requests are the same
            for each.
        max_wait: Seconds to wait for capacity at most, where a caller does not say.

    Attributes:
        closed: Whether nothing is taken in any more.
    """

    def __init__(self, planner: Planner, providers: Iterable[Provider], max_wait: float) -> None:
        self._planner = planner
        providers = dict.fromkeys(providers)
        self._speaker = next(iter(providers))
        self._unprepared = [each for each in providers if isinstance(each, PreparedProvider)]
        self._preparing = anyio.Lock()
        self._max_wait = max_wait
        self.closed = False

    async def job(
        self,
        request: Request,
        workload: str | None,
        model: str | None,
        fallback: Fallback,
        timeout: float | None,
        max_wait: float | None,
    ) -> Job:
        """Make a job; a request in a request is unwrapped, under what the outer one says.

        Raises:
            UnknownWorkloadError: The workload is not configured.
            UnknownModelError: No deployment serves the model.
            InvalidRequestError: Something else is wrong.
            RouterClosedError: Nothing is taken in any more.
        """
        if self.closed:
            raise RouterClosedError("this router is closed: make a new one")
        if self._unprepared:
            await self._prepare()
        if isinstance(request.contents, Request):
            request = _merged(request.contents, request)
        _check(request)
        patience = self._max_wait if max_wait is None else max_wait
        limit = math.inf if timeout is None else timeout
        if limit <= 0 or patience < 0:
            raise InvalidRequestError(
                f"timeout must be above 0 s and max_wait 0 s or more, not {timeout!r} and {max_wait!r}"
            )
        plan = self._planner.plan(workload, model, fallback)
        self._speaker.validate(request)
        return Job(request, plan, self._speaker.estimate_tokens(request), limit, patience)

    async def _prepare(self) -> None:
        """Have the providers do first what takes long; who comes meanwhile waits for it."""
        async with self._preparing:
            while self._unprepared:
                await self._unprepared[-1].prepare()
                self._unprepared.pop()


def _merged(request: Request, named: Request) -> Request:
    """Return the request under the named arguments that were given."""
    given = {
        field.name: value
        for field in attrs.fields(Request)
        if field.name != "contents" and (value := getattr(named, field.name)) is not None
    }
    return attrs.evolve(request, **given) if given else request


def _check(request: Request) -> None:
    if not request.contents:
        raise InvalidRequestError("the prompt is empty: pass a string or contents")
    limit = request.max_output_tokens
    if limit is not None and (not isinstance(limit, int) or limit <= 0):
        raise InvalidRequestError(f"max_output_tokens must be a whole number above 0, not {limit!r}")

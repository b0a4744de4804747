"""Who calls, and what that caller may do: tokens, their limits, and the resources that belong to each."""

from __future__ import annotations

import ipaddress
import json
import logging
from collections import OrderedDict, deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.exchange import PAGES
from llm_router.engine.resources import CALLERS, OWNER_LIFE
from llm_router.errors import ConfigError, StoreError
from llm_router.gateway.answers import RefusedError
from llm_router.gateway.rates import TokenRates
from llm_router.gemini_http.api_errors import ApiError, exhausted, not_found
from llm_router.gemini_http.asking import WORKLOAD_PREFIX, Asked, MalformedBodyError, Reading, read_asked
from llm_router.gemini_http.framing import dump
from llm_router.gemini_http.resources import LISTS, upload_name
from llm_router.gemini_http.targets import Target, parse_target
from llm_router.records.memory import MemoryRecords
from llm_router.records.naming import digest_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from llm_router.domain.deployment import Deployment
    from llm_router.domain.exchange import Exchange, Head
    from llm_router.domain.options import RelayOptions
    from llm_router.gateway.tokens import Grant, TokenFile, Tokens
    from llm_router.records.base import RecordStore

__all__ = ["Caller", "Callers"]

_log = logging.getLogger("llm_router")

_MINUTE = 60.0
_WRONG = 20
"""Wrong tokens of an address within a minute that are told from no token; further ones are a 429."""

_ADDRESSES = 10_000
"""Most addresses that are remembered for it."""

_RELOAD = 1.0
"""Seconds after which the file is looked at again."""

_SUBNET = 64
"""Bits of an IPv6 address that belong to one network: its owner has all the others."""

_NAMED = 10
"""Most names in a message."""

_UNKNOWN = ApiError(
    int(HTTPStatus.UNAUTHORIZED),
    "UNAUTHENTICATED",
    "This gateway takes no such token: send one of `llm-router tokens add` where the API's key would be.",
)
_UNAVAILABLE = ApiError(
    int(HTTPStatus.SERVICE_UNAVAILABLE),
    "UNAVAILABLE",
    "This gateway cannot find out now whose that is: try again in a moment.",
)
_NO_ADMIN = ApiError(
    int(HTTPStatus.FORBIDDEN),
    "PERMISSION_DENIED",
    "This token opens neither the page nor the metrics: make one with `llm-router tokens add NAME --admin`.",
)


class Caller:
    """A caller whose token is good, for one exchange."""

    def __init__(self, callers: Callers, grant: Grant, target: Target | None) -> None:
        self._callers = callers
        self._grant = grant
        self._target = target

    @property
    def is_free(self) -> bool:
        """Whether the token is for every model and workload, and for no tenant."""
        return not (self._grant.workloads or self._grant.models or self._grant.tenant)

    def read(self, body: bytes) -> Reading | None:
        """Return what the exchange with this body asks for; None if the router is to say what is wrong."""
        if self._target is None:
            return None
        try:
            return Reading(self._target, read_asked(self._target, body))
        except MalformedBodyError:
            return None

    async def confine(
        self, exchange: Exchange, options: RelayOptions, deployments: Collection[Deployment]
    ) -> None:
        """Narrow the options of an exchange to what the token allows, which wins over every header.

        Args:
            exchange: The exchange, with what :meth:`read` has read of it.
            options: Are changed.
            deployments: All that there are.

        Raises:
            RefusedError: It allows no such exchange.
        """
        if self._grant.tenant is not None:
            options["metadata"] = {"tenant": self._grant.tenant}
        if not isinstance(exchange.reading, Reading):
            return  # the router says what is wrong
        target, asked = exchange.reading.target, exchange.reading.asked
        names = {*asked.resources, *upload_name(target.operation, exchange.query)}
        if target.resource:
            names.add(target.resource)
        for name in names:
            if await self._callers.owner(name) != self._grant.owner:
                raise RefusedError(not_found())
        operation, is_narrow = target.operation, bool(self._grant.workloads or self._grant.models)
        if is_narrow and (operation.method or operation.names_model_in_body):  # the latter makes a cache
            self._narrow(asked, options, deployments)
        if operation.method:
            await self._callers.count(self._grant)

    def _narrow(self, asked: Asked, options: RelayOptions, deployments: Collection[Deployment]) -> None:
        grant, named = self._grant, asked.model
        workload = options.get("workload")
        model = options.get("model_preference")
        if named.startswith(WORKLOAD_PREFIX):
            workload = workload or named.removeprefix(WORKLOAD_PREFIX)
        else:
            model = model or named or None
        allowed = _first_allowed(grant, deployments, model, workload)
        if allowed is None and model is not None and not grant.workloads:
            # A model that is allowed is so whatever workload is wished for.
            allowed = _first_allowed(grant, deployments, model, None)
        if allowed is None or not named:
            raise RefusedError(_forbidden(grant, model or workload))
        if grant.models:
            options["model_preference"] = model or allowed.model
        if grant.workloads:
            options["workload"] = allowed.workload
        options["fallback"] = "none" if grant.workloads else "model"

    async def note(self, head: Head) -> None:
        """Remember what an answer has made for the caller, and forget what it has deleted."""
        if head.created:
            await self._callers.give(head.created, self._grant.owner)
        for name in head.further:
            # A page shows everybody only what is theirs.
            if not name.startswith(PAGES) and await self._callers.owner(name) is None:
                await self._callers.give(name, self._grant.owner)
        if head.deleted:
            await self._callers.take(head.deleted)

    async def own_only(self, body: bytes) -> bytes:
        """Return an answer; of a list, with the caller's own things only."""
        if self._target is None or self._target.operation not in LISTS:
            return body
        found: Any = json.loads(body)
        for field, items in found.items() if isinstance(found, dict) else ():
            if isinstance(items, list):
                names = [each.get("name", "") if isinstance(each, dict) else "" for each in items]
                owners = [await self._callers.owner(str(name)) for name in names]
                found[field] = [
                    each for each, owner in zip(items, owners, strict=True) if owner == self._grant.owner
                ]
        return dump(found)


class Callers:
    """Knows the callers by their tokens.

    Args:
        file: Where the tokens are kept. It is read again when it changes.
        workers: How many processes serve.
        records: Where the counts of tokens and the owners of resources are kept, for all processes. Without
            it, each process knows its own resources, and divides the limits of tokens with the others.
        clock: Where time comes from.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(
        self,
        file: TokenFile,
        *,
        workers: int = 1,
        records: RecordStore | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._file = file
        self._clock = clock or SystemClock()
        self._records = records or MemoryRecords(clock=self._clock)
        self._rates = TokenRates(self._records, workers, self._clock, shares=records is not None)
        self._tokens = file.read()
        self._seen = self._version()
        self._look_again = self._clock.time() + _RELOAD
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    async def identify(self, exchange: Exchange, given: Sequence[str], address: str) -> Caller:
        """Return who calls.

        Args:
            exchange: What is asked for.
            given: The tokens that come with it.
            address: Where it comes from.

        Raises:
            RefusedError: The token is wrong, or there is none.
        """
        tokens = self.tokens
        target = parse_target(exchange.verb, exchange.path, openai=exchange.openai)
        for value in given:
            grant = tokens.find(value)
            if grant is not None:
                return Caller(self, grant, target)
        # The pieces of an upload come without a key: its id is as good as one.
        if not given and target is not None:
            for name in upload_name(target.operation, exchange.query):
                owner = await self.owner(name)
                for grant in tokens.grants:
                    if grant.owner == owner:
                        return Caller(self, grant, target)
        raise self._refusal(_network(address))

    def administrator(self, given: Iterable[str], address: str) -> Grant:
        """Return what the admin token among these words allows.

        Raises:
            RefusedError: There is no token among them, or the first one is no admin's.
        """
        tokens = self.tokens
        for value in given:
            grant = tokens.find(value)
            if grant is not None and grant.admin:
                return grant
            if grant is not None:
                raise RefusedError(_NO_ADMIN)
        raise self._refusal(_network(address))

    @property
    def tokens(self) -> Tokens:
        """The tokens as the file has them now."""
        self._reload()
        return self._tokens

    async def count(self, grant: Grant) -> None:
        """Count a request against the limit of a token.

        Raises:
            RefusedError: It is used up.
        """
        if grant.rpm is None:
            return
        again = await self._rates.take(grant.owner, grant.rpm)
        if again:
            message = f"The token {grant.name} allows {grant.rpm} requests a minute."
            raise RefusedError(exhausted(message, again), again)

    async def owner(self, name: str) -> str | None:
        """Return whose a resource is.

        Raises:
            RefusedError: That cannot be found out now.
        """
        try:
            # With the name of an upload anybody could go on with it: none is kept as it is.
            record = await self._records.get(CALLERS, digest_name(name))
        except StoreError as error:
            _log.warning("whose a resource is cannot be found out: %s", error)
            raise RefusedError(_UNAVAILABLE) from None
        return None if record is None else record.data.decode()

    async def give(self, name: str, owner: str) -> None:
        """Remember whose a resource is."""
        try:
            await self._records.put(CALLERS, digest_name(name), owner.encode(), ttl=OWNER_LIFE)
        except StoreError as error:  # what was made is there; its caller must not lose the answer
            _log.warning("whose one of %s is could not be kept: %s", name.partition("/")[0], error)

    async def take(self, name: str) -> None:
        """Forget a resource."""
        try:
            await self._records.delete(CALLERS, digest_name(name))
        except StoreError as error:
            _log.debug("a deleted resource could not be forgotten: %s", error)

    def _refusal(self, address: str) -> RefusedError:
        now = self._clock.time()
        wrong = self._wrong.setdefault(address, deque(maxlen=_WRONG))
        self._wrong.move_to_end(address)
        if len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
        _forget_old(wrong, now)
        if len(wrong) >= _WRONG:
            again = max(wrong[0] + _MINUTE - now, 0.001)
            return RefusedError(exhausted("Too many calls with a wrong token.", again), again)
        wrong.append(now)
        return RefusedError(_UNKNOWN)

    def _reload(self) -> None:
        now = self._clock.time()
        if now < self._look_again:
            return
        self._look_again = now + _RELOAD
        version = self._version()
        if version == self._seen:
            return
        self._seen = version
        try:
            self._tokens = self._file.read()
        except ConfigError as error:
            _log.warning("the tokens stay as they were: %s", error)

    def _version(self) -> tuple[int, int] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def _forget_old(times: deque[float], now: float) -> None:
    while times and not now - _MINUTE < times[0] <= now:
        times.popleft()


def _first_allowed(
    grant: Grant, deployments: Collection[Deployment], model: str | None, workload: str | None
) -> Deployment | None:
    """Return a deployment that a token allows; of a model and workload, where they are not None."""
    return next(
        (
            each
            for each in deployments
            if (not grant.workloads or each.workload in grant.workloads)
            and (not grant.models or each.model in grant.models)
            and workload in {None, each.workload}
            and model in {None, each.model}
        ),
        None,
    )


def _forbidden(grant: Grant, wish: str | None) -> ApiError:
    allowed = grant.models or [f"{WORKLOAD_PREFIX}{each}" for each in grant.workloads]
    remedy = f": it allows {', '.join(allowed[:_NAMED])}" if allowed else ""
    message = f"The token {grant.name} does not allow {(wish or 'this')[:100]!r}{remedy}."
    return ApiError(int(HTTPStatus.FORBIDDEN), "PERMISSION_DENIED", message)


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 4:  # noqa: PLR2004 - IP's version
        return str(found)
    return str(ipaddress.ip_network((found, _SUBNET), strict=False))

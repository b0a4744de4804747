"""Errors for user-supplied code that fails: they name the class and the method."""

from __future__ import annotations

import logging
import math
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from types import TracebackType

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.numbers import real, shown
from llm_router.errors import ExtensionError, LLMRouterError, StoreError
from llm_router.stores.base import (
    Decision,
    DeploymentSnapshot,
    QuotaSnapshot,
    RateLimitStore,
    Refusal,
    innermost,
)
from llm_router.strategies.base import Candidate, SelectionStrategy

__all__ = [
    "CheckedStrategy",
    "broken_promise",
    "cool_down",
    "is_foreign",
    "no_decision",
    "note_failure",
    "own_error",
    "pass_on",
    "snapshots_of",
    "store_error",
    "wrong_decision",
]

_log = logging.getLogger("llm_router")

_LIBRARY = "llm_router."
_PROMISE = "return candidates that it was given, each once at most"


def store_error(store: RateLimitStore, method: str, error: Exception) -> ExtensionError:
    """Return the error for an exception of a user's store, which may stand behind one of the library."""
    return own_error(innermost(store), method, error, within=_LIBRARY)


def note_failure(store: RateLimitStore, method: str, error: Exception) -> None:
    """Log that a call of the store failed which a send can do without.

    That a store does not answer is told elsewhere; a user's store that raises an error of its own is a bug.
    """
    if isinstance(error, ExtensionError):
        _log.warning("%s", error)
    elif isinstance(error, StoreError):
        _log.debug("the store failed in %s(): %s", method, error)
    else:
        _log.warning("%s", store_error(store, method, error))


async def snapshots_of(store: RateLimitStore, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
    """Return what a store, perhaps a user's, says of ``deployments``, in their order.

    Raises:
        StoreError: The store failed.
        ExtensionError: It raised an error of its own, or returned something else.
    """
    found = await _asked(store, "snapshot", deployments)
    promise = "return a DeploymentSnapshot of each deployment"
    if not isinstance(found, list | tuple) or len(found) != len(deployments):
        raise broken_promise(innermost(store), "snapshot", promise, found)
    for each, deployment in zip(found, deployments, strict=True):
        if not _is_snapshot(each, deployment):
            raise broken_promise(innermost(store), "snapshot", promise, each)
    return list(found)


async def cool_down(store: RateLimitStore, cooldown: Cooldown) -> None:
    """Tell a store, perhaps a user's, of a cooldown.

    Raises:
        StoreError: The store failed.
        ExtensionError: It raised an error of its own.
    """
    await _asked(store, "cool_down", cooldown)


async def pass_on(store: RateLimitStore, probes: Iterable[Cooldown]) -> None:
    """Have the next request probe half-open cooldowns: the one that was to is not sent."""
    with suppress(Exception):  # then it does in a minute
        for probe in probes:
            await store.cool_down(Cooldown.retry(probe.scope))


async def _asked(store: RateLimitStore, method: str, argument: object) -> object:
    """Return what a method of a store returns; an error of a user's store names it."""
    try:
        answer: object = await getattr(store, method)(argument)
    except LLMRouterError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a user's store raises
        failure = store_error(store, method, error)
    else:
        return answer
    raise failure  # from here, so that it does not refer to the other one


def is_foreign(store: RateLimitStore) -> bool:
    """Return whether a store, or the one behind it, is a user's."""
    return not type(innermost(store)).__module__.startswith(_LIBRARY)


def no_decision(store: RateLimitStore, found: object) -> ExtensionError:
    """Return the error for a user's store that returned something other than a decision."""
    return broken_promise(innermost(store), "reserve", "return a Decision", found)


def wrong_decision(
    store: RateLimitStore, found: Decision, asked: Sequence[Deployment]
) -> ExtensionError | None:
    """Return the error for a user's store whose decision is not on what it was asked, or None."""
    keeper = innermost(store)
    if found.deployment is not None and found.deployment not in asked:
        promise = "return a Decision on a deployment that it was given"
        return broken_promise(keeper, "reserve", promise, found.deployment)
    for name in ("headroom", "daily_headroom", "lifts"):
        if math.isnan(real(value := getattr(found, name))):
            return broken_promise(keeper, "reserve", f"return a Decision whose {name} is a number", value)
    for name, kind in (("refusals", Refusal), ("probes", Cooldown)):
        promise = f"return a Decision whose {name} are a tuple of {kind.__name__}s"
        given = getattr(found, name)
        if not isinstance(given, tuple) or not all(isinstance(each, kind) for each in given):
            return broken_promise(keeper, "reserve", promise, given)
    for refusal in found.refusals:
        if not _is_refusal(refusal, asked):
            promise = "return a Decision whose refusals are of deployments that it was given, with times"
            return broken_promise(keeper, "reserve", promise, refusal)
    return None


def _is_refusal(refusal: Refusal, asked: Sequence[Deployment]) -> bool:
    return (
        refusal.deployment in asked
        and isinstance(refusal.reason, str)
        and not math.isnan(real(refusal.retry_at) + real(refusal.wake_at))
        and isinstance(refusal.cooldown, Cooldown | None)
    )


def _is_snapshot(found: object, deployment: Deployment) -> bool:
    return (
        isinstance(found, DeploymentSnapshot)
        and (found.deployment is deployment or found.deployment == deployment)
        and isinstance(found.quotas, list | tuple)
        and all(isinstance(quota, QuotaSnapshot) for quota in found.quotas)
        and isinstance(found.cooldown, Cooldown | None)
    )


def own_error(
    extension: object, method: str, error: BaseException, *, within: str = "llm_router.engine."
) -> ExtensionError:
    """Return the error for an exception that a method must not raise; ``error`` itself is not kept.

    Its text may contain a key, and so may the local variables in its traceback. The new error names only its
    type and the line of the method.
    """
    what = f"{type(error).__name__}{_place(error.__traceback__, within)}"
    return ExtensionError(f"{_name(extension)}.{method}() raised {what}: it must not raise errors of its own")


def broken_promise(extension: object, method: str, promise: str, found: object) -> ExtensionError:
    """Return the error for a method that returned something other than its ``promise``."""
    if isinstance(found, Coroutine):
        found.close()  # since it will not be awaited
    return ExtensionError(f"{_name(extension)}.{method}() must {promise}, not {_kind(found)}")


def _name(extension: object) -> str:
    return type(extension).__name__


def _kind(value: object) -> str:
    return shown(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def _place(traceback: TracebackType | None, within: str) -> str:
    """Return the line of the method itself, which is the first frame outside of ``within``."""
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        if not module.startswith(within):
            return f" (line {traceback.tb_lineno} of {module})"
        traceback = traceback.tb_next
    return ""


class CheckedStrategy:
    """A user's strategy, with its errors translated and its orders checked.

    Args:
        strategy: The strategy.
    """

    __slots__ = ("_strategy",)

    def __init__(self, strategy: SelectionStrategy) -> None:
        self._strategy = strategy

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the strategy's order of ``candidates``.

        Raises:
            ExtensionError: The strategy raised an error of its own, or returned something other than
                candidates that it was given, each at most once.
        """
        given = set(map(id, candidates))
        found: object = None
        try:
            found = self._strategy.order(candidates)
            chosen = list(found) if isinstance(found, Iterable) else None
        except LLMRouterError:
            raise
        except Exception as error:
            # The error itself is kept: unlike a provider, a strategy is not given any secret.
            raise own_error(self._strategy, "order", error) from error
        if chosen is None:
            raise broken_promise(self._strategy, "order", _PROMISE, found)
        places = set(map(id, chosen))
        if len(places) < len(chosen) or not places <= given:
            strange = next((each for each in chosen if id(each) not in given), chosen[-1])
            raise broken_promise(self._strategy, "order", _PROMISE, strange)
        return chosen

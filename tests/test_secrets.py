"""No key appears in a repr, a log, a pickle, a traceback, a status or a store."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import Deployment, MemoryStore, ProviderError, Reply, Request, Router, Secret
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from tests.conftest import Pools


SECRET = "AIza-secret-of-hidden-key"


def _dump(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


@pytest.mark.parametrize(
    "show", [repr, str, "{}".format, "{:>40}".format, "{!r}".format, "%s".__mod__, ascii]
)
def test_a_secret_masks_itself(show: Any) -> None:
    """Every way to print a secret prints a mask."""
    assert SECRET not in show(Secret(SECRET))
    assert "***" in show(Secret(SECRET))


def test_a_secret_reveals_itself_only_when_asked() -> None:
    """Only reveal() returns the value; equality, truth and attributes do not reveal it."""
    secret = Secret(SECRET)
    assert secret.reveal() == SECRET
    assert secret != Secret(SECRET)
    assert bool(secret)
    assert not Secret("")
    assert not any(SECRET in repr(getattr(secret, name, None)) for name in dir(secret))


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_cannot_be_pickled_or_copied(leave: Callable[..., Any]) -> None:
    """Pickling and copying are errors that do not contain the value."""
    with pytest.raises(TypeError, match="environment") as caught:
        leave(Secret(SECRET))
    assert SECRET not in _dump(caught.value)


def test_values_mask_their_secret(pools: Pools) -> None:
    """Keys and deployments can be printed and taken apart without showing a secret."""
    deployment = pools.one(key_id="hidden-key")
    assert deployment.key.secret.reveal() == SECRET
    assert SECRET not in repr(deployment)
    assert SECRET not in repr(attrs.asdict(deployment))
    with pytest.raises(TypeError):
        pickle.dumps(deployment)


async def test_no_output_of_a_router_contains_a_key(pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    """After success, every kind of failure, and a bug in the provider, no output contains a key."""
    caplog.set_level(logging.DEBUG)
    kinds = ["quota", "key", "model", "server", "network", "timeout", "request"]
    provider = FakeProvider([ProviderError(f"scripted {kind}", kind=kind) for kind in kinds])
    provider.script(RuntimeError("a bug in the provider"))
    deployments = [pools.one("m", key_id="hidden-key", priority=0), *pools.many(9, "m")]
    store = MemoryStore()
    said: list[str] = []
    async with Router(deployments, provider=provider, store=store, base_backoff=0.0) as router:
        for _ in range(6):
            try:
                response = await router.send(Request(contents="x"))
            except RuntimeError as error:
                said.append(_dump(error))
                continue
            said += [repr(response), repr(response.attempt_log), str(response.error)]
            try:
                response.raise_for_error()
            except Exception as error:  # noqa: BLE001 - every error is searched
                said += [_dump(error), repr(error), str(pickle.dumps(str(error)))]
        said += [json.dumps(await router.get_all_key_statuses()), json.dumps(await router.health_check())]
        said += [repr(await router.explain("x")), json.dumps(attrs.asdict(await router.explain("x")))]
        said += [repr(router), repr(router.keys), repr(store), repr(list(router.keys.pool))]
        said += [repr(await store.snapshot(deployments))]
    assert len(said) > 20
    everything = "\n".join(said) + caplog.text
    for deployment in deployments:
        assert deployment.key.secret.reveal() not in everything


async def test_a_cancelled_send_has_a_clean_traceback(pools: Pools) -> None:
    """The traceback of a cancellation, with locals, does not contain the key."""
    deployment = pools.one(key_id="hidden-key")
    started = asyncio.Event()

    class Hanging(FakeProvider):
        async def generate(
            self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
        ) -> Reply:
            started.set()
            await asyncio.sleep(3600)
            return await super().generate(deployment, request, dispatched)

    router = Router([deployment], provider=Hanging())
    task = asyncio.create_task(router.send("x"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert SECRET not in _dump(caught.value)

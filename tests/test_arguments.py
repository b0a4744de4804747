"""Arguments that cannot be meant are answered with an error that names them, and are not obeyed."""

# What these tests pass is what the types forbid.
# mypy: disable-error-code="arg-type, attr-defined"

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import (
    ConfigError,
    Demand,
    Deployment,
    InvalidRequestError,
    Key,
    LeastLoaded,
    MemoryHistory,
    MemoryStore,
    Metric,
    Provider,
    ProviderError,
    Quota,
    Refill,
    Request,
    Router,
    Secret,
    UnknownModelError,
    UnknownWorkloadError,
)
from llm_router.observe import LoggingObserver
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


NAN, INF, HUGE = math.nan, math.inf, 10**400
NOT_NUMBERS: tuple[object, ...] = (True, "5", "", [], {}, 1j, object())


class _Ttls(MemoryStore):
    """A store that notes the ttl of every reservation."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.ttls: list[float] = []

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        self.ttls.append(ttl)
        return await super().reserve(reservation_id, candidates, demand, ttl)


async def refused(router: Router, provider: Provider, **options: Any) -> str:
    """Return the message about a wrong option of send and of stream, which sends nothing."""
    prompt = options.pop("prompt", "x")
    with pytest.raises(InvalidRequestError) as sent:
        await router.send(prompt, **options)
    with pytest.raises(InvalidRequestError) as streamed:
        async with router.stream(prompt, **options):
            pass
    assert type(sent.value) is type(streamed.value)
    assert str(sent.value) == str(streamed.value)
    assert provider.calls == []
    assert (await router.get_all_key_statuses())[0]["rpm_usage"] == "0/15"
    return str(sent.value)


# --- the numbers of a send ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout", "max_wait", "max_output_tokens", "temperature"])
async def test_a_number_that_cannot_be_meant(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, name: str
) -> None:
    """A negative number, NaN and what is not a number are refused by name, before anything is reserved."""
    async with make_router([pools.one()]) as router:
        for value in (NAN, -INF, -1, -1e305, -HUGE, *NOT_NUMBERS):
            assert name in await refused(router, provider, **{name: value}), value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0),
        ("timeout", -0.0),
        ("max_output_tokens", 0),
        ("max_output_tokens", 2.0),
        ("max_output_tokens", 2**31),
        ("max_output_tokens", sys.maxsize),
        ("max_output_tokens", HUGE),
        ("temperature", INF),
        ("temperature", HUGE),
    ],
)
async def test_a_number_out_of_range(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, name: str, value: float
) -> None:
    """A number outside the range of its option is refused by name."""
    async with make_router([pools.one()]) as router:
        assert name in await refused(router, provider, **{name: value})


@pytest.mark.parametrize("field", ["max_output_tokens", "temperature"])
async def test_numbers_of_a_request_object(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, field: str
) -> None:
    """The numbers of a Request that is passed as the prompt are checked as well."""
    async with make_router([pools.one()]) as router:
        assert field in await refused(router, provider, prompt=Request(contents="x", **{field: NAN}))


async def test_a_number_too_long_to_print(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """A wrong number of thousands of digits, which Python does not print, is refused as any other."""
    long = 10**5000
    async with make_router([pools.one()]) as router:
        for wrong in ({"max_output_tokens": long}, {"temperature": long}, {"timeout": -long}):
            assert (await refused(router, provider, **wrong)).endswith("a value of type int")
    with pytest.raises(ConfigError, match="a value of type int"):
        Quota(Metric.RPM, long)


@pytest.mark.parametrize(
    ("timeout", "ttl"),
    [
        (1, 61.0),
        (60.0, 120.0),
        (Fraction(1, 2), 60.5),
        (86_400.0, 86_460.0),
        (7 * 86_400, 7 * 86_400.0),
        (300 * 86_400.0, 7 * 86_400.0),
        (1e13, 3600.0),
        (sys.maxsize, 3600.0),
        (1e305, 3600.0),
        (HUGE, 3600.0),
        (INF, 3600.0),
        (None, 3600.0),
    ],
)
async def test_no_store_sees_a_ttl_it_cannot_keep(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, timeout: Any, ttl: float
) -> None:
    """A reservation lives for at most a week, however long the timeout; more than a year means no bound."""
    store = _Ttls(clock)
    async with make_router([pools.one()], store=store) as router:
        assert (await router.send("x", timeout=timeout)).success
        async with router.stream("x", timeout=timeout) as stream:
            assert (await stream.collect()).success
    assert store.ttls == [ttl, max(ttl, 3600.0)]
    assert all(type(ttl) is float for ttl in store.ttls)


@pytest.mark.parametrize("max_wait", [0, 1e13, sys.maxsize, 1e305, HUGE, INF])
async def test_every_wait_is_finite(
    make_router: Callable[..., Router], pools: Pools, max_wait: float
) -> None:
    """However long a send may wait, one that need not wait is served."""
    async with make_router([pools.one()]) as router:
        assert (await router.send("x", max_wait=max_wait)).success


@pytest.mark.parametrize("max_wait", [1e13, HUGE, INF])
@pytest.mark.parametrize("by_default", [False, True])
async def test_waiting_for_ever_ends_where_everything_is_disabled(
    make_router: Callable[..., Router], pools: Pools, max_wait: float, by_default: bool
) -> None:
    """Where nothing will ever have room, the longest wait is answered at once."""
    options, default = ({}, max_wait) if by_default else ({"max_wait": max_wait}, 0)
    async with make_router(pools.many(2), max_wait=default) as router:
        for deployment in list(router.keys.pool.states):
            await router.keys.disable(deployment.key.key_id)
        async with asyncio.timeout(5):
            response = await router.send("x", **options)
        assert (response.success, response.retry_after, response.waited) == (False, None, 0.0)
        async with asyncio.timeout(5), router.stream("x", **options) as stream:
            assert not (await stream.collect()).success


async def test_waiting_for_ever_waits_where_there_will_be_room(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """Where quota will come back, a send with an endless wait waits exactly as long as it must."""
    async with make_router([pools.one(rpm=1)]) as router:
        await router.send("x")
        task = asyncio.create_task(router.send("y", max_wait=INF))
        await clock.advance(60.2)
        assert not task.done()
        await clock.advance(0.2)
        assert task.result().success


async def test_waiting_for_ever_ends_when_the_last_key_is_disabled(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A send that waits is answered once what it waits for is disabled; one that comes later, too."""
    async with make_router([pools.one(key_id="last", rpm=1)]) as router:
        await router.send("x")
        waiting = [asyncio.create_task(router.send(str(n), max_wait=INF)) for n in range(3)]
        await clock.advance(1)
        await router.keys.disable("last")
        await clock.advance(0)
        responses = [task.result() for task in waiting]
        responses.append(await router.send("late", max_wait=INF))
    assert [(response.success, response.retry_after) for response in responses] == [(False, None)] * 4
    assert len(provider.calls) == 1


# --- the other options of a send ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [[], {}, ["light"], {"light"}])
@pytest.mark.parametrize("name", ["workload", "model_preference", "fallback"])
async def test_a_wish_that_is_not_a_string(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, name: str, value: Any
) -> None:
    """A list or a dictionary where a name belongs is refused by the name of its option."""
    async with make_router([pools.one()]) as router:
        message = await refused(router, provider, **{name: value})
    assert message == f"{name} must be a string, not a {type(value).__name__}"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("workload", 5, UnknownWorkloadError),
        ("workload", b"light", UnknownWorkloadError),
        ("workload", "", UnknownWorkloadError),
        ("model_preference", 5, UnknownModelError),
        ("model_preference", "models/", UnknownModelError),
        ("fallback", None, InvalidRequestError),
        ("fallback", True, InvalidRequestError),
    ],
)
async def test_a_wish_that_does_not_exist(
    make_router: Callable[..., Router], pools: Pools, name: str, value: Any, error: type[Any]
) -> None:
    """Anything else that is not configured is refused as unknown."""
    async with make_router([pools.one()]) as router:
        with pytest.raises(error, match=r"unknown|serves"):
            await router.send("x", **{name: value})


@pytest.mark.parametrize("value", ["x", b"x", 5, 1.5, True, [], ["a"], (), {1}])
async def test_a_config_of_a_wrong_type(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, value: Any
) -> None:
    """A config of a type that cannot be one is refused whatever the provider."""
    async with make_router([pools.one()]) as router:
        message = await refused(router, provider, config=value)
    assert message.startswith("config must be")


@pytest.mark.parametrize("value", ["x", [("HARASSMENT", "OFF")], 5])
async def test_safety_settings_of_a_wrong_type(
    make_router: Callable[..., Router],
    provider: FakeProvider,
    pools: Pools,
    value: str | list[tuple[str, str]] | int,
) -> None:
    """Safety settings that are not a mapping are refused whatever the provider."""
    async with make_router([pools.one()]) as router:
        message = await refused(router, provider, safety_settings=value)
    assert message.startswith("safety_settings must map")


# --- routers, deployments and quotas ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_retries", [-1, 1.5, 3.0, None]),
        ("base_backoff", [-0.1, INF, HUGE, None]),
        ("max_wait", [-0.1, None]),
        ("local_share", [0, -1, 1.01, 1e-300, INF, None]),
        ("max_requests_per_second", [0, -1, INF, HUGE, 5e-324]),
        ("history_tokens", [{"light": -1}, {"light": 1.5}, {"light": None}, {"lite": 1}, {1: 1}]),
    ],
)
@pytest.mark.parametrize("store", ["memory://", "sqlite:///never-opened"])
def test_a_wrong_number_makes_no_router(
    make_router: Callable[..., Router], pools: Pools, name: str, values: Any, store: str
) -> None:
    """A number of a router that is wrong is refused by its name, whatever the store."""
    for value in values:
        with pytest.raises(ConfigError, match=name):
            make_router([pools.one()], store=store, **{name: value})
    for value in (NAN, -INF, *NOT_NUMBERS):
        wrong = {"light": value} if name == "history_tokens" else value
        with pytest.raises(ConfigError, match=name):
            make_router([pools.one()], store=store, **{name: wrong})


def test_numbers_of_a_router_that_are_odd_but_clear(make_router: Callable[..., Router], pools: Pools) -> None:
    """Large and small numbers that can be meant make a router."""
    make_router(
        [pools.one()],
        max_retries=sys.maxsize,
        base_backoff=1e305,
        max_wait=INF,
        local_share=1,
        max_requests_per_second=0.01,
        history_tokens={"light": 0},
    )


async def test_a_huge_backoff_is_cut(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """A backoff is a minute at most, whatever its base."""
    provider.script(ProviderError("busy", kind="server", code=503))
    async with make_router(pools.many(2), base_backoff=1e305) as router:
        task = asyncio.create_task(router.send("x", timeout=None))
        await clock.advance(60)
        assert task.result().success


@pytest.mark.parametrize(
    ("field", "values", "name"),
    [
        ("limit", (-1, 1.5, NAN, INF, 10**15 + 1, HUGE, None, *NOT_NUMBERS), "rpm"),
        ("burst", (0, 16, 1.5, NAN, INF, HUGE, *NOT_NUMBERS), "burst"),
        ("window", (0, -1, NAN, INF, 1e305, HUGE, None, *NOT_NUMBERS), "window"),
        ("guard", (-1, NAN, INF, 1e13, HUGE, None, *NOT_NUMBERS), "guard"),
    ],
)
def test_a_quota_with_a_wrong_number(field: str, values: Sequence[object], name: str) -> None:
    """A quota refuses numbers that no store could keep, and says which."""
    for value in values:
        with pytest.raises(ConfigError, match=name):
            Quota(Metric.RPM, **({"limit": 15, "refill": Refill.STEADY} | {field: value}))


def test_a_whole_float_is_a_limit() -> None:
    """1e6 is a usual way to write a million: it becomes an int."""
    quota = Quota(Metric.TPM, 1e6, Refill.STEADY, burst=5.0)
    assert (quota.limit, quota.burst) == (1_000_000, 5)
    assert type(quota.limit) is type(quota.burst) is int
    assert quota == Quota(Metric.TPM, 1_000_000, Refill.STEADY, burst=5)


@pytest.mark.parametrize("fields", [{"priority": NAN}, {"priority": "1"}, {"weight": NAN}, {"weight": -1}])
def test_a_deployment_with_a_wrong_number(
    make_router: Callable[..., Router],
    pools: Pools,
    fields: dict[str, float] | dict[str, str] | dict[str, int],
) -> None:
    """The priority and the weight of a deployment are numbers that can be compared."""
    with pytest.raises(ConfigError, match=next(iter(fields))):
        make_router([pools.one(**fields)])


def test_two_quotas_of_one_metric(make_router: Callable[..., Router]) -> None:
    """A deployment with two quotas of one metric is refused: a store keeps only one of them."""
    quotas = (Quota(Metric.RPM, 5), Quota(Metric.RPM, 10))
    with pytest.raises(ConfigError, match=r"'k/m' has two quotas of one metric \(rpm 5, rpm 10\)"):
        make_router([Deployment(Key("k", Secret("s")), "m", "light", quotas=quotas)])


def test_a_model_that_is_called_as_all_models_of_a_project_are(
    make_router: Callable[..., Router], pools: Pools
) -> None:
    """What is counted on it would be mixed up with what all models of its project share."""
    with pytest.raises(ConfigError, match=r"'k/\*': '\*' stands for all models of a project: name one"):
        make_router([pools.one("models/*", key_id="k")])


def test_limits_that_disagree_in_one_project(make_router: Callable[..., Router], pools: Pools) -> None:
    """Deployments that share quotas must agree in them; those of other projects and models need not."""
    one, other = pools.one(rpm=5, project="p", key_id="a"), pools.one(rpm=6, project="p", key_id="b")
    with pytest.raises(ConfigError, match=r"'a/model-a' and 'b/model-a' share the quotas .* rpm differs"):
        make_router([one, other])
    with pytest.raises(ConfigError, match="rpd differs, None and Quota"):
        make_router([one, pools.one(rpm=5, rpd=9, project="p", key_id="b")])
    make_router([one, pools.one(rpm=6), pools.one("model-b", rpm=6, project="p")])


async def test_a_model_has_one_name(
    make_router: Callable[..., Router], provider: FakeProvider, pools: Pools
) -> None:
    """``models/m`` is ``m``: in a deployment, in a wish, and so in what is counted."""
    assert pools.one("models/m").model == "m"
    with pytest.raises(ConfigError, match="'k/m' is there twice"):
        make_router([pools.one("m", key_id="k"), pools.one("models/m", key_id="k")])
    pair = [pools.one("m", rpm=2, project="p"), pools.one("models/m", rpm=2, project="p")]
    async with make_router([*pair, pools.one("other", rpm=None)]) as router:
        for _ in range(2):
            response = await router.send("x", model_preference="models/m", fallback="none")
            assert (response.success, response.model) == (True, "m")
        assert not (await router.send("x", model_preference="m", fallback="none")).success
    assert {call.model for call in provider.calls} == {"m"}


def test_the_guard_of_from_config(tmp_path: Path) -> None:
    """A guard that cannot be meant is refused by name before a file is read."""
    for guard in (-1, NAN, INF, 1e13, True, "1", None):
        with pytest.raises(ConfigError, match="guard must be 0 s or more"):
            Router.from_config(tmp_path / "keys.json", guard=guard, provider=FakeProvider())


@pytest.mark.parametrize(
    "store", [5, "", "memory", b"memory://", Path("state.db"), MemoryStore, object(), False]
)
def test_what_is_not_a_store_is_refused(make_router: Callable[..., Router], pools: Pools, store: Any) -> None:
    """What is neither the URL of a store nor has its methods makes no router; the message says what does."""
    with pytest.raises(ConfigError, match="memory://"):
        make_router([pools.one()], store=store)


@pytest.mark.parametrize("policy", ["x", "", "Local", None, True, 5, []])
def test_a_policy_that_does_not_exist_is_refused(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock, policy: Any
) -> None:
    """Whatever the store, the message names the policies that there are."""
    for store in (
        "memory://",
        MemoryStore(clock=clock),
        FailoverStore(MemoryStore(clock=clock), clock=clock),
    ):
        with pytest.raises(ConfigError, match="'closed', 'local' or 'open'"):
            make_router([pools.one()], store=store, on_store_failure=policy)


# --- arguments of a wrong type ------------------------------------------------------------------------


WRONG_TYPES: list[tuple[str, list[Any]]] = [
    ("deployments", [5, None, "k", ["k"], [None], {"k": "m"}, Deployment]),
    ("strategy", [5, "least-loaded", object(), LeastLoaded, [LeastLoaded()], False]),
    ("provider", [5, "gemini", object(), [], FakeProvider, {5: FakeProvider()}, False]),
    ("provider['gemini']", [{"gemini": 5}, {"gemini": None}, {"gemini": FakeProvider}, {"gemini": {}}]),
    ("observers", [5, None, "x", [5], [None], [LoggingObserver], object(), LoggingObserver()]),
    ("histories", [5, "x", object(), MemoryHistory, {}, False]),
    ("clock", [5, "x", object(), ManualClock, False]),
    ("workloads", [5, None, "heavy", [], [5], ["light", None], ["light", ""], {"light"}, ["light"] * 2]),
    ("inactive", [5, None, "k", [5], ["k"]]),
    ("store", [5, object(), False, 0, ""]),
    ("base_url", [5, b"http://x", [], False]),
    ("safety_settings", [5, "x", ["x"], False]),
    ("history_tokens", [5, "x", [1], False]),
]


@pytest.mark.parametrize(("name", "values"), WRONG_TYPES, ids=[name for name, _ in WRONG_TYPES])
def test_an_argument_of_a_wrong_type_opens_nothing(
    pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, values: list[Any]
) -> None:
    """The error names the argument and, after a colon, the remedy; no store was opened before it."""
    if name != "store":
        monkeypatch.setattr("llm_router.building.opening.open_store", None)
    argument = name.partition("[")[0]
    options: dict[str, Any] = {"deployments": [pools.one()], "store": "sqlite:///never-opened"}
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [KEYS_ENTRY]}))
    for value in values:
        with pytest.raises(ConfigError, match=r"store|: ") as caught:
            Router(**(options | {argument: value}))
        assert name in str(caught.value), value
        if argument not in ("deployments", "store"):
            with pytest.raises(ConfigError) as caught:
                Router.from_config(keys, env={"API_KEY_k": SECRET}, **{"store": "memory://", argument: value})
            assert name in str(caught.value), value


SECRET = "AIzaSy-something-that-looks-like-one-3456789"
KEYS_ENTRY = {
    "key_id": "k",
    "provider": "gemini",
    "model_name": "m",
    "tags": {"workload": "light", "priority": 1},
    "limits": {"rpm": 5},
}


@pytest.mark.parametrize("name", ["deployments", "inactive", "strategy", "provider", "observers", "clock"])
def test_a_key_in_the_wrong_place_is_not_shown(pools: Pools, name: str) -> None:
    """A secret that is passed instead of an object is in no message."""
    for value in (SECRET, [SECRET], {"gemini": SECRET}):
        options: dict[str, Any] = {"deployments": [pools.one()], "provider": FakeProvider(), name: value}
        with pytest.raises(ConfigError) as caught:
            Router(**options)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", 5),
        ("path", None),
        ("path", b"keys.json"),
        ("env_file", 5),
        ("env", 5),
        ("env", "x"),
        ("env", ["API_KEY_k"]),
        ("env", {5: "x"}),
        ("env['API_KEY_k']", {"API_KEY_k": 5}),
    ],
)
def test_a_configuration_of_a_wrong_type(tmp_path: Path, name: str, value: Any) -> None:
    """What from_config reads is a file and a mapping of strings; anything else is refused by name."""
    options: dict[str, Any] = {"path": tmp_path / "keys.json", name.partition("[")[0]: value}
    with pytest.raises(ConfigError, match=r".: (pass|write) ") as caught:
        Router.from_config(**options, provider=FakeProvider())
    assert name in str(caught.value)


def test_an_empty_url_of_a_store_is_not_the_one_of_the_environment(tmp_path: Path) -> None:
    """A store that is given is used, or refused: never replaced by what the environment names."""
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [KEYS_ENTRY]}))
    env = {"API_KEY_k": SECRET, "LLM_ROUTER_STORE": "memory://"}
    with pytest.raises(ConfigError, match="no store has the URL scheme ''"):
        Router.from_config(tmp_path / "keys.json", env=env, store="", provider=FakeProvider())

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import aiohttp
import pytest
from google.genai import errors

from llm_router.emulator import GeminiEmulator, QuotaSpec
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.emulator.conftest import OpenSDK


MODEL = "gemini-test"
PACIFIC = ZoneInfo("America/Los_Angeles")
HOUR = 3600.0


def pacific(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    return datetime(year, month, day, hour, minute, second, tzinfo=PACIFIC).timestamp()


class Caller:
    """Sends requests over plain HTTP and returns whether they were accepted."""

    def __init__(self, http: aiohttp.ClientSession, emulator: GeminiEmulator) -> None:
        self._http = http
        self._url = f"{emulator.url}/v1beta/models/{{}}:generateContent"

    async def __call__(self, text: str = "hello", model: str = MODEL, key: str = "k") -> bool:
        body = {"contents": [{"parts": [{"text": text}]}]}
        headers = {"x-goog-api-key": key}
        async with self._http.post(self._url.format(model), json=body, headers=headers) as response:
            assert response.status in {200, 429}
            return response.status == 200

    async def burst(self, count: int) -> int:
        return sum([await self() for _ in range(count)])


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 15])
async def test_exactly_n_then_429(sdk: OpenSDK, clock: ManualClock, limit: int) -> None:
    """The SDK gets exactly N answers a minute, then 429s, and N more once the minute has passed."""
    async with (
        GeminiEmulator(default_quota=QuotaSpec(rpm=limit), clock=clock) as emulator,
        sdk(emulator) as models,
    ):
        for minute in (1, 2):
            for _ in range(limit):
                await models.generate_content(model=MODEL, contents="hello")
            for _ in range(3):
                with pytest.raises(errors.ClientError, match="429 RESOURCE_EXHAUSTED"):
                    await models.generate_content(model=MODEL, contents="hello")
            assert (emulator.accepted, emulator.refused) == (limit * minute, 3 * minute)
            clock.shift(60)
        assert emulator.peak() == {("project-1", MODEL): limit}


async def test_sliding_minute_is_strict(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """No span of 60 s has more requests than the limit, across calendar minutes too."""
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=2), clock=clock) as emulator:
        call = Caller(http, emulator)
        assert await call()
        clock.shift(30)
        assert await call()
        clock.shift(29.999)
        assert not await call()
        clock.shift(0.001)
        assert await call()
        assert not await call()
        assert emulator.peak() == {("project-1", MODEL): 2}


async def test_calendar_minute(http: aiohttp.ClientSession) -> None:
    """Calendar minutes let twice the limit pass around their boundary, and the peak shows it."""
    clock = ManualClock(pacific(2027, 1, 15, 12, 0, 59))
    quota = QuotaSpec(rpm=3)
    async with GeminiEmulator(default_quota=quota, clock=clock, window="calendar") as emulator:
        call = Caller(http, emulator)
        assert await call.burst(4) == 3
        clock.shift(1)
        assert await call.burst(4) == 3
        assert emulator.peak() == {("project-1", MODEL): 6}


async def test_unknown_window() -> None:
    """An unknown window is an error at once."""
    with pytest.raises(ValueError, match="'sliding' or 'calendar', not 'fixed'"):
        GeminiEmulator(window="fixed")  # type: ignore[arg-type]


async def test_token_quota(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """Input tokens are counted over the same 60 s, and return 60 s after their request."""
    async with GeminiEmulator(default_quota=QuotaSpec(tpm=100), clock=clock) as emulator:
        call = Caller(http, emulator)
        assert await call("x" * 240)
        clock.shift(20)
        assert await call("x" * 160)
        assert not await call("x")
        clock.shift(39)
        assert not await call("x")
        clock.shift(1)
        assert await call("x" * 240)
        assert not await call("x")
        counts = emulator.by_model[MODEL]
    assert (counts.accepted, counts.refused) == (3, 3)
    assert (counts.tokens, counts.peak_tokens) == (160, 100)


async def test_retry_delay_is_exact_for_tokens(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """There is room exactly when the 429 says, and not a moment earlier."""
    async with GeminiEmulator(default_quota=QuotaSpec(tpm=100), clock=clock) as emulator:
        call = Caller(http, emulator)
        for _ in range(4):
            assert await call("x" * 100)
            clock.shift(10)
        url = f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k"
        async with http.post(url, json={"contents": [{"parts": [{"text": "x" * 200}]}]}) as response:
            details = (await response.json())["error"]["details"]
        assert details[-1]["retryDelay"] == "30s"
        clock.shift(29.9)
        assert not await call("x" * 200)
        clock.shift(0.1)
        assert await call("x" * 200)


async def test_a_refused_request_counts_nowhere(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """A request refused by one quota uses none of the others."""
    quota = QuotaSpec(rpm=2, tpm=100, rpd=2)
    async with GeminiEmulator(default_quota=quota, clock=clock) as emulator:
        call = Caller(http, emulator)
        assert not await call("x" * 800)
        assert await call.burst(3) == 2


@pytest.mark.parametrize(
    ("noon", "hours"),
    [
        (pacific(2027, 1, 15, 12), 12),
        (pacific(2027, 3, 13, 23, 30), 0.5),
        (pacific(2027, 3, 14, 1), 22),
        (pacific(2027, 11, 7, 0), 25),
    ],
    ids=["winter", "the eve of spring forward", "spring forward", "fall back"],
)
async def test_the_day_ends_at_pacific_midnight(
    http: aiohttp.ClientSession, noon: float, hours: float
) -> None:
    """A quota per day resets exactly at midnight in Los Angeles, on days of any length."""
    clock = ManualClock(noon)
    async with GeminiEmulator(default_quota=QuotaSpec(rpd=2, tpd=1000), clock=clock) as emulator:
        call = Caller(http, emulator)
        assert await call.burst(3) == 2
        clock.shift(hours * HOUR - 0.001)
        assert not await call()
        clock.shift(0.001)
        assert await call.burst(3) == 2


async def test_tokens_per_day(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """Tokens per day add up across minutes."""
    async with GeminiEmulator(default_quota=QuotaSpec(tpd=3), clock=clock) as emulator:
        call = Caller(http, emulator)
        accepted = []
        for _ in range(4):
            accepted.append(await call("xxxx"))
            clock.shift(61)
    assert accepted == [True, True, True, False]


async def test_keys_of_one_project_share_its_quota(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """Two keys of a project share one quota per model; other projects and models have their own."""
    keys = {"k1": "p", "k2": "p", "k3": "q"}
    async with GeminiEmulator(keys=keys, default_quota=QuotaSpec(rpm=1), clock=clock) as emulator:
        call = Caller(http, emulator)
        assert await call(key="k1")
        assert not await call(key="k2")
        assert await call(key="k2", model="other")
        assert await call(key="k3")
        assert {key: (n.accepted, n.refused) for key, n in emulator.by_bucket.items()} == {
            ("p", MODEL): (1, 1),
            ("p", "other"): (1, 0),
            ("q", MODEL): (1, 0),
        }
        assert emulator.by_model[MODEL].accepted == 2


async def test_quotas_by_model_and_by_project(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """The quota of a (project, model) wins over the model's, which wins over the default."""
    quotas: dict[str | tuple[str, str], QuotaSpec] = {
        "narrow": QuotaSpec(rpm=2),
        ("q", "narrow"): QuotaSpec(rpm=0),
    }
    async with GeminiEmulator(
        keys={"k": "p", "l": "q"}, quotas=quotas, default_quota=QuotaSpec(rpm=3), clock=clock
    ) as emulator:
        call = Caller(http, emulator)
        assert await call.burst(5) == 3
        assert [await call(model="narrow") for _ in range(3)] == [True, True, False]
        assert not await call(model="narrow", key="l")
        emulator.set_quota("narrow", QuotaSpec(rpm=3))
        emulator.set_quota("narrow", QuotaSpec(rpm=1), project="q")
        assert [await call(model="narrow") for _ in range(2)] == [True, False]
        assert [await call(model="narrow", key="l") for _ in range(2)] == [True, False]


async def test_without_keys_every_key_is_a_project(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """Without declared keys each key is its own project, with a name that does not show the key."""
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=1), clock=clock) as emulator:
        call = Caller(http, emulator)
        assert [await call(key=key) for key in ("k1", "k2", "k1")] == [True, True, False]
        assert emulator.project_of("k2") == "project-2"
        assert set(emulator.by_bucket) == {("project-1", MODEL), ("project-2", MODEL)}


async def test_arrivals_are_logged(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """The log records the time and tokens of each request, and whether it was accepted."""
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=1), clock=clock, log_size=2) as emulator:
        call = Caller(http, emulator)
        start = clock.time()
        await call("x" * 40)
        clock.shift(5)
        await call()
        logged = [(one.at - start, one.tokens, one.accepted) for one in emulator.arrivals]
        assert logged == [(0, 10, True), (5, 1, False)]
        assert emulator.peak(10) == {("project-1", MODEL): 1}
        await call()
        assert len(emulator.arrivals) == 2
        with pytest.raises(ValueError, match="raise log_size"):
            emulator.peak(10)
        assert emulator.peak() == {("project-1", MODEL): 1}


async def test_peak_of_any_window(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """A peak counts accepted requests in a span that includes its first moment and not its last."""
    async with GeminiEmulator(clock=clock) as emulator:
        call = Caller(http, emulator)
        for pause in (0, 5, 5, 5, 30):
            clock.shift(pause)
            await call()
        key = "project-1", MODEL
        assert [emulator.peak(window)[key] for window in (5, 5.1, 15.1, 60)] == [1, 2, 4, 5]


async def test_clock_set_back(http: aiohttp.ClientSession) -> None:
    """A system clock that is set back does not bring quota back."""

    class Backwards(ManualClock):
        def time(self) -> float:
            return 1e9 + next(times)

    times = iter([100.0, 30.0, 150.0])
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=1), clock=Backwards()) as emulator:
        call = Caller(http, emulator)
        assert [await call(), await call(), await call()] == [True, False, False]


async def test_reset(http: aiohttp.ClientSession, clock: ManualClock) -> None:
    """A reset clears the counters and restores the whole quota."""
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=1), clock=clock) as emulator:
        call = Caller(http, emulator)
        assert await call.burst(2) == 1
        emulator.reset()
        assert (emulator.requests, emulator.accepted, emulator.refused, emulator.arrivals) == (0, 0, 0, ())
        assert await call.burst(2) == 1

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from google.genai import errors
from google.genai.errors import APIError
from google.genai.models import AsyncModels

from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.emulator.conftest import OpenSDK

pytestmark = pytest.mark.slow


MODEL = "gemini-test"
KEY = "AIza-test-key"


async def failure(models: AsyncModels, contents: str = "hello", model: str = MODEL) -> APIError:
    with pytest.raises(errors.APIError) as caught:
        await models.generate_content(model=model, contents=contents)
    assert KEY not in str(caught.value)
    return caught.value


def detail(error: APIError, name: str) -> Any:
    (found,) = (item for item in error.details["error"]["details"] if item["@type"].endswith(f".{name}"))
    return found


async def test_unknown_key(sdk: OpenSDK) -> None:
    """An undeclared key is answered as the real API answers an invalid one."""
    async with GeminiEmulator(keys={"another": "p"}) as emulator, sdk(emulator) as models:
        error = await failure(models)
        assert (emulator.requests, emulator.accepted, emulator.refused) == (1, 0, 0)
    assert (error.code, error.status) == (400, "INVALID_ARGUMENT")
    assert detail(error, "ErrorInfo")["reason"] == "API_KEY_INVALID"


async def test_missing_key(http: aiohttp.ClientSession) -> None:
    """A request without a key is denied."""
    async with GeminiEmulator() as emulator, http.get(f"{emulator.url}/v1/models") as response:
        assert response.status == 403
        assert (await response.json())["error"]["status"] == "PERMISSION_DENIED"


async def test_unknown_model(sdk: OpenSDK) -> None:
    """An undeclared model is not found, and uses no quota."""
    async with GeminiEmulator(models=["a"]) as emulator, sdk(emulator) as models:
        error = await failure(models)
        assert emulator.accepted == 0
    assert (error.code, error.status) == (404, "NOT_FOUND")
    assert error.message is not None
    assert "models/gemini-test is not found for API version v1beta" in error.message


async def test_too_many_tokens(sdk: OpenSDK) -> None:
    """A prompt over the limit is an invalid argument that states both numbers, and uses quota."""
    async with GeminiEmulator(input_token_limit=10) as emulator, sdk(emulator) as models:
        error = await failure(models, "x" * 44)
        assert emulator.by_model[MODEL].tokens == 11
    assert (error.code, error.status) == (400, "INVALID_ARGUMENT")
    assert error.message == "The input token count (11) exceeds the maximum number of tokens allowed (10)."


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"{}", b'{"contents": []}', b'{"contents": null}'])
async def test_invalid_body(http: aiohttp.ClientSession, data: bytes) -> None:
    """A body that is not a request is an invalid argument, and uses no quota."""
    async with GeminiEmulator() as emulator:
        url = f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k"
        async with http.post(url, data=data) as response:
            assert response.status == 400
            assert (await response.json())["error"]["status"] == "INVALID_ARGUMENT"
        assert (emulator.requests, emulator.accepted) == (1, 0)


@pytest.mark.parametrize(
    ("spec", "quota_id", "metric", "limit"),
    [
        (QuotaSpec(rpm=1), "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "requests", "1"),
        (QuotaSpec(tpm=1), "GenerateContentInputTokensPerModelPerMinute-FreeTier", "input_token_count", "1"),
        (QuotaSpec(rpd=1), "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "requests", "1"),
        (QuotaSpec(tpd=1), "GenerateContentInputTokensPerModelPerDay-FreeTier", "input_token_count", "1"),
    ],
)
async def test_quota_failure(
    sdk: OpenSDK, clock: ManualClock, *, spec: QuotaSpec, quota_id: str, metric: str, limit: str
) -> None:
    """A 429 states the exceeded quota, its limit, and when to retry."""
    async with GeminiEmulator(default_quota=spec, clock=clock) as emulator, sdk(emulator) as models:
        await models.generate_content(model=MODEL, contents="hello")
        clock.shift(23.6)
        error = await failure(models)
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    assert detail(error, "QuotaFailure")["violations"] == [
        {
            "quotaMetric": f"generativelanguage.googleapis.com/generate_content_free_tier_{metric}",
            "quotaId": quota_id,
            "quotaDimensions": {"location": "global", "model": MODEL},
            "quotaValue": limit,
        }
    ]
    assert detail(error, "RetryInfo")["retryDelay"] == "36.4s"
    assert detail(error, "Help")["links"]
    assert error.message is not None
    assert error.message.startswith("You exceeded your current quota")
    assert error.message.endswith("Please retry in 36.4s.")


async def test_quota_failure_names_every_violation(sdk: OpenSDK) -> None:
    """A limit of 0 is quotaValue "0" in every violation, with a short delay that does not help."""
    spec = QuotaSpec(rpm=0, tpm=0, rpd=0)
    async with GeminiEmulator(default_quota=spec) as emulator, sdk(emulator) as models:
        error = await failure(models)
    violations = detail(error, "QuotaFailure")["violations"]
    assert [violation["quotaValue"] for violation in violations] == ["0", "0", "0"]
    assert error.message is not None
    assert error.message.count("limit: 0, model: gemini-test") == 3
    assert 0 < float(detail(error, "RetryInfo")["retryDelay"].removesuffix("s")) <= 60


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (400, "INVALID_ARGUMENT", errors.ClientError),
        (401, "UNAUTHENTICATED", errors.ClientError),
        (403, "PERMISSION_DENIED", errors.ClientError),
        (404, "NOT_FOUND", errors.ClientError),
        (418, "UNKNOWN", errors.ClientError),
        (429, "RESOURCE_EXHAUSTED", errors.ClientError),
        (500, "INTERNAL", errors.ServerError),
        (503, "UNAVAILABLE", errors.ServerError),
        (504, "DEADLINE_EXCEEDED", errors.ServerError),
    ],
)
async def test_error_statuses(sdk: OpenSDK, code: int, status: str, kind: type[APIError]) -> None:
    """Every status has its usual body; those from 500 use quota, the others do not."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(Fault.status(code))
        error = await failure(models)
        assert emulator.accepted == (code >= 500)
        assert emulator.refused == (code == 429)
    assert (error.code, error.status) == (code, status)
    assert isinstance(error, kind)
    assert error.message


@pytest.mark.parametrize("fault", [Fault.status(429), Fault.list_429()], ids=["status", "list"])
async def test_the_429_of_a_fault_is_for_a_minute(sdk: OpenSDK, fault: Fault) -> None:
    """It names requests per minute and a delay, and states no limit in its details or message."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        emulator.inject(fault)
        error = await failure(models)
    body = error.details[0] if isinstance(error.details, list) else error.details
    [violation] = next(item for item in body["error"]["details"] if "violations" in item)["violations"]
    assert violation["quotaId"] == "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    assert "quotaValue" not in violation
    message = body["error"]["message"]
    assert "limit:" not in message
    assert message.endswith("Please retry in 36.4s.")


async def test_suspended_consumer(sdk: OpenSDK) -> None:
    """A fault for one key does not affect other keys."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models, sdk(emulator, "other") as others:
        emulator.inject(Fault.status(403), key=KEY)
        error = await failure(models)
        response = await others.generate_content(model=MODEL, contents="hello")
    assert detail(error, "ErrorInfo")["reason"] == "CONSUMER_SUSPENDED"
    assert response.text


async def test_no_key_in_any_reply(http: aiohttp.ClientSession) -> None:
    """No header, body or repr contains the key, for any request and fault."""
    keys = {KEY: "project"}
    faults = [Fault.status(code) for code in (400, 401, 403, 404, 429, 500, 503, 504)]
    faults += [
        Fault.bare_429(),
        Fault.list_429(),
        Fault.block(),
        Fault.safety(),
        Fault.no_content(),
        Fault.cut_json(),
    ]
    body = {"contents": [{"parts": [{"text": "hello"}]}]}
    async with GeminiEmulator(keys=keys, default_quota=QuotaSpec(rpm=len(faults))) as emulator:
        seen = []
        for query in (f"key={KEY}", f"key={KEY}-wrong"):
            for fault in [*faults, *[None] * len(faults)]:
                rule = emulator.inject(fault, key=KEY, times=1) if fault else None
                url = f"{emulator.url}/v1/models/m:generateContent?{query}"
                async with http.post(url, json=body) as response:
                    seen.append(f"{response.status} {response.headers} {await response.text()}")
                seen.append(repr((rule, emulator, emulator._keyring)))
                emulator.clear_faults()
        seen.append(repr((emulator.stats(), emulator.arrivals)))
    assert {line[:3] for line in seen} >= {"200", "400", "429", "503"}
    assert KEY not in "".join(seen)


def test_a_project_is_not_called_like_a_key() -> None:
    """A project with the name of a key would show it, so it is an error, which does not show it."""
    with pytest.raises(ValueError, match="name of a key") as caught:
        GeminiEmulator(keys={KEY: KEY})
    assert KEY not in str(caught.value)

"""Whose fault a refusal is: bodies as users have reported them, through the SDK against the emulator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any

import pytest
from google.genai import types

from llm_router import Deployment
from llm_router.domain.request import Request
from llm_router.emulator import Fault
from llm_router.errors import ProviderError, QuotaViolation
from llm_router.providers.gemini import GeminiProvider
from llm_router.testing import GeminiEmulator

Refused = tuple[int, dict[str, Any]]
"""The status and the body of a refusal."""

HELLO = Request(contents="Hello?")
SERVICE = "generativelanguage.googleapis.com"
EXCEEDED = (
    "You exceeded your current quota, please check your plan and billing details. For more information on "
    "this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
EXHAUSTED = "Resource has been exhausted (e.g. check quota)."


def refusal(code: int, status: str | None, message: str, *details: Any) -> Refused:
    return code, {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def info(reason: str, **metadata: Any) -> dict[str, Any]:
    name = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": name, "reason": reason, "domain": "googleapis.com", "metadata": metadata}


def quota_failure(*violations: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": list(violations)}


def violation(
    quota_id: str, metric: str = "", value: Any = None, **dimensions: Any
) -> dict[str, Collection[str]] | dict[str, Any]:
    found = {"quotaId": quota_id, "quotaMetric": f"{SERVICE}/{metric}", "quotaDimensions": dimensions}
    return found if value is None else found | {"quotaValue": value}


def denied(message: str, *details: Any) -> Refused:
    return refusal(403, "PERMISSION_DENIED", message, *details)


def invalid(message: str, *details: Any) -> Refused:
    return refusal(400, "INVALID_ARGUMENT", message, *details)


def precondition(message: str) -> Refused:
    return refusal(400, "FAILED_PRECONDITION", message)


def exhausted(message: str, *details: Any) -> Refused:
    return refusal(429, "RESOURCE_EXHAUSTED", message, *details)


NOT_REGISTERED = (
    "Method doesn't allow unregistered callers. Please use API Key or other form of API identity."
)
NOT_USED = f"Generative Language API has not been used in project 12 before or it is disabled. {SERVICE}"
NO_BILLING = "This API method requires billing to be enabled. Please enable billing on project #12."
MODALITIES = (
    "The requested combination of response modalities is not supported by the model. "
    "models/gemini-x-tts accepts the following combination of response modalities:\n* AUDIO\n"
)
OUTPUT_RANGE = (
    "Unable to submit request because it has a maxOutputTokens value of 70000 but the supported range is "
    "from 1 (inclusive) to 65537 (exclusive)."
)
RESPONSE_MIME = "Function calling with a response mime type: 'application/json' is unsupported"

REFUSALS = {
    # the project
    "location": (precondition("User location is not supported for the API use."), "key", "project"),
    "location without billing": (
        precondition("User location is not supported for the API use without a billing account linked."),
        "key",
        "project",
    ),
    "free tier by country": (
        precondition("Gemini API free tier is not available in your country. Please enable billing."),
        "key",
        "project",
    ),
    "precondition": (precondition("Precondition check failed."), "key", "project"),
    "location, another status word": (
        invalid("User location is not supported for the API use."),
        "key",
        "project",
    ),
    "billing disabled": (invalid(NO_BILLING, info("BILLING_DISABLED")), "key", "project"),
    "suspended": (
        denied("Permission denied: Consumer 'projects/12' has been suspended.", info("CONSUMER_SUSPENDED")),
        "key",
        "project",
    ),
    "suspended, without a reason": (
        denied("Permission denied: Consumer has been suspended."),
        "key",
        "project",
    ),
    "denied access": (
        denied("Your project has been denied access. Please contact support."),
        "key",
        "project",
    ),
    "service disabled": (denied(NOT_USED, info("SERVICE_DISABLED", service=SERVICE)), "key", "project"),
    "service disabled, without a reason": (denied(NOT_USED), "key", "project"),
    "billing required": (denied(NO_BILLING), "key", "project"),
    "no such consumer": (
        denied("Permission denied on resource project 12.", info("CONSUMER_INVALID")),
        "key",
        "project",
    ),
    # the key
    "key not valid": (
        invalid("API key not valid. Please pass a valid API key.", info("API_KEY_INVALID")),
        "key",
        "key",
    ),
    "key not found": (invalid("API Key not found. Please pass a valid API key."), "key", "key"),
    "key expired": (invalid("API key expired. Please renew the API key."), "key", "key"),
    "not authenticated": (
        refusal(401, "UNAUTHENTICATED", "No.", info("ACCESS_TOKEN_TYPE_UNSUPPORTED")),
        "key",
        "key",
    ),
    "referrer": (
        denied("Requests from referer <empty> are blocked.", info("API_KEY_HTTP_REFERRER_BLOCKED")),
        "key",
        "key",
    ),
    "service": (
        denied(f"Requests to this API {SERVICE} are blocked.", info("API_KEY_SERVICE_BLOCKED")),
        "key",
        "key",
    ),
    "address": (
        denied("The originating IP address violates this restriction.", info("API_KEY_IP_ADDRESS_BLOCKED")),
        "key",
        "key",
    ),
    "blocked, without a reason": (denied(f"Requests to this API {SERVICE} are blocked."), "key", "key"),
    "leaked": (
        denied("Your API key was reported as leaked. Please use another API key."),
        "key",
        "key",
    ),
    "not registered": (denied(NOT_REGISTERED), "key", "key"),
    "another reason": (denied("No.", info("IAM_PERMISSION_DENIED")), "key", "key"),
    # the model for that project
    "no permission": (denied("The caller does not have permission"), "model", "deployment"),
    "no permission, older form": (
        (
            403,
            [
                {
                    "error": {
                        "code": 403,
                        "message": "The caller does not have permission",
                        "errors": [{"message": "No.", "domain": "global", "reason": "forbidden"}],
                        "status": "PERMISSION_DENIED",
                    }
                }
            ],
        ),
        "model",
        "deployment",
    ),
    "no permission for a model": (
        denied("You do not have permission to access models/gemini-x.", info("IAM_PERMISSION_DENIED")),
        "model",
        "deployment",
    ),
    "403 without a body": ((403, b""), "model", "deployment"),
    "403 cut short": (
        (
            403,
            '{"error": {"code": 403, "message": "The caller does not have permission", "errors": [{"reason"',
        ),
        "model",
        "deployment",
    ),
    "no such model": (
        refusal(404, "NOT_FOUND", "models/file-x is not found for API version v1beta."),
        "model",
        "deployment",
    ),
    "retired model": (
        refusal(404, "NOT_FOUND", "This model is no longer available to new users."),
        "model",
        "deployment",
    ),
    "not found, with a reason": (
        refusal(404, "NOT_FOUND", "No such file.", info("SERVICE_NOT_VISIBLE")),
        "model",
        "deployment",
    ),
    # the model, whatever the key
    **{
        words: (invalid(words), "request", "model")
        for words in (
            "Developer instruction is not enabled for models/gemma-3-27b-it",
            "Function calling is not enabled for models/gemma-3-27b-it",
            "Json mode is not enabled for models/gemini-pro",
            "Thinking is not enabled for models/gemini-2.0-flash-preview-image-generation",
            "Image input modality is not enabled for models/gemma-3n-e4b-it",
            "Audio input modality is not enabled for models/gemma-3n-e4b-it",
            "Penalty is not enabled for models/gemini-2.5-pro",
            "Multiturn chat is not enabled for models/gemini-x",
            "Search as tool is not enabled for this model",
            "Thinking level is not supported for this model.",
            "Unable to submit request because thinking is not supported by this model. Learn more: https://x",
            "Unable to submit request because thinking_level MEDIUM is not supported by this model.",
            "thinking_config is not supported",
            "Budget 0 is invalid. This model only works in thinking mode.",
            "The thinking budget 99999 is invalid. Please choose a value between 512 and 24576.",
            "This model only supports text output.",
            "This model does not support function calling.",
            MODALITIES,
            "Search Grounding is not supported.",
            RESPONSE_MIME,
            "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
            "The input token count exceeds the maximum number of tokens allowed 1048576.",
            "The input exceeds the context window of the model.",
            OUTPUT_RANGE,
            "Image part is missing a thought_signature in content position 2, part position 1.",
        )
    },
    # the request
    "argument": (invalid("Request contains an invalid argument."), "request", "request"),
    "unknown field": (
        invalid('Invalid JSON payload received. Unknown name "x": Cannot find field.'),
        "request",
        "request",
    ),
    "empty part": (
        invalid('* GenerateContentRequest.contents[0].parts[0].data: required oneof field "data"'),
        "request",
        "request",
    ),
    "order of turns": (
        invalid("Please ensure that function call turn comes immediately after a user turn."),
        "request",
        "request",
    ),
    "file not ready": (
        precondition("The File abc is not in an ACTIVE state and usage is not allowed."),
        "request",
        "request",
    ),
    "file of another project": (
        denied("You do not have permission to access the File abc or it may not exist."),
        "request",
        "request",
    ),
    "no such file": (refusal(404, "NOT_FOUND", "File not found."), "request", "request"),
    "payload": (refusal(413, None, "Payload too large."), "request", "request"),
    # quotas of the project
    "prepaid credits": (
        refusal(402, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted. Please go to AI Studio."),
        "quota",
        "project",
    ),
    "prepaid credits, as a 429": (
        exhausted("Your prepayment credits are depleted. Please go to AI Studio."),
        "quota",
        "project",
    ),
    "spend cap of the project": (
        exhausted("Your project has exceeded its monthly spending cap. Please go to AI Studio."),
        "quota",
        "project",
    ),
    "spend cap of the account": (
        exhausted("Your billing account has exceeded its monthly spending cap. Please go to AI Studio."),
        "quota",
        "project",
    ),
    "spending limit": (exhausted("This project exceeded its spending limit."), "quota", "project"),
    "spend-based rate limit, with a quota": (
        exhausted(
            "Your project has exceeded its spend-based rate limit.",
            quota_failure(violation("GenerateRequestsPerDayPerProjectPerModel-FreeTier")),
        ),
        "quota",
        "project",
    ),
    "spend-based rate limit": (
        exhausted("Your project has exceeded its spend-based rate limit. Please try again later."),
        "quota",
        "project",
    ),
    "per project": (
        exhausted(EXCEEDED, quota_failure(violation("GenerateRequestsPerDayPerProject-FreeTier"))),
        "quota",
        "project",
    ),
    "per project and region": (
        exhausted(
            "Quota exceeded for quota metric 'Generate Content API requests per minute'.",
            info(
                "RATE_LIMIT_EXCEEDED",
                quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
                quota_limit_value="0",
                quota_location="us-west4",
                quota_metric=f"{SERVICE}/generate_content_requests",
            ),
        ),
        "quota",
        "project",
    ),
    # quotas of the model for that project
    "per model": (
        exhausted(
            EXCEEDED, quota_failure(violation("GenerateRequestsPerMinutePerProjectPerModel", model="m"))
        ),
        "quota",
        "deployment",
    ),
    "per project, of one model": (
        exhausted(EXCEEDED, quota_failure(violation("GenerateRequestsPerDayPerProject", model="m"))),
        "quota",
        "deployment",
    ),
    "unknown quota": (
        exhausted(EXCEEDED, quota_failure(violation("SomethingNew-FreeTier"))),
        "quota",
        "deployment",
    ),
    "bare": (exhausted(EXHAUSTED), "quota", "deployment"),
    "429 without a body": ((429, b""), "quota", "deployment"),
    "429 in another form": ((429, {"detail": "Too many requests"}), "quota", "deployment"),
    # the server
    "capacity": (
        exhausted("No capacity available for model on the server", info("MODEL_CAPACITY_EXHAUSTED")),
        "server",
        "deployment",
    ),
    "demand": (
        exhausted("This model is currently experiencing high demand. Please try again later."),
        "server",
        "deployment",
    ),
    "overloaded": (
        refusal(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        "server",
        "deployment",
    ),
    "Google's own page": (
        (502, "<!DOCTYPE html><title>Error 502 (Server Error)!!1</title><p>Try again in 30 seconds."),
        "server",
        "deployment",
    ),
    # the path
    "automated queries": (
        (429, "<html><title>Sorry...</title><p>your network may be sending automated queries</p></html>"),
        "network",
        "path",
    ),
    "too many requests, in words": ((429, "Too Many Requests\n"), "network", "path"),
    "rate of a proxy": ((429, "error code: 1015"), "network", "path"),
    "forbidden page": ((403, "<html>Error 403 (Forbidden)</html>"), "network", "path"),
    "forbidden, in words": ((403, "Access denied by policy"), "network", "path"),
    "not found, in words": ((404, "404 page not found"), "network", "path"),
    "gateway": ((502, "<html><h1>502 Bad Gateway</h1><hr><center>nginx</center></html>"), "network", "path"),
    "cache": ((503, "<HTML>Generated by squid</HTML>"), "network", "path"),
    "login of a proxy": ((407, b""), "network", "path"),
    "login of a proxy, as JSON": ((407, {"error": {"message": "Log in."}}), "network", "path"),
    "request timeout": (refusal(408, None, "Timeout."), "timeout", "path"),
}


@pytest.fixture
async def refused(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
) -> Callable[..., Coroutine[Any, Any, ProviderError]]:
    """Send a request that the emulator refuses with a given answer, and return the error."""
    provider = open_provider(emulator.url)

    async def send(
        code: int, body: Any, request: Request = HELLO, headers: dict[str, str] | None = None
    ) -> ProviderError:
        before = emulator.requests
        rule = emulator.inject(Fault.status(code, body=body, headers=headers), times=1)
        with pytest.raises(ProviderError) as caught:
            await provider.generate(deployment, request)
        assert rule.taken == emulator.requests - before == 1
        assert_no_secret(caught.value)
        return caught.value

    return send


async def test_whose_fault_it_is(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """Status, reasons and words decide kind and scope; only a limiter's refusal is not charged."""
    found, expected = {}, {}
    for name, (answer, kind, scope) in REFUSALS.items():
        error = await refused(*answer)
        found[name] = error.kind, error.scope, error.feature, error.charged
        expected[name] = kind, scope, None, answer[0] not in (402, 429)
    assert found == expected


async def test_money_that_is_gone_is_told_from_a_rate_of_spending(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """What was spent in ten minutes comes back by itself; credits and the cap of a month do not."""
    errors = {name: await refused(*answer) for name, (answer, *_) in REFUSALS.items()}
    about_money = {name for name in REFUSALS if "spend" in name or "credits" in name or "402" in name}
    passing = {"spending limit", "spend-based rate limit", "spend-based rate limit, with a quota"}
    assert {name for name, error in errors.items() if error.spending} == passing
    assert {name for name in about_money if errors[name].lasting} == about_money - passing
    assert all(errors[name].violations == () for name in passing)


async def test_a_long_message_takes_no_time(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """Words that come again and again in a long message are not searched for again and again."""
    error = await refused(*denied("project prepaid " * 16_000))
    assert (error.kind, error.scope) == ("model", "deployment")
    assert len(str(error)) == 500


async def test_a_quota_of_a_region_states_no_limit(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """That there is none in the region where a request ended up does not mean that there is none."""
    error = await refused(*REFUSALS["per project and region"][0])
    assert error.violations == (QuotaViolation("rpm", None),)


async def test_the_widest_of_several_quotas_decides(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """A quota of the project holds for every model, and only its own limits are reported."""
    both = quota_failure(
        violation("GenerateRequestsPerDayPerProjectPerModel", value="20", model="m"),
        violation("GenerateRequestsPerDayPerProject", value="100"),
        violation("SearchGroundingRequestsPerDay", "search_grounding_requests", "5"),
    )
    error = await refused(*exhausted(EXCEEDED, both))
    assert (error.scope, error.violations) == ("project", (QuotaViolation("rpd", 100),))


# ------------------------------------------------------------------------------------------- features

SEARCHES = {
    "dict": {"tools": [{"google_search": {}}]},
    "camelCase": {"tools": [{"googleSearch": {}}]},
    "object": types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())]),
    "object in a dict": {"tools": [types.Tool(google_search=types.GoogleSearch())]},
    "older tool": {"tools": [{"google_search_retrieval": {}}]},
    "among others": {"tools": [{"function_declarations": [{"name": "f"}]}, {"google_search": {}}]},
}


@pytest.mark.parametrize("config", SEARCHES.values(), ids=SEARCHES.keys())
async def test_a_bare_429_of_a_search_is_the_tools(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]], config: Any
) -> None:
    """A refusal that names no quota, of a request with a tool that has one of its own, is about the tool."""
    request = Request(contents="Who won?", config=config)
    for message in (EXCEEDED, EXHAUSTED):
        error = await refused(*exhausted(message), request)
        assert (error.kind, error.scope, error.feature) == ("quota", "feature", "google_search"), message
        assert not error.charged


def weather(city: str) -> str:
    """Return the weather."""
    return city


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        ({"tools": [{"google_maps": {}}]}, "google_maps"),
        ({"tools": [{"url_context": {}}]}, "url_context"),
        ({"tools": [{"urlContext": {}}, {"googleMaps": {}}]}, "url_context"),
        ({"tools": [{"code_execution": {}}]}, None),
        ({"tools": [weather]}, None),
        ({"tools": []}, None),
        ({"temperature": 1}, None),
        (None, None),
    ],
)
async def test_a_bare_429_of_another_tool(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]], config: Any, feature: str | None
) -> None:
    """The first of the request's tools with a quota of its own is named; others have none."""
    error = await refused(*exhausted(EXHAUSTED), Request(contents="Where?", config=config))
    assert (error.scope, error.feature) == ("feature" if feature else "deployment", feature)


async def test_a_429_that_names_a_quota_of_the_model_is_not_the_tools(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """A search that exceeds the requests of the model is refused for that."""
    quotas = quota_failure(violation("GenerateRequestsPerDayPerProjectPerModel", value="20", model="m"))
    error = await refused(*exhausted(EXCEEDED, quotas), Request(contents="x", config=SEARCHES["dict"]))
    assert (error.scope, error.feature) == ("deployment", None)
    assert error.violations == (QuotaViolation("rpd", 20),)


GROUNDING = {
    "id": violation("SearchGroundingRequestsPerDayPerProject-FreeTier", value="500"),
    "other id": violation("GroundingWithGoogleSearchRequestsPerDayPerProject", value="500"),
    "prompts": violation("GroundedPromptsPerDayPerProject", "grounded_prompts", "500"),
    "metric": violation("SomeRequestsPerDay", "search_grounding_requests", "500", model="m"),
}


@pytest.mark.parametrize("named", GROUNDING.values(), ids=GROUNDING.keys())
@pytest.mark.parametrize("config", [SEARCHES["dict"], None], ids=["search", "plain"])
async def test_a_429_that_names_a_quota_of_a_tool(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]], named: dict[str, Any], config: object | None
) -> None:
    """A quota of the grounding is the tool's, on that project, whatever else its name says."""
    error = await refused(*exhausted(EXCEEDED, quota_failure(named)), Request(contents="x", config=config))
    assert (error.kind, error.scope, error.feature) == ("quota", "feature", "google_search")
    [found] = error.violations
    assert found.limit == 500


async def test_a_limit_of_a_tool_in_words(refused: Callable[..., Coroutine[Any, Any, ProviderError]]) -> None:
    """A quota of the grounding is recognised in a message without details, too."""
    message = f"Quota exceeded for metric: {SERVICE}/search_grounding_requests_free_tier, limit: 0, model: m"
    error = await refused(*exhausted(message), Request(contents="x", config=SEARCHES["dict"]))
    assert (error.scope, error.feature) == ("feature", "google_search")
    assert error.violations == (QuotaViolation(None, 0),)


async def test_a_tool_that_the_request_does_not_use_is_not_blamed(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """If the quota's name fits another tool than the request's, the request's own is named."""
    quotas = quota_failure(violation("GroundingRequestsPerDayPerProject"))
    error = await refused(
        *exhausted(EXCEEDED, quotas), Request(contents="x", config={"tools": [{"google_maps": {}}]})
    )
    assert (error.scope, error.feature) == ("feature", "google_maps")


async def test_a_feature_in_a_stream(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A streamed request is judged by its tools, too."""
    emulator.inject(Fault.bare_429())
    request = Request(contents="x", config=SEARCHES["dict"])
    with pytest.raises(ProviderError) as caught:
        await anext(open_provider(emulator.url).stream(deployment, request, lambda: None))
    assert (caught.value.scope, caught.value.feature) == ("feature", "google_search")


# --------------------------------------------------------------------------------------------- delays

MINUTE = quota_failure(violation("GenerateRequestsPerMinutePerProjectPerModel", model="m"))
DAY = quota_failure(violation("GenerateRequestsPerDayPerProjectPerModel", model="m"))


def retry_info(delay: object) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


async def test_a_delay_is_at_least_a_second_and_at_most_what_the_quota_needs(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """A quota per minute is believed for 15 minutes, one per day for 26 hours; nonsense is not believed."""
    for delay, by_minute, by_day in (
        ("0s", 1.0, 1.0),
        ("0.2s", 1.0, 1.0),
        ("-3s", 1.0, 1.0),
        ("36.4s", 36.4, 36.4),
        ("86400s", 900.0, 86_400.0),
        ("999999999s", 900.0, 93_600.0),
        ("9" * 400 + "s", 900.0, 93_600.0),
        ("inf", 900.0, 93_600.0),
        ("nan", None, None),
        (36, None, None),
        (None, None, None),
    ):
        told = [
            (await refused(*exhausted(EXCEEDED, quota, retry_info(delay)))).retry_delay
            for quota in (MINUTE, DAY)
        ]
        assert told == [by_minute, by_day], delay


async def test_a_delay_of_the_header(
    refused: Callable[..., Coroutine[Any, Any, ProviderError]],
) -> None:
    """A Retry-After header is believed within the same bounds; a server may ask for 15 minutes."""
    for code, value, seconds in (
        (429, "0", 1.0),
        (429, "-5", 1.0),
        (429, "7.5", 7.5),
        (429, "999999999999999999999", 93_600.0),
        (429, "nan", None),
        (503, "0", 1.0),
        (503, "3600", 900.0),
        (503, "inf", 900.0),
        (503, "soon", None),
    ):
        error = await refused(code, {"error": {"message": "Wait."}}, headers={"Retry-After": value})
        assert error.retry_delay == seconds, (code, value)


async def test_a_delay_in_words(refused: Callable[..., Coroutine[Any, Any, ProviderError]]) -> None:
    """The delay of the message is believed within the same bounds."""
    error = await refused(*exhausted("Please retry in 99999999999s.", MINUTE))
    assert error.retry_delay == 900.0

"""Schemas and tools that the SDK cannot send, refused before anything is reserved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.genai import types
from pydantic import BaseModel

from llm_router import Deployment, InvalidRequestError, Key, Metric, Quota, Router, Secret
from llm_router.domain.request import Request
from llm_router.emulator import GeminiEmulator
from llm_router.providers.gemini import GeminiProvider


class Flat(BaseModel):
    """What can be said in a schema."""

    number: int


class Counts(BaseModel):
    """What cannot."""

    words: dict[str, int]


class Tree(BaseModel):
    """What refers to itself, which can."""

    kids: list[Tree] = []


class Opaque:
    """What no schema can describe."""


def untyped(place) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Have a parameter of which nothing is known."""
    return str(place)


def opaque(place: Opaque) -> str:
    """Have a parameter of which no schema can be made."""
    return str(place)


def typed(place: str, *, times: int = 1) -> str:
    """Have parameters that can be declared."""
    return place * times


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"response_schema": dict[str, int]}, r"config\.response_schema .* additionalProperties, as a dict"),
        ({"response_schema": Counts}, r"config\.response_schema .* additionalProperties"),
        ({"response_schema": set[int]}, r"config\.response_schema .* uniqueItems: "),
        ({"response_schema": {"foo": 1}}, r"config\.response_schema .* foo: "),
        ({"response_schema": {"$ref": "#/x"}}, r"config\.response_schema .* \(KeyError\)"),
        ({"response_schema": Flat(number=1)}, r"config\.response_schema .* \(ValueError\)"),
        (
            {"response_schema": types.JSONSchema(type=types.JSONSchemaType.OBJECT)},
            r"config .* (?:\(AttributeError\)|response_schema)",  # google-genai 2 says more of it
        ),
        ({"response_json_schema": Flat}, r"config\.response_json_schema .* goes into response_schema"),
        ({"response_json_schema": list[int]}, r"config\.response_json_schema .* goes into response_schema"),
        ({"tools": [typed, untyped]}, r"config\.tools\[1\] .* parameter 'place'"),
        ({"tools": [opaque]}, r"config\.tools\[0\] .* parameter 'place'"),
        ({"tools": [len]}, r"config\.tools\[0\] .* must be a function of Python or a Tool"),
        ({"tools": [types.FunctionDeclaration(name="f")]}, r"config\.tools\[0\] .* or a Tool"),
    ],
)
async def test_what_the_sdk_cannot_send_costs_nothing(config: dict[str, Any], words: str) -> None:
    """It raises, and says where and why; nothing was reserved."""
    key = Key("alpha", Secret("AIzaOfAlpha"))
    pool = [Deployment(key, "flash", "light", quotas=(Quota(Metric.RPM, 1),))]
    with GeminiEmulator(keys={"AIzaOfAlpha": "alpha"}).run_in_thread() as emulator:
        async with Router(pool, base_url=emulator.url) as router:
            with pytest.raises(InvalidRequestError, match=words):
                await router.send("hi", config=config)
            [status] = await router.get_all_key_statuses()
    assert (status["rpm_usage"], emulator.requests) == ("0/1", 0)


@pytest.mark.parametrize("make", [dict, types.GenerateContentConfig])
def test_what_the_sdk_can_send_is_let_through(make: Callable[..., Any]) -> None:
    """As it was given: a schema that is a dictionary is not changed."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    before = repr(schema)
    for fields in (
        {"response_schema": Flat},
        {"response_schema": Tree},
        {"response_schema": list[Flat]},
        {"response_schema": int | str},
        {"response_schema": schema},
        {"response_json_schema": schema},
        {"response_json_schema": {"type": "object", "additionalProperties": {"type": "integer"}}},
        {"tools": [typed, types.Tool(google_search=types.GoogleSearch())]},
    ):
        GeminiProvider().validate(Request(contents="hi", config=make(**fields)))
    assert repr(schema) == before

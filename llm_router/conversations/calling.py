"""Call the Python functions that a model asks for, and send their results back until it answers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

import attrs

from llm_router.conversations.contents import answering_model, said_in, split_signatures
from llm_router.domain.answers import FunctionCall, Step
from llm_router.domain.fields import field
from llm_router.domain.options import SendOptions
from llm_router.domain.request import Origin, Request
from llm_router.domain.response import Chunk, Response, Usage
from llm_router.engine.requests import unalias
from llm_router.engine.streaming import Stream
from llm_router.errors import InvalidRequestError

__all__ = ["CallingSend"]

_MAX_CALLS = 10
"""How many answers may call functions, unless the config says otherwise: as in google-genai."""

_Function = Callable[..., Any]


@attrs.define(eq=False)
class CallingSend:
    """One send whose functions are called for the model: one request after another, each with its own quota.

    Attributes:
        functions: The functions by name.
        max_calls: How many answers may call functions.
        options: The options of every request.
        request: What is sent next.
        responses: The responses so far.
        steps: The answers so far that called functions, with the results.
    """

    functions: Mapping[str, _Function]
    max_calls: int
    options: SendOptions
    request: Any
    responses: list[Response] = attrs.field(factory=list, init=False)
    steps: list[Step] = attrs.field(factory=list, init=False)

    @classmethod
    def of(cls, prompt: Any, options: SendOptions) -> Self | None:
        """Return the send of a prompt whose config has functions that are to be called, or None.

        Raises:
            InvalidRequestError: A function has no name, or two have the same one.
        """
        config = options.get("config")
        if config is None:
            if prompt is None:
                prompt = options.get("contents")
            if prompt.__class__ is not Request or prompt.config is None:
                return None
            config = prompt.config
        max_calls = _max_calls(field(config, "automatic_function_calling"))
        functions = _functions(field(config, "tools")) if max_calls > 0 else {}
        if not functions:
            return None
        prompt, options = unalias(prompt, options)
        return cls(functions, max_calls, SendOptions(**options), prompt)

    async def send(self, send: Callable[..., Awaitable[Response]]) -> Response:
        """Send until an answer calls no function of these, or may not; return the last response."""
        while await self._goes_on(await send(self.request, **self.options)):
            pass
        return self._whole()

    async def stream(self, stream: Callable[..., Stream]) -> AsyncGenerator[Chunk | Response]:
        """Yield the pieces of every answer, and last of all the response."""
        going = True
        while going:
            async with stream(self.request, **self.options) as pieces:
                while (chunk := await pieces.read()) is not None:
                    yield chunk
            going = await self._goes_on(pieces.response)
        yield self._whole()

    async def _goes_on(self, response: Response) -> bool:
        """Call what an answer asks for, and prepare the next request; return whether there is one."""
        self.responses.append(response)
        calls = response.function_calls
        if not calls or len(self.steps) >= self.max_calls:
            return False
        if any(call.name not in self.functions for call in calls):
            return False  # the caller can answer all of them, and the API wants all answers together
        parts = [{"function_response": await _result(self.functions[call.name], call)} for call in calls]
        results = {"role": "user", "parts": parts}
        model = answering_model(response)
        self.steps.append(Step(model, response.content, results))
        self.request = _continued(self.request, self.steps[-1])
        if self.options.get("model_preference") is None and self.options.get("fallback", "any") == "any":
            self.options["model_preference"] = model  # which understands its own signatures
        return True

    def _whole(self) -> Response:
        """Return the last response, with what all of them have used."""
        last = self.responses[-1]
        log = [attempt for response in self.responses for attempt in response.attempt_log]
        usages = [attrs.astuple(response.usage) for response in self.responses]
        return attrs.evolve(
            last,
            usage=Usage(*map(sum, zip(*usages, strict=True))),
            attempts=len(log),
            attempt_log=tuple(log),
            latency=sum(response.latency for response in self.responses),
            waited=sum(response.waited for response in self.responses),
            steps=tuple(self.steps),
        )


def _max_calls(calling: Any) -> int:
    """Return how many answers may call functions by an ``AutomaticFunctionCallingConfig``, or its dict."""
    if field(calling, "disable"):
        return 0
    most = field(calling, "maximum_remote_calls")
    return most if isinstance(most, int) else _MAX_CALLS


def _functions(tools: Any) -> dict[str, _Function]:
    functions: dict[str, _Function] = {}
    for tool in tools if isinstance(tools, Sequence) else ():
        if not callable(tool) or isinstance(tool, type):
            continue
        name = getattr(tool, "__name__", None)
        if not isinstance(name, str):
            raise InvalidRequestError(f"config.tools: a {type(tool).__name__} has no name: give a function")
        if functions.setdefault(name, tool) is not tool:
            raise InvalidRequestError(f"config.tools: two functions are called {name!r}: rename one of them")
    return functions


def _continued(request: Any, step: Step) -> Request:
    """Return the request that follows the results of a step."""
    base = request if isinstance(request, Request) else Request(contents=request)
    # Origins count contents, so those that have some are contents with a role already.
    contents = tuple(base.contents) if base.origins is not None else said_in(base.contents)
    portable, signatures = split_signatures(step.content)
    origin = Origin(len(contents), step.model, signatures or ())
    return attrs.evolve(
        base,
        contents=[*contents, portable, step.results],
        origins=(*(base.origins or ()), *((origin,) if signatures else ())),
    )


# --- the functions ------------------------------------------------------------------------------------


async def _result(function: _Function, call: FunctionCall) -> dict[str, Any]:
    """Call a function; return its result, or its error for the model to read, as a function response."""
    try:
        bound = functools.partial(function, **_arguments(function, call.args))
        if inspect.iscoroutinefunction(function):
            result = await bound()
        else:
            result = await asyncio.to_thread(bound)
            if inspect.isawaitable(result):
                result = await result
        response = _as_json(result)
    except Exception as error:  # noqa: BLE001 - the model may correct its call
        response = {"error": f"{type(error).__name__}: {error}"}
    named = {"name": call.name, "response": response}
    return named if call.id is None else {"id": call.id, **named}


def _arguments(function: _Function, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as the types that the parameters have, such as pydantic models.

    Raises:
        ValueError: One of them does not fit.
    """
    hints = _hints(function)
    return {name: _converted(hints[name], value) if name in hints else value for name, value in args.items()}


def _converted(hint: Any, value: Any) -> Any:
    """Return a value as a type, or as it is for a type that says nothing of JSON.

    Raises:
        ValueError: It does not fit.
    """
    from pydantic import PydanticSchemaGenerationError, TypeAdapter  # noqa: PLC0415 - heavy

    try:
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return value
    return adapter.validate_python(value)


def _hints(function: _Function) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - a name that only type checkers see
        return {}


def _as_json(result: Any) -> dict[str, Any]:
    """Return a result as the object that the API takes, of values that JSON has."""
    from pydantic_core import to_jsonable_python  # noqa: PLC0415 - heavy

    value = to_jsonable_python(result, bytes_mode="base64", inf_nan_mode="strings", fallback=str)
    return value if isinstance(value, dict) else {"result": value}

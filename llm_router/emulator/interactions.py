"""Interactions: conversations that the provider keeps, each turn with an id that the next can name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from llm_router.emulator.calls import parsed
from llm_router.emulator.interaction_replies import InteractionReplies
from llm_router.emulator.refusals import RefusalError
from llm_router.emulator.shelf import Shelf, timestamp
from llm_router.gemini_http.api_errors import ApiError
from llm_router.gemini_http.framing import SSE_TYPE, Body
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_router.domain.clock import Clock
    from llm_router.emulator.admission import Admission
    from llm_router.emulator.calls import Call
    from llm_router.emulator.models import ModelService
    from llm_router.emulator.service import GeminiService

__all__ = ["InteractionService"]

_LIFE = 24 * 3600.0
"""Seconds that an interaction is kept."""


_SHOWN: tuple[str, ...] = ("model", "agent", "previous_interaction_id")


@attrs.frozen
class _Kept:
    """An interaction with the contents of its whole conversation, and the events of its answer."""

    resource: Body
    contents: list[Body] = attrs.field(repr=False)
    events: list[Body] = attrs.field(repr=False)


class InteractionService:
    """Generates the answers of interactions and keeps them. One in the background is done when asked for."""

    def __init__(
        self, service: GeminiService, models: ModelService, admission: Admission, clock: Clock
    ) -> None:
        self._service = service
        self._models = models
        self._admission = admission
        self._clock = clock
        self._shelf: Shelf[_Kept] = Shelf("interactions/", clock)
        self.operations: dict[Operation, Callable[[Call], Awaitable[None]]] = {
            Operation.CREATE_INTERACTION: self._create,
            Operation.GET_INTERACTION: self._get,
            Operation.DELETE_INTERACTION: self._delete,
            Operation.CANCEL_INTERACTION: self._cancel,
        }

    async def _create(self, call: Call) -> None:
        body = parsed(call.raw)
        model = str(body.get("model") or body.get("agent") or "").removeprefix("models/")
        self._models.require(model, "v1beta", Operation.GENERATE)
        previous = body.get("previous_interaction_id")
        before = self._require(f"interactions/{previous}", call.project).contents if previous else []
        request = _generate_body(body, before)
        name = self._shelf.new_name()

        def keep(resource: Body, reply: Body, events: list[Body]) -> None:
            if body.get("store", True):
                kept = _Kept(resource, [*request["contents"], reply], events)
                self._shelf.put(name, call.project, kept, self._clock.time() + _LIFE)

        shown: Body = {field: body[field] for field in _SHOWN if field in body}
        shown |= {"id": name.removeprefix("interactions/"), "created": timestamp(self._clock.time())}
        background = bool(body.get("background"))
        replies = InteractionReplies(shown, keep, "in_progress" if background else None)
        streams = bool(body.get("stream"))
        await self._service.generate(
            attrs.evolve(call, model=model, body=request, streams=streams, sse=streams, dialect=replies)
        )

    async def _get(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        kept = self._require(call.resource, call.project)
        if call.parameter("stream").lower() != "true":
            await self._admission.reply(call, fault, kept.resource)
            return
        await call.exchange.start(SSE_TYPE)
        seen = call.parameter("last_event_id")
        ids = [event["event_id"] for event in kept.events]
        for event in kept.events[ids.index(seen) + 1 if seen in ids else 0 :]:
            await call.exchange.write(InteractionReplies.event(event))
        await call.exchange.end(InteractionReplies.END)

    async def _delete(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        self._require(call.resource, call.project)
        self._shelf.remove(call.resource)
        await self._admission.reply(call, fault, {})

    async def _cancel(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        kept = self._require(call.resource, call.project)
        resource = kept.resource | {"status": "cancelled"}
        kept = attrs.evolve(kept, resource=resource)
        self._shelf.put(call.resource, call.project, kept, self._clock.time() + _LIFE)
        await self._admission.reply(call, fault, resource)

    def _require(self, name: str, project: str) -> _Kept:
        kept = self._shelf.find(name, project)
        if kept is None:
            message = f"You do not have permission to access the Interaction {name[13:]} or it may not exist."
            raise RefusalError.of(ApiError(403, "PERMISSION_DENIED", message))
        return kept


# ------------------------------------------------------------- from steps to contents


def _generate_body(body: Mapping[str, Any], before: list[Body]) -> Body:
    """Return the body of ``generateContent`` that stands for an interaction after ``before``."""
    try:
        contents = [*before, *_contents(body.get("input"))]
        tools = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
    except (AttributeError, KeyError, TypeError):
        raise RefusalError.invalid("Request contains an invalid argument.") from None
    request: Body = {"contents": contents, "generationConfig": _config(body)}
    if body.get("system_instruction"):
        request["systemInstruction"] = {"parts": [{"text": body["system_instruction"]}]}
    if tools:
        request["tools"] = [{"functionDeclarations": tools}]
    if body.get("cached_content"):
        request["cachedContent"] = body["cached_content"]
    return request


def _contents(given: Any) -> list[Body]:
    """Return the contents of an input: a text, one content, or a list of contents or of steps."""
    if isinstance(given, str):
        return [{"role": "user", "parts": [{"text": given}]}]
    items = given if isinstance(given, list) else [given]
    contents: list[Body] = []
    for item in items:
        kind = item.get("type")
        if kind in ("user_input", "model_output") or "role" in item:
            role = "model" if "model" in (kind or "", item.get("role")) or kind == "model_output" else "user"
            contents.append({"role": role, "parts": _parts(item.get("content") or item.get("parts") or [])})
        elif kind == "function_call":
            call = {"id": item["id"], "name": item["name"], "args": item.get("arguments") or {}}
            contents.append({"role": "model", "parts": [{"functionCall": call}]})
        else:
            contents.append({"role": "user", "parts": [_part(item)]})
    return contents


def _parts(content: Any) -> list[Body]:
    if isinstance(content, str):
        return [{"text": content}]
    return [_part(item) for item in (content if isinstance(content, list) else [content])]


def _part(item: Mapping[str, Any]) -> Body:
    if "text" in item:
        return {"text": item["text"]}
    if item.get("type") == "function_result":
        result = item.get("result")
        response = result if isinstance(result, dict) else {"result": result}
        return {"functionResponse": {"id": item["call_id"], "name": item.get("name"), "response": response}}
    if "uri" in item:
        return {"fileData": {"fileUri": item["uri"], "mimeType": item.get("mime_type")}}
    return {"inlineData": {"data": item["data"], "mimeType": item.get("mime_type")}}


def _config(body: Mapping[str, Any]) -> Body:
    config: Body = {}
    given = body.get("generation_config") or {}
    if given.get("max_output_tokens"):
        config["maxOutputTokens"] = given["max_output_tokens"]
    wanted = body.get("response_format")
    wanted = wanted[0] if isinstance(wanted, list) and wanted else wanted
    if isinstance(wanted, dict):
        schema = wanted.get("schema", wanted)
        config |= {
            "responseMimeType": "application/json",
            "responseJsonSchema": json.loads(json.dumps(schema)),
        }
    return config

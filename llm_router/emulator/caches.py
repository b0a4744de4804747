"""Cached contents: made of a prompt for one model, and only for the project that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from llm_router.emulator.calls import parsed
from llm_router.emulator.refusals import RefusalError
from llm_router.emulator.shelf import Shelf, timestamp
from llm_router.emulator.tokens import count_input_tokens
from llm_router.gemini_http.api_errors import cache_denied
from llm_router.gemini_http.durations import read_duration
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any

    from llm_router.domain.clock import Clock
    from llm_router.emulator.admission import Admission
    from llm_router.emulator.calls import Call
    from llm_router.emulator.files import FileService
    from llm_router.emulator.models import ModelService
    from llm_router.gemini_http.framing import Body

__all__ = ["CacheService"]

_LIFE = 3600.0
"""Seconds that cached content exists unless its maker says otherwise."""

_PAGE, _LARGEST_PAGE = 50, 1000


class CacheService:
    """Keeps cached contents and counts their tokens. ``expireTime`` is not read, only ``ttl``."""

    def __init__(self, admission: Admission, models: ModelService, files: FileService, clock: Clock) -> None:
        self._admission = admission
        self._models = models
        self._files = files
        self._clock = clock
        self._shelf: Shelf[Body] = Shelf("cachedContents/", clock)
        self.operations: dict[Operation, Callable[[Call], Awaitable[None]]] = {
            Operation.CREATE_CACHE: self._create,
            Operation.LIST_CACHES: self._list,
            Operation.GET_CACHE: self._get,
            Operation.UPDATE_CACHE: self._update,
            Operation.DELETE_CACHE: self._delete,
        }

    def tokens_for(self, call: Call) -> int:
        """Return the tokens of the cached content that a request to generate names.

        Raises:
            RefusalError: It does not exist, belongs to another project or is for another model, or the
                request has what only cached content may have.
        """
        cache = self._require(str(call.body["cachedContent"]), call.project)
        if cache["model"] != f"models/{call.model}":
            raise RefusalError.invalid(
                f"Model used by GenerateContent request (models/{call.model}) and CachedContent "
                f"({cache['model']}) has to be the same."
            )
        if any(call.body.get(field) for field in ("systemInstruction", "tools", "toolConfig")):
            raise RefusalError.invalid(
                "CachedContent can not be used with GenerateContent request setting system_instruction, "
                "tools or tool_config."
            )
        return int(cache["usageMetadata"]["totalTokenCount"])

    def _require(self, name: str, project: str) -> Body:
        cache = self._shelf.find(name, project)
        if cache is None:
            raise RefusalError.of(cache_denied())
        return cache

    async def _create(self, call: Call) -> None:
        body = parsed(call.raw)
        model = str(body.get("model") or "").removeprefix("models/")
        self._models.require(model, "v1beta", Operation.CREATE_CACHE)
        call = attrs.evolve(call, model=model, body=body)
        self._files.require_named(call)
        fault = await self._admission.enter(call, None)
        now, life = self._clock.time(), _life_of(body)
        cache: Body = {
            "name": self._shelf.new_name(),
            "model": f"models/{model}",
            "createTime": timestamp(now),
            "updateTime": timestamp(now),
            "expireTime": timestamp(now + life),
            "usageMetadata": {"totalTokenCount": count_input_tokens(body)},
        }
        if "displayName" in body:
            cache["displayName"] = body["displayName"]
        self._shelf.put(cache["name"], call.project, cache, now + life)
        await self._admission.reply(call, fault, cache)

    async def _list(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        page, token = call.page(self._shelf.all_of(call.project), _PAGE, _LARGEST_PAGE)
        body: Body = {"cachedContents": page} if page else {}
        await self._admission.reply(call, fault, body | ({"nextPageToken": token} if token else {}))

    async def _get(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        await self._admission.reply(call, fault, self._require(call.resource, call.project))

    async def _update(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        cache, now = self._require(call.resource, call.project), self._clock.time()
        expires = now + _life_of(parsed(call.raw))
        cache = cache | {"updateTime": timestamp(now), "expireTime": timestamp(expires)}
        self._shelf.put(call.resource, call.project, cache, expires)
        await self._admission.reply(call, fault, cache)

    async def _delete(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        self._require(call.resource, call.project)
        self._shelf.remove(call.resource)
        await self._admission.reply(call, fault, {})


def _life_of(body: Mapping[str, Any]) -> float:
    life = read_duration(body["ttl"]) if "ttl" in body else _LIFE
    if life is None:
        raise RefusalError.invalid("Invalid value at 'cached_content.ttl'.")
    return life

"""Which models exist and what they do: lists and descriptions, in both protocols, and embeddings."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import TYPE_CHECKING, Any

import attrs

from llm_router.emulator.calls import parsed
from llm_router.emulator.refusals import RefusalError
from llm_router.emulator.tokens import count_input_tokens, last_prompt, utf8
from llm_router.gemini_http.api_errors import model_not_found, not_json
from llm_router.gemini_http.framing import Body
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from llm_router.emulator.admission import Admission
    from llm_router.emulator.calls import Call, Settings
    from llm_router.emulator.faults import Fault

__all__ = ["ModelService", "embedding"]

_EMBEDDING_DIMENSIONS = 768
_PAGE, _LARGEST_PAGE = 50, 1000
_OPENAI_CREATED = 1_700_000_000
_EMBEDDING = (Operation.EMBED, Operation.COUNT_TOKENS, Operation.CREATE_EMBED_BATCH)
_GENERATING = (Operation.GENERATE, Operation.COUNT_TOKENS, "createCachedContent", Operation.CREATE_BATCH)


class ModelService:
    """Knows the models, and embeds.

    A model embeds if its name contains "embedding", and generates otherwise. If no models are declared, any
    other name does both.
    """

    def __init__(self, settings: Settings, admission: Admission) -> None:
        self._settings = settings
        self._admission = admission
        self.operations: dict[Operation, Callable[[Call], Awaitable[None]]] = {
            Operation.LIST_MODELS: self._list,
            Operation.GET_MODEL: self._get,
            Operation.EMBED: self._embed_one,
            Operation.BATCH_EMBED: self._embed_batch,
            Operation.EMBEDDINGS: self._embed_texts,
        }

    def require(self, model: str, version: str, operation: Operation) -> None:
        """Check that ``model`` exists and does what ``operation`` needs.

        Raises:
            RefusalError: It does not.
        """
        known, method = self._settings.models, operation.method
        if known is not None and (
            model not in known or (method == Operation.EMBED and "embedding" not in model)
        ):
            raise RefusalError.of(model_not_found(model, version, operation))
        if "embedding" in model and method == Operation.GENERATE:
            raise RefusalError.of(model_not_found(model, version, operation))

    # ---------------------------------------------------------- descriptions

    async def _list(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        models = self._settings.listed if self._settings.models is None else self._settings.models
        if call.openai:
            body: Body = {"object": "list", "data": [_openai_model(model) for model in models]}
        else:
            limit = self._settings.input_token_limit
            page, token = call.page([_model(model, limit) for model in models], _PAGE, _LARGEST_PAGE)
            body = {"models": page} | ({"nextPageToken": token} if token else {})
        await self._admission.reply(call, fault, body)

    async def _get(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        limit = self._settings.input_token_limit
        body = _openai_model(call.model) if call.openai else _model(call.model, limit)
        await self._admission.reply(call, fault, body)

    # ------------------------------------------------------------ embeddings

    async def _embed_one(self, call: Call) -> None:
        fault, (values,) = await self._embed(call, [call.body])
        await self._admission.reply(call, fault, {"embedding": {"values": values}})

    async def _embed_batch(self, call: Call) -> None:
        requests = call.body.get("requests")
        if not isinstance(requests, list) or not all(isinstance(request, dict) for request in requests):
            raise RefusalError.of(not_json())
        fault, embeddings = await self._embed(call, requests)
        body = {"embeddings": [{"values": values} for values in embeddings]}
        await self._admission.reply(call, fault, body)

    async def _embed(
        self, call: Call, requests: Sequence[Mapping[str, Any]]
    ) -> tuple[Fault | None, list[list[float]]]:
        bodies = [{"contents": [request.get("content", {})]} for request in requests]
        fault = await self._admission.enter(call, sum(map(count_input_tokens, bodies)))
        embeddings = [
            embedding(last_prompt(body), _dimensions(request))
            for body, request in zip(bodies, requests, strict=True)
        ]
        return fault, embeddings

    async def _embed_texts(self, call: Call) -> None:
        """Answer a request for embeddings in OpenAI's protocol."""
        body = parsed(call.raw)
        model = str(body.get("model") or "").removeprefix("models/")
        self.require(model, "v1main", Operation.EMBED)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise RefusalError.invalid("The input must be a string or a list of strings.")
        requests = [_request(text, body.get("dimensions")) for text in texts]
        call = attrs.evolve(call, model=model)
        fault, embeddings = await self._embed(call, requests)
        encode = _base64 if body.get("encoding_format") == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": encode(values)}
            for index, values in enumerate(embeddings)
        ]
        tokens = sum(count_input_tokens({"contents": [request["content"]]}) for request in requests)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        await self._admission.reply(call, fault, answer)


def embedding(text: str, dimensions: int) -> list[float]:
    """Return a vector of length 1 that depends only on ``text``."""
    digest = hashlib.shake_128(utf8(text)).digest(dimensions)
    values = [byte / 127.5 - 1.0 for byte in digest]
    norm = math.sqrt(sum(value * value for value in values))
    return [round(value / norm, 7) for value in values]


def _dimensions(request: Mapping[str, Any]) -> int:
    config = request.get("embedContentConfig") or {}
    wanted = request.get("outputDimensionality") or config.get("outputDimensionality")
    return int(wanted or _EMBEDDING_DIMENSIONS)


def _request(text: str, dimensions: object) -> Body:
    request: Body = {"content": {"parts": [{"text": text}]}}
    return request | ({"outputDimensionality": dimensions} if dimensions else {})


def _base64(values: Sequence[float]) -> str:
    """Return ``values`` as 32-bit floats in base64, as OpenAI's clients ask for them."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _model(model: str, token_limit: int) -> Body:
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "description": "An emulated model.",
        "inputTokenLimit": token_limit,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": list(_EMBEDDING if "embedding" in model else _GENERATING),
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
    }


def _openai_model(model: str) -> Body:
    return {"id": f"models/{model}", "object": "model", "created": _OPENAI_CREATED, "owned_by": "google"}

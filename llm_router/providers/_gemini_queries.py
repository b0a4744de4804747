"""What is asked of the Gemini API besides prompts, as HTTP exchanges, and how the answers are read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from llm_router.domain.deployment import plain_model
from llm_router.domain.exchange import Exchange
from llm_router.domain.fields import camel_case
from llm_router.domain.queries import ModelInfo, Vector
from llm_router.errors import InvalidRequestError
from llm_router.providers._gemini_failures import not_an_answer
from llm_router.providers._gemini_foreign import remedy_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_router.domain.request import Request

__all__ = ["GeminiQueries"]

_JSON = (("content-type", "application/json"),)
_PAGE = 1000
_USER = "user"


class GeminiQueries:
    """Forms queries for a version of the API, and reads the answers.

    Args:
        api_version: The version, such as ``v1beta``.
    """

    def __init__(self, api_version: str) -> None:
        self._root = f"/{api_version}/models"

    def embedding(self, model: str, texts: Sequence[str], config: Mapping[str, Any]) -> Exchange:
        """Return the request for the embeddings of texts.

        Args:
            model: The model.
            texts: At most a hundred.
            config: ``task_type``, ``title`` and ``output_dimensionality``, as far as they are given.
        """
        common = {"model": f"models/{model}", **{camel_case(name): value for name, value in config.items()}}
        requests = [{**common, "content": {"parts": [{"text": text}]}} for text in texts]
        return self._post(model, "batchEmbedContents", {"requests": requests})

    def read_embeddings(self, body: bytes, count: int) -> tuple[Vector, ...]:
        """Return ``count`` embeddings.

        Raises:
            ProviderError: The answer has others, or cannot be read.
        """
        found = _members(body).get("embeddings")
        try:
            vectors = tuple(tuple(map(float, each["values"])) for each in found or ())
        except (TypeError, ValueError, KeyError):
            vectors = ()
        if len(vectors) != count:
            raise not_an_answer(f"it has {len(vectors)} embeddings for {count} texts")
        return vectors

    def count(self, model: str, request: Request) -> Exchange:
        """Return the request for the number of tokens of a prompt.

        Raises:
            InvalidRequestError: The prompt cannot be built.
        """
        contents = _as_json(request.contents, "contents")
        body: dict[str, Any] = {"contents": contents}
        if request.system_instruction is not None:
            parts = [
                part
                for each in _as_json(request.system_instruction, "system_instruction")
                for part in each["parts"]
            ]
            instruction = {"parts": parts}
            whole = {"model": f"models/{model}", "systemInstruction": instruction, "contents": contents}
            body = {"generateContentRequest": whole}
        return self._post(model, "countTokens", body)

    def read_count(self, body: bytes) -> int:
        """Return a number of tokens.

        Raises:
            ProviderError: The answer has none.
        """
        tokens = _members(body).get("totalTokens")
        if not isinstance(tokens, int):
            raise not_an_answer("it has no number of tokens")
        return tokens

    def models(self, page: str) -> Exchange:
        """Return the request for a page of the list of models; the first one has an empty name."""
        query = f"pageSize={_PAGE}" + (f"&pageToken={quote(page, safe='')}" if page else "")
        return Exchange(verb="GET", path=self._root, query=query)

    def read_models(self, body: bytes) -> tuple[list[ModelInfo], str]:
        """Return the models of a page, and the name of the next page, empty if there is none.

        Raises:
            ProviderError: The answer cannot be read.
        """
        fields = _members(body)
        models, page = fields.get("models") or [], fields.get("nextPageToken") or ""
        if not isinstance(models, list) or not isinstance(page, str):
            raise not_an_answer("it is not a list of models")
        return [_model(each) for each in models if isinstance(each, dict) and each.get("name")], page

    def _post(self, model: str, method: str, body: Mapping[str, Any]) -> Exchange:
        path = f"{self._root}/{quote(model, safe='')}:{method}"
        return Exchange(path=path, headers=_JSON, body=json.dumps(body).encode())


def _members(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise not_an_answer("it is not a JSON object")
    return found


def _model(fields: Mapping[str, Any]) -> ModelInfo:
    methods = fields.get("supportedGenerationMethods")
    return ModelInfo(
        name=plain_model(str(fields["name"])),
        methods=tuple(map(str, methods)) if isinstance(methods, list) else (),
        input_token_limit=_whole(fields.get("inputTokenLimit")),
        output_token_limit=_whole(fields.get("outputTokenLimit")),
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _as_json(contents: Any, what: str) -> list[dict[str, Any]]:
    """Return contents, as google-genai takes them, as the API does.

    Raises:
        InvalidRequestError: They cannot be built; the message says ``what`` they are.
    """
    if isinstance(contents, str):
        return [{"role": _USER, "parts": [{"text": contents}]}]
    from google.genai import _transformers  # noqa: PLC0415 - heavy; and there is no public way

    problem = ""
    try:
        built = _transformers.t_contents(contents)
        return [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in built]
    except Exception as error:  # noqa: BLE001 - whatever the SDK finds wrong; its message may quote the data
        problem = type(error).__name__
    if remedy := remedy_for(contents):
        raise InvalidRequestError(f"{what} is wrong: {remedy}")
    raise InvalidRequestError(f"{what} cannot be built ({problem}): see help(Router.send)")

"""What a request to the Gemini API is for: from its verb and path to an operation, a model and a resource."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

import attrs

from llm_router.gemini_http.routes import API_VERSIONS, Method

__all__ = ["Operation", "Protocol", "Target", "parse_target"]

_LONGEST_PATH = 1024


class Protocol(StrEnum):
    """The form of a request and of its answer."""

    GEMINI = "gemini"
    OPENAI = "openai"


class Operation(StrEnum):
    """What a request asks for. Those of a model have the name of their :class:`Method`."""

    GENERATE = "generateContent"
    STREAM = "streamGenerateContent"
    COUNT_TOKENS = "countTokens"
    EMBED = "embedContent"
    BATCH_EMBED = "batchEmbedContents"
    PREDICT = "predict"
    PREDICT_LONG_RUNNING = "predictLongRunning"
    CREATE_BATCH = "batchGenerateContent"
    CREATE_EMBED_BATCH = "asyncBatchEmbedContent"
    LIST_MODELS = "models.list"
    GET_MODEL = "models.get"
    GET_OPERATION = "operations.get"
    UPLOAD = "files.upload"
    LIST_FILES = "files.list"
    GET_FILE = "files.get"
    DELETE_FILE = "files.delete"
    DOWNLOAD_FILE = "files.download"
    CREATE_CACHE = "cachedContents.create"
    LIST_CACHES = "cachedContents.list"
    GET_CACHE = "cachedContents.get"
    UPDATE_CACHE = "cachedContents.update"
    DELETE_CACHE = "cachedContents.delete"
    LIST_BATCHES = "batches.list"
    GET_BATCH = "batches.get"
    DELETE_BATCH = "batches.delete"
    CANCEL_BATCH = "batches.cancel"
    LIST_TUNED_MODELS = "tunedModels.list"
    GET_TUNED_MODEL = "tunedModels.get"
    DELETE_TUNED_MODEL = "tunedModels.delete"
    CREATE_INTERACTION = "interactions.create"
    GET_INTERACTION = "interactions.get"
    DELETE_INTERACTION = "interactions.delete"
    CANCEL_INTERACTION = "interactions.cancel"
    CHAT = "chat.completions"
    EMBEDDINGS = "embeddings"

    @property
    def method(self) -> str | None:
        """The method that a deployment must serve for this operation; None if it needs no deployment's.

        It is a :class:`Method` but for ``predict`` and ``predictLongRunning``. An interaction counts as
        generating, although it may name an agent instead of a model.
        """
        return _METHODS.get(self)

    @property
    def names_model_in_body(self) -> bool:
        """Whether the model's name is in the field ``model`` of the body instead of the path."""
        return self in _MODEL_IN_BODY

    @property
    def creates(self) -> bool:
        """Whether the answer names a resource that will belong to the project of the key."""
        return self in _CREATES


@attrs.frozen
class Target:
    """What one request is for.

    Attributes:
        operation: What it asks for.
        protocol: The form of its body, and of its answer.
        version: The version of the API, such as ``v1beta``.
        model: The name of the model as the path has it, without ``models/``; empty if it names none.
        resource: The full name of what belongs to one project, such as ``files/abc`` or
            ``models/veo/operations/1``; empty if the path names none. A tuned model is a resource.
    """

    operation: Operation
    protocol: Protocol = Protocol.GEMINI
    version: str = "v1beta"
    model: str = ""
    resource: str = ""


def parse_target(verb: str, path: str, *, openai: bool = False) -> Target | None:
    """Return what a request is for, or None if the API has no such path, or not with this verb.

    The path is matched as the client wrote it. So a path with a percent-encoded character is None, as is one
    with an empty segment, or with a segment that begins with a dot.

    Args:
        verb: The HTTP method, in upper case.
        path: The path as it was sent, not decoded, without the query.
        openai: Whether ``/v1/models`` is meant in OpenAI's protocol; the path alone does not say.
    """
    return _parse(verb, path, openai) if len(path) <= _LONGEST_PATH else None


@lru_cache(maxsize=1024)
def _parse(verb: str, path: str, openai: bool) -> Target | None:  # noqa: FBT001 - a cache key
    protocols = (Protocol.OPENAI, Protocol.GEMINI) if openai else (Protocol.GEMINI, Protocol.OPENAI)
    for protocol in protocols:
        for pattern, operation in _PATTERNS[protocol].get(verb, ()):
            found = pattern.fullmatch(path)
            if found is not None:
                # Only the version can be absent from a match: /v1/embeddings does not say whose v1 it is.
                return Target(operation, protocol, **found.groupdict(default="v1beta"))
    return None


_METHODS: dict[Operation, str] = {
    Operation.GENERATE: Method.GENERATE,
    Operation.STREAM: Method.GENERATE,
    Operation.CREATE_BATCH: Method.GENERATE,
    Operation.CREATE_INTERACTION: Method.GENERATE,
    Operation.CHAT: Method.GENERATE,
    Operation.COUNT_TOKENS: Method.COUNT_TOKENS,
    Operation.EMBED: Method.EMBED,
    Operation.BATCH_EMBED: Method.EMBED,
    Operation.CREATE_EMBED_BATCH: Method.EMBED,
    Operation.EMBEDDINGS: Method.EMBED,
    Operation.PREDICT: "predict",
    Operation.PREDICT_LONG_RUNNING: "predictLongRunning",
}
_MODEL_IN_BODY = {
    Operation.CREATE_CACHE,
    Operation.CREATE_INTERACTION,
    Operation.CHAT,
    Operation.EMBEDDINGS,
}
_CREATES = {
    Operation.UPLOAD,
    Operation.CREATE_CACHE,
    Operation.CREATE_BATCH,
    Operation.CREATE_EMBED_BATCH,
    Operation.CREATE_INTERACTION,
    Operation.PREDICT_LONG_RUNNING,
}

_ID = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_PARTS = {
    "<version>": f"(?P<version>{'|'.join(sorted(API_VERSIONS))})",
    # A name with a colon is none of the API's; it is how a client of a router asks for a workload.
    "<model>": r"(?P<model>[A-Za-z0-9_](?:[A-Za-z0-9._:-]*[A-Za-z0-9_-])?)",
    "<known>": f"(?P<model>{_ID})",
    "<file>": f"(?P<resource>files/{_ID})",
    "<cache>": f"(?P<resource>cachedContents/{_ID})",
    "<batch>": f"(?P<resource>batches/{_ID})",
    "<tuned>": f"(?P<resource>tunedModels/{_ID})",
    "<interaction>": f"(?P<resource>interactions/{_ID})",
    "<operation>": f"(?P<resource>(?:models|tunedModels)/{_ID}/operations/{_ID})",
    "<openai>": f"(?:/(?P<version>{'|'.join(sorted(API_VERSIONS))})/openai|/v1)",
}
_GEMINI = """
POST   /<version>/models/<model>:generateContent         generateContent
POST   /<version>/models/<model>:streamGenerateContent   streamGenerateContent
POST   /<version>/models/<model>:countTokens             countTokens
POST   /<version>/models/<model>:embedContent            embedContent
POST   /<version>/models/<model>:batchEmbedContents      batchEmbedContents
POST   /<version>/models/<model>:predict                 predict
POST   /<version>/models/<model>:predictLongRunning      predictLongRunning
POST   /<version>/models/<model>:batchGenerateContent    batchGenerateContent
POST   /<version>/models/<model>:asyncBatchEmbedContent  asyncBatchEmbedContent
POST   /<version>/<tuned>:generateContent                generateContent
POST   /<version>/<tuned>:streamGenerateContent          streamGenerateContent
POST   /<version>/<tuned>:countTokens                    countTokens
GET    /<version>/models                                 models.list
GET    /<version>/models/<known>                         models.get
GET    /<version>/<operation>                            operations.get
POST   /upload/<version>/files                           files.upload
PUT    /upload/<version>/files                           files.upload
GET    /<version>/files                                  files.list
GET    /<version>/<file>                                 files.get
DELETE /<version>/<file>                                 files.delete
GET    /<version>/<file>:download                        files.download
GET    /download/<version>/<file>:download               files.download
POST   /<version>/cachedContents                         cachedContents.create
GET    /<version>/cachedContents                         cachedContents.list
GET    /<version>/<cache>                                cachedContents.get
PATCH  /<version>/<cache>                                cachedContents.update
DELETE /<version>/<cache>                                cachedContents.delete
GET    /<version>/batches                                batches.list
GET    /<version>/<batch>                                batches.get
DELETE /<version>/<batch>                                batches.delete
POST   /<version>/<batch>:cancel                         batches.cancel
GET    /<version>/tunedModels                            tunedModels.list
GET    /<version>/<tuned>                                tunedModels.get
DELETE /<version>/<tuned>                                tunedModels.delete
POST   /<version>/interactions                           interactions.create
GET    /<version>/<interaction>                          interactions.get
DELETE /<version>/<interaction>                          interactions.delete
POST   /<version>/<interaction>/cancel                   interactions.cancel
"""
_OPENAI = """
POST   <openai>/chat/completions                         chat.completions
POST   <openai>/embeddings                               embeddings
GET    <openai>/models                                   models.list
GET    <openai>/models/<known>                           models.get
"""


def _compiled(table: str) -> dict[str, list[tuple[re.Pattern[str], Operation]]]:
    """Return the lines of ``table`` by their verb, with paths as patterns."""
    patterns: dict[str, list[tuple[re.Pattern[str], Operation]]] = {}
    for line in table.strip().splitlines():
        verb, path, operation = line.split()
        for part, pattern in _PARTS.items():
            path = path.replace(part, pattern)
        patterns.setdefault(verb, []).append((re.compile(path), Operation(operation)))
    return patterns


_PATTERNS = {Protocol.GEMINI: _compiled(_GEMINI), Protocol.OPENAI: _compiled(_OPENAI)}

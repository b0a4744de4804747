from __future__ import annotations

import pytest

from llm_router.gemini_http.routes import Method
from llm_router.gemini_http.targets import Operation, Protocol, Target, parse_target


@pytest.mark.parametrize(
    ("request_line", "target"),
    [
        (
            "POST /v1beta/models/gemini-2.0-x:generateContent",
            Target(Operation.GENERATE, model="gemini-2.0-x"),
        ),
        ("POST /v1/models/m:streamGenerateContent", Target(Operation.STREAM, version="v1", model="m")),
        (
            "POST /v1beta/models/workload:heavy:countTokens",
            Target(Operation.COUNT_TOKENS, model="workload:heavy"),
        ),
        (
            "POST /v1beta/tunedModels/t-1:generateContent",
            Target(Operation.GENERATE, resource="tunedModels/t-1"),
        ),
        ("GET /v1beta/models", Target(Operation.LIST_MODELS)),
        ("GET /v1alpha/models/m", Target(Operation.GET_MODEL, version="v1alpha", model="m")),
        (
            "GET /v1beta/models/v/operations/o",
            Target(Operation.GET_OPERATION, resource="models/v/operations/o"),
        ),
        ("POST /upload/v1beta/files", Target(Operation.UPLOAD)),
        ("GET /v1beta/files/a-1", Target(Operation.GET_FILE, resource="files/a-1")),
        ("GET /v1beta/files/a-1:download", Target(Operation.DOWNLOAD_FILE, resource="files/a-1")),
        ("PATCH /v1beta/cachedContents/c", Target(Operation.UPDATE_CACHE, resource="cachedContents/c")),
        ("POST /v1beta/batches/b:cancel", Target(Operation.CANCEL_BATCH, resource="batches/b")),
        (
            "POST /v1beta/interactions/i/cancel",
            Target(Operation.CANCEL_INTERACTION, resource="interactions/i"),
        ),
        ("POST /v1beta/openai/chat/completions", Target(Operation.CHAT, Protocol.OPENAI)),
        ("POST /v1/embeddings", Target(Operation.EMBEDDINGS, Protocol.OPENAI)),
        ("GET /v1beta/openai/models/m", Target(Operation.GET_MODEL, Protocol.OPENAI, model="m")),
    ],
)
def test_a_path_has_one_target(request_line: str, target: Target) -> None:
    """Verb and path name the operation, and the model or the resource that it is for."""
    assert parse_target(*request_line.split()) == target


def test_the_path_that_two_protocols_share_is_gemini_s_unless_openai_is_meant() -> None:
    """Whose list of models ``/v1/models`` is, only its caller knows; other paths are one protocol's."""
    for path in ("/v1/models", "/v1/models/m"):
        gemini, openai = parse_target("GET", path), parse_target("GET", path, openai=True)
        assert gemini is not None
        assert openai is not None
        assert (gemini.protocol, openai.protocol) == (Protocol.GEMINI, Protocol.OPENAI)
    files = parse_target("GET", "/v1/files", openai=True)
    assert files is not None
    assert files.protocol == Protocol.GEMINI


NO_TARGETS = [
    "GET /",
    "POST /v7/models/m:generateContent",
    "POST /v1beta/models/m:unknown",
    "POST /v1beta/models/:generateContent",
    "GET /v1beta/models/m:generateContent",
    "DELETE /v1beta/models/m",
    "GET /v1beta/models/",
    "GET //v1beta/models",
    "GET /v1beta/models/%6d",
    "POST /v1beta/models/m%2f..:generateContent",
    "POST /v1beta/models/..:generateContent",
    "POST /v1beta/models/../files/f:generateContent",
    "GET /v1beta/files/..",
    "GET /v1beta/files/.f",
    "GET /v1beta/./files/f",
    "GET /v1beta/files/f?key=k",
    "GET /v1beta/files/f#",
    "GET /v1beta/files/f;x",
    "GET /v1beta/files/é",
    "GET /v1beta/files/f\\x",
    "GET /v1beta/openai/files",
    "GET /ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
    "GET /v1beta/files/" + "f" * 2000,
]


def test_other_paths_have_none() -> None:
    """A path that the API does not have, or that is written in a roundabout way, has no target."""
    for request_line in NO_TARGETS:
        assert parse_target(*request_line.split()) is None, request_line
        assert parse_target(*request_line.split(), openai=True) is None, request_line


def test_a_line_break_ends_no_path() -> None:
    """A path is matched to its end."""
    assert parse_target("GET", "/v1beta/models\n") is None
    assert parse_target("GET", "/v1beta/files/f\n") is None


def test_operations_say_what_they_need() -> None:
    """Every method of a model is an operation, and what generates or embeds needs a deployment that does."""
    assert {Operation(method) for method in Method} < set(Operation)
    needed = {operation: operation.method for operation in Operation if operation.method}
    assert needed[Operation.STREAM] == needed[Operation.CHAT] == Method.GENERATE
    assert needed[Operation.BATCH_EMBED] == needed[Operation.EMBEDDINGS] == Method.EMBED
    assert Operation.GET_FILE not in needed
    assert Operation.CHAT.names_model_in_body
    assert not Operation.GENERATE.names_model_in_body
    assert Operation.UPLOAD.creates
    assert not Operation.GET_FILE.creates

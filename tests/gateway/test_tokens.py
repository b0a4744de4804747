"""The tokens of callers: what is kept of them, and what they allow."""

from __future__ import annotations

import json
import stat
from collections import OrderedDict
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_router import ConfigError
from llm_router.gateway.tokens import TOKEN_PREFIX, TokenFile

Guarded = Any
HELLO = {"contents": [{"parts": [{"text": "hello"}]}]}


async def _call(
    guarded: Guarded, name: str, path: str, body: Any = None, *, verb: str = "POST", **headers: str
) -> tuple[int, dict[str, str], Any]:
    served, tokens = guarded
    named = {"x-goog-api-key": tokens.get(name, name)} if name else {}
    named |= {header.replace("_", "-"): value for header, value in headers.items()}
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    async with (
        aiohttp.ClientSession() as session,
        session.request(verb, served.url + path, data=data, headers=named) as answer,
    ):
        found = {header.lower(): value for header, value in answer.headers.items()}
        return answer.status, found, await answer.json(content_type=None)


def _generate(model: str) -> str:
    return f"/v1beta/models/{model}:generateContent"


def test_no_token_is_kept(tmp_path: Path) -> None:
    """The file has mode 600 and no token in it; a token has a prefix and 256 bits, and is found again."""
    file = TokenFile(tmp_path / "deep" / "tokens.json")
    token, other = file.add("ann", rpm=60), file.add("bob")
    assert token.startswith(TOKEN_PREFIX)
    assert len(token) == len(TOKEN_PREFIX) + 43
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert token.removeprefix(TOKEN_PREFIX) not in file.path.read_text()
    found = file.read()
    assert (found.find(token), found.find(other)) == found.grants
    assert found.find("anything") is None
    assert found.grants[0].digest not in repr(found)
    file.remove("ann")
    assert file.read().find(token) is None


def test_what_is_wrong_with_a_token_file_is_told(tmp_path: Path) -> None:
    """Each mistake is named, with its remedy."""
    file = TokenFile(tmp_path / "tokens.json")
    with pytest.raises(ConfigError, match="tokens add"):
        file.read()
    for name, allowed in (
        ("a b", {}),
        ("x", {"rpm": 0}),
        ("x", {"rpm": 1 << 40}),
        ("x", {"models": "m"}),
        ("x", {"admin": 1}),
    ):
        with pytest.raises(ConfigError, match=name):
            file.add(name, **allowed)
    file.add("ann")
    with pytest.raises(ConfigError, match="there is a token 'ann'"):
        file.add("ann")
    with pytest.raises(ConfigError, match="no token 'bob'"):
        file.remove("bob")
    file.path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        file.read()
    file.path.chmod(0o600)
    for content in ("", "[]", "{}", '{"key": "00", "tokens": []}', '{"key": 1, "tokens": 2}'):
        file.path.write_text(content)
        with pytest.raises(ConfigError, match="damaged"):
            file.read()


@pytest.mark.parametrize("folder", ["file", "n" * 300])
def test_a_token_file_that_cannot_be_written(tmp_path: Path, folder: str) -> None:
    """Whatever the reason, it is said where else it may be."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be .*LLM_ROUTER_TOKEN_FILE, or --token-file"):
        TokenFile(tmp_path / folder / "tokens.json").add("ann")


async def test_a_token_is_taken_wherever_an_sdk_sends_its_key(guarded: Guarded) -> None:
    """As Gemini's header, as its query, and as a bearer token."""
    token = guarded[1]["ann"]
    chat = {"model": "flash", "messages": [{"role": "user", "content": "hi"}]}
    found = [
        await _call(guarded, "ann", _generate("flash"), HELLO),
        await _call(guarded, "", f"{_generate('flash')}?key={token}", HELLO),
        await _call(guarded, "", "/v1/chat/completions", chat, authorization=f"Bearer {token}"),
    ]
    assert [status for status, _, _ in found] == [200, 200, 200]


async def test_what_a_token_allows_wins_over_headers(guarded: Guarded) -> None:
    """Other models and workloads are forbidden; no fallback leads out of what is allowed."""
    assert (await _call(guarded, "light", _generate("lite"), HELLO))[0] == 200
    assert (await _call(guarded, "light", _generate("workload:light"), HELLO))[0] == 200
    refused = await _call(guarded, "light", _generate("flash"), HELLO)
    assert (refused[0], "it allows workload:light" in str(refused[2])) == (403, True)
    wish = {"x_llm_router_workload": "medium"}
    assert (await _call(guarded, "light", _generate("lite"), HELLO, **wish))[0] == 403
    assert (await _call(guarded, "flash", _generate("lite"), HELLO))[0] == 403
    status, headers, _ = await _call(
        guarded, "flash", _generate("workload:medium"), HELLO, x_llm_router_fallback="any"
    )
    assert (status, headers["x-llm-router-model"]) == (200, "flash")
    wish = {"x_llm_router_workload": "heavy"}
    assert (await _call(guarded, "flash", _generate("flash"), HELLO, **wish))[0] == 200


async def test_a_cache_is_made_for_what_a_token_allows(guarded: Guarded) -> None:
    """A model that a token may not use gets no cache of its, either."""
    for name, model, expected in (("light", "flash", 403), ("light", "lite", 200), ("flash", "flash", 200)):
        body = {"model": f"models/{model}", "contents": [{"parts": [{"text": "long " * 50}]}]}
        status, headers, _ = await _call(guarded, name, "/v1beta/cachedContents", body)
        assert (status, headers.get("x-llm-router-model", model)) == (expected, model), (name, model)


async def test_a_file_belongs_to_its_token_however_it_is_written(guarded: Guarded) -> None:
    """JSON may escape the slash, as PHP does."""
    begin = {"x_goog_upload_protocol": "resumable", "x_goog_upload_command": "start"}
    sizes = {"x_goog_upload_header_content_length": "5", "x_goog_upload_header_content_type": "text/plain"}
    _, headers, _ = await _call(guarded, "ann", "/upload/v1beta/files", {"file": {}}, **begin, **sizes)
    finish = {"x_goog_upload_command": "upload, finalize", "x_goog_upload_offset": "0"}
    url = headers["x-goog-upload-url"].removeprefix(guarded[0].url)
    _, _, made = await _call(guarded, "ann", url, b"hello", **finish)
    part = {"fileData": {"fileUri": made["file"]["uri"], "mimeType": "text/plain"}}
    body = json.dumps({"contents": [{"parts": [part]}]}).replace("/", "\\/").encode()
    assert [(await _call(guarded, who, _generate("flash"), body))[0] for who in ("ann", "bob")] == [200, 404]


async def test_a_body_is_read_once(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of a body to see what a token allows is not read again to send it on."""
    monkeypatch.setattr("llm_router.providers._gemini_relay.read_asked", None)
    assert (await _call(guarded, "flash", _generate("flash"), HELLO))[0] == 200


async def test_a_token_has_a_limit_of_its_own(guarded: Guarded) -> None:
    """What exceeds it is a 429 with a delay, and takes no quota."""
    served, _ = guarded
    found = [await _call(guarded, "slow", _generate("flash"), HELLO) for _ in range(3)]
    assert [status for status, _, _ in found] == [200, 200, 429]
    assert 0 < int(found[-1][1]["retry-after"]) <= 61
    assert served.emulator.requests == 2
    assert (await _call(guarded, "ann", _generate("flash"), HELLO))[0] == 200


async def test_resources_belong_to_the_token_that_made_them(guarded: Guarded) -> None:
    """Others get a 404, in path and body, and lists show one's own; an upload needs no token but its id."""
    begin = {"x_goog_upload_protocol": "resumable", "x_goog_upload_command": "start"}
    sizes = {"x_goog_upload_header_content_length": "5", "x_goog_upload_header_content_type": "text/plain"}
    path = "/upload/v1beta/files"
    _, headers, _ = await _call(guarded, "ann", path, {"file": {}}, **begin, **sizes)
    url = headers["x-goog-upload-url"].removeprefix(guarded[0].url)
    finish = {"x_goog_upload_command": "upload, finalize", "x_goog_upload_offset": "0"}
    assert (await _call(guarded, "bob", url, b"hello", **finish))[0] == 404
    status, _, made = await _call(guarded, "", url, b"hello", **finish)
    assert status == 200
    file = made["file"]
    own, other = [await _call(guarded, who, f"/v1beta/{file['name']}", verb="GET") for who in ("ann", "bob")]
    assert (own[0], other[0]) == (200, 404)
    body = {"contents": [{"parts": [{"fileData": {"fileUri": file["uri"], "mimeType": "text/plain"}}]}]}
    own, other = [await _call(guarded, who, _generate("flash"), body) for who in ("ann", "bob")]
    assert (own[0], other[0]) == (200, 404)
    lists = [await _call(guarded, who, "/v1beta/files", verb="GET") for who in ("ann", "bob")]
    assert [len(found[2].get("files", [])) for found in lists][1] == 0
    assert (await _call(guarded, "bob", f"/v1beta/{file['name']}", verb="DELETE"))[0] == 404
    assert (await _call(guarded, "ann", f"/v1beta/{file['name']}", verb="DELETE"))[0] == 200
    assert (await _call(guarded, "ann", f"/v1beta/{file['name']}", verb="GET"))[0] == 404


@pytest.mark.parametrize("place", ["header", "query"])
async def test_an_upload_as_the_sdk_for_javascript_sends_it(guarded: Guarded, place: str) -> None:
    """Its pieces come with the token, too; another token cannot go on with it."""
    token = guarded[1]["ann"]
    who, query = ("ann", "") if place == "header" else ("", f"&key={token}")
    begin = {"x_goog_upload_protocol": "resumable", "x_goog_upload_command": "start"}
    sizes = {"x_goog_upload_header_content_length": "10", "x_goog_upload_header_content_type": "text/plain"}
    path = f"/upload/v1beta/files?alt=json{query}"
    status, headers, _ = await _call(guarded, who, path, {"file": {}}, **begin, **sizes)
    url = headers["x-goog-upload-url"]
    assert (status, url.startswith(f"{guarded[0].url}/upload/"), token in url) == (200, True, False)
    path = url.removeprefix(guarded[0].url)
    first = {"x_goog_upload_command": "upload", "x_goog_upload_offset": "0"}
    last = {"x_goog_upload_command": "upload, finalize", "x_goog_upload_offset": "5"}
    assert (await _call(guarded, "bob", path, b"01234", **first))[0] == 404
    status, headers, _ = await _call(guarded, who, path + query, b"01234", **first)
    assert (status, headers["x-goog-upload-status"]) == (200, "active")
    status, headers, made = await _call(guarded, who, path + query, b"56789", **last)
    assert (status, headers["x-goog-upload-status"], made["file"]["sizeBytes"]) == (200, "final", "10")
    name = made["file"]["name"]
    found = [await _call(guarded, each, f"/v1beta/{name}", verb="GET") for each in ("ann", "bob")]
    assert [status for status, _, _ in found] == [200, 404]


async def test_wrong_tokens_are_refused_and_slowed_down(guarded: Guarded) -> None:
    """No token and a wrong one are a 401, many of them a 429; a right one still passes, and none costs."""
    served, tokens = guarded
    found = [await _call(guarded, name, _generate("flash"), HELLO) for name in ["", *["wrong"] * 20]]
    assert [status for status, _, _ in found] == [401] * 20 + [429]
    assert served.emulator.requests == 0
    assert (await _call(guarded, "ann", _generate("flash"), HELLO))[0] == 200
    assert not any(token in str(found) for token in tokens.values())


async def test_a_proxy_is_believed_only_where_it_is_trusted(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong tokens count against the address that the proxy saw, whatever the client says before it."""

    async def ask(*addresses: str) -> list[int]:
        paths = [(each, _generate("flash")) for each in addresses]
        found = [await _call(guarded, "wrong", path, HELLO, x_forwarded_for=each) for each, path in paths]
        return [status for status, _, _ in found]

    gateway = guarded[0].gateway
    monkeypatch.setattr(gateway.callers, "_wrong", OrderedDict())
    monkeypatch.setattr(gateway, "trusts_proxy", True)
    invented = [f"192.0.2.{number}, 203.0.113.7" for number in range(21)]
    assert await ask(*invented) == [401] * 20 + [429]
    assert await ask("203.0.113.8") == [401]
    begin = {"x_goog_upload_protocol": "resumable", "x_goog_upload_command": "start"}
    outside = {"x_forwarded_host": "llm.example", "x_forwarded_proto": "https"}
    _, headers, _ = await _call(guarded, "ann", "/upload/v1beta/files", {"file": {}}, **begin, **outside)
    assert headers["x-goog-upload-url"].startswith("https://llm.example/upload/")
    monkeypatch.setattr(gateway, "trusts_proxy", False)
    assert await ask(*[f"203.0.113.{number}" for number in range(21)]) == [401] * 20 + [429]


async def test_only_a_token_for_all_sees_the_keys(guarded: Guarded) -> None:
    """A probe and a narrow token hear how the gateway is; thirty probes are no wrong tokens."""
    for name, sees in (("", False), ("light", False), ("flash", False), ("wrong", False), ("ann", True)):
        status, _, found = await _call(guarded, name, "/healthz", verb="GET")
        assert (status, found["state"], "keys" in found) == (200, "healthy", sees), name
    wrong = guarded[0].gateway.callers._wrong
    before = [len(times) for times in wrong.values()]
    for _ in range(30):
        assert (await _call(guarded, "", "/healthz", verb="GET"))[0] == 200
    assert [len(times) for times in wrong.values()] == before

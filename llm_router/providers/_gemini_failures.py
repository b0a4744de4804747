"""Translating failures into :class:`~llm_router.errors.ProviderError`.

=====================================================  =========
what happened                                          kind
=====================================================  =========
400 with a reason about the API key                    KEY
401                                                    KEY
403 about a file, cache or interaction                 REQUEST
403 otherwise                                          KEY
404 about a file, cache or interaction                 REQUEST
404 otherwise                                          MODEL
408                                                    TIMEOUT
429                                                    QUOTA, not charged
other 4xx                                              REQUEST
401, 403, 404, 407 with a web page, not from the API   NETWORK
5xx                                                    SERVER
any other status                                       NETWORK
connection refused, no such host, no TLS               NETWORK, not charged
connection broken later                                NETWORK
connection or answer took too long                     TIMEOUT
=====================================================  =========
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from llm_router.domain.kinds import FailureKind
from llm_router.errors import ProviderError
from llm_router.gemini_http.api_errors import API_KEY_EXPIRED, API_KEY_INVALID
from llm_router.providers._gemini_error_body import ErrorBody, read_error_body

if TYPE_CHECKING:
    from llm_router.domain.secret import Secret
    from llm_router.providers._gemini_transport import HttpFailure, PathFailure

__all__ = ["MESSAGE_LIMIT", "from_http", "from_path", "not_an_answer", "not_sent"]

MESSAGE_LIMIT = 500
"""The most characters of a message; the provider's words are cut to fit."""

_BODY_LIMIT = 256 * 1024
_MASK = "***"
_PREFIX = 4
"""The characters at the start of a key that all keys share, and that reveal nothing."""
_KEY_REASONS = frozenset({API_KEY_EXPIRED, API_KEY_INVALID})
_KEY_WORDS = re.compile(r"\bAPI key (not valid|not found|expired)\b|\bvalid API key\b", re.IGNORECASE)
_STORED_DATA = re.compile(r"\bfiles?\b|\bcached[ _]?contents?\b|\binteractions?\b", re.IGNORECASE)
_STATUS_WORD = re.compile(r"[A-Z][A-Z_]{0,63}")
_KINDS: dict[int, FailureKind] = {
    HTTPStatus.UNAUTHORIZED: FailureKind.KEY,
    HTTPStatus.FORBIDDEN: FailureKind.KEY,
    HTTPStatus.NOT_FOUND: FailureKind.MODEL,
    HTTPStatus.REQUEST_TIMEOUT: FailureKind.TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS: FailureKind.QUOTA,
}
_KINDS_OF_CLASS = {4: FailureKind.REQUEST, 5: FailureKind.SERVER}
_PATH_STATUSES = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
    }
)


def from_http(failure: HttpFailure, secret: Secret) -> ProviderError:
    """Translate a response with a status other than 200."""
    body = read_error_body(_scrub(failure.body[:_BODY_LIMIT].decode("utf-8", "replace"), secret))
    status = body.status if body.status and _STATUS_WORD.fullmatch(body.status) else None
    delay = _header_seconds(failure.retry_after) if body.retry_delay is None else body.retry_delay
    kind = _kind(failure.code, body)
    return ProviderError(
        # Scrubbed again, since the key may have been escaped in the JSON.
        _message(" ".join(filter(None, (str(failure.code), status))), _scrub(body.message, secret)),
        kind=kind,
        code=failure.code,
        status=status,
        retry_delay=delay,
        violations=body.violations if kind is FailureKind.QUOTA else (),
        # A limiter does not count what it refuses; any other answer may have used quota, even a 400.
        charged=kind is not FailureKind.QUOTA,
    )


def from_path(failure: PathFailure, secret: Secret) -> ProviderError:
    """Translate a connection that could not be made, or that broke."""
    return ProviderError(
        _message("no answer", _scrub(failure.text, secret)), kind=failure.kind, charged=failure.charged
    )


def not_an_answer(why: str) -> ProviderError:
    """Return the error for a 200 without an answer: charged, and blamed on the path."""
    return ProviderError(
        _message("200", f"not an answer: {why}"), kind=FailureKind.NETWORK, code=int(HTTPStatus.OK)
    )


def not_sent(why: str) -> ProviderError:
    """Return the error for a request that could not be put into HTTP."""
    return ProviderError(
        _message("the request could not be sent", why), kind=FailureKind.REQUEST, charged=False
    )


def _kind(code: int, body: ErrorBody) -> FailureKind:
    """Return the kind of a failure, by the table at the top of this module."""
    if body.is_page and code in _PATH_STATUSES:
        return FailureKind.NETWORK
    if code == HTTPStatus.BAD_REQUEST and _blames_key(body):
        return FailureKind.KEY
    if code in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND) and _is_about_data(body):
        return FailureKind.REQUEST
    return _KINDS.get(code) or _KINDS_OF_CLASS.get(code // 100, FailureKind.NETWORK)


def _blames_key(body: ErrorBody) -> bool:
    return not body.reasons.isdisjoint(_KEY_REASONS) or bool(_KEY_WORDS.search(body.message))


def _is_about_data(body: ErrorBody) -> bool:
    """Return whether it denies a file, cache or interaction, which only the project that made it may use.

    A refusal with a reason is about the key or its project; access to data is denied without one.
    """
    return not body.reasons and "models/" not in body.message and bool(_STORED_DATA.search(body.message))


def _header_seconds(retry_after: str | None) -> float | None:
    """Read a Retry-After header in seconds; None for a date, which is useless without the server's clock."""
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*", retry_after or "")
    return float(found[1]) if found else None


def _message(what: str, words: str) -> str:
    words = " ".join(words.split())
    text = f"{what}: {words}" if words else what
    return text if len(text) <= MESSAGE_LIMIT else f"{text[: MESSAGE_LIMIT - 1]}…"


def _scrub(text: str, secret: Secret) -> str:
    """Mask the key in the provider's words, which may quote it and may even break off inside it."""
    value = secret.reveal().strip()
    if not value:
        return text
    for form in {value, quote(value, safe=""), json.dumps(value)[1:-1]}:
        text = text.replace(form, _MASK)
    for length in range(len(value) - 1, _PREFIX, -1):
        if text.endswith(value[:length]):
            return text[:-length] + _MASK
    return text

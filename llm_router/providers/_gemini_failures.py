"""Translating failures into :class:`~llm_router.errors.ProviderError`, which shows no key.

A response with a status other than 200 is judged by the rules of ``_gemini_rules``. Of the rest:

============================================  ===================================
what happened                                 kind
============================================  ===================================
connection refused, no such host, no TLS      NETWORK, not charged
connection broken later                       NETWORK
connection or answer took too long            TIMEOUT
a 200 without an answer                       NETWORK
a request that cannot be put into HTTP        REQUEST, not charged
a key that cannot be put into a header        KEY, not charged
============================================  ===================================
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from llm_router.domain.kinds import FailureKind
from llm_router.errors import ProviderError
from llm_router.providers._gemini_delays import credible_delay, header_delay
from llm_router.providers._gemini_error_body import read_error_body
from llm_router.providers._gemini_request import metered_tools
from llm_router.providers._gemini_rules import fault_of

if TYPE_CHECKING:
    from llm_router.domain.request import Request
    from llm_router.domain.secret import Secret
    from llm_router.providers._gemini_transport import HttpFailure, PathFailure

__all__ = ["MESSAGE_LIMIT", "from_http", "from_path", "not_a_key", "not_an_answer", "not_sent", "scrub_bytes"]

MESSAGE_LIMIT = 500
"""The most characters of a message; the provider's words are cut to fit."""

_BODY_LIMIT = 256 * 1024
_MASK = "***"
_PREFIX = 4
"""The characters at the start of a key that all keys share, and that reveal nothing."""
_STATUS_WORD = re.compile(r"[A-Z][A-Z_]{0,63}")
_UNCOUNTED = frozenset({HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.TOO_MANY_REQUESTS})
"""Refusals of a limiter, which does not count what it refuses. Any other may have used quota, even a 400."""


def from_http(failure: HttpFailure, secret: Secret, request: Request) -> ProviderError:
    """Translate a response to ``request`` with a status other than 200."""
    body = read_error_body(_scrub(failure.body[:_BODY_LIMIT].decode("utf-8", "replace"), secret))
    fault = fault_of(failure.code, body, metered_tools(request))
    status = body.status if body.status and _STATUS_WORD.fullmatch(body.status) else None
    delay = header_delay(failure.retry_after) if body.retry_delay is None else body.retry_delay
    # What is said of quotas beside a spend limit is not what was refused.
    violations = body.violations if fault.kind is FailureKind.QUOTA and not fault.spending else ()
    return ProviderError(
        # Scrubbed again, since the key may have been escaped in the JSON.
        _message(" ".join(filter(None, (str(failure.code), status))), _scrub(body.message, secret)),
        kind=fault.kind,
        scope=fault.scope,
        feature=fault.feature,
        lasting=fault.lasting,
        spending=fault.spending,
        code=failure.code,
        status=status,
        retry_delay=credible_delay(delay, fault.kind, violations),
        violations=violations,
        charged=failure.code not in _UNCOUNTED,
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


def not_a_key(why: str) -> ProviderError:
    """Return the error for a key with which no request can be made."""
    return ProviderError(_message("the key cannot be used", why), kind=FailureKind.KEY, charged=False)


def _message(what: str, words: str) -> str:
    words = " ".join(words.split())
    text = f"{what}: {words}" if words else what
    return text if len(text) <= MESSAGE_LIMIT else f"{text[: MESSAGE_LIMIT - 1]}…"


def scrub_bytes(body: bytes, secret: Secret) -> bytes:
    """Return the body of a failure with the key masked; one that is too large to be meant is cut."""
    return _scrub(body[:_BODY_LIMIT].decode("utf-8", "surrogateescape"), secret).encode(
        "utf-8", "surrogateescape"
    )


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

"""Reading the body of a refusal: ``google.rpc.Status`` as JSON, in a list, cut short, or something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import attrs

from llm_router.domain.kinds import FaultScope
from llm_router.errors import QuotaViolation
from llm_router.gemini_http.durations import read_delay, read_retry_sentence
from llm_router.providers._gemini_quotas import (
    SpentQuota,
    quotas_of_details,
    quotas_of_ids,
    quotas_of_message,
    widest,
)

__all__ = ["BodyForm", "ErrorBody", "read_error_body"]

_CUT_FIELD = r'"%s"\s*:\s*"((?:[^"\\]|\\.)*)'
_REASON = re.compile(r"[A-Z][A-Z0-9_]*")
_PROXY = re.compile(
    r"\b(?:proxy|squid|nginx|cloudflare|haproxy|envoy|varnish|traefik|zscaler|fortigate)\b", re.IGNORECASE
)


class BodyForm(StrEnum):
    """What a body looks like, and so where it comes from."""

    API = "api"
    """JSON, whole or cut short, or nothing: it may come from the API."""
    TEXT = "text"
    """Plain text, which comes from something on the way."""
    PAGE = "page"
    """HTML, which comes from something on the way, or from a front end of the provider."""
    PROXY_PAGE = "proxy_page"
    """HTML that names a proxy."""


@attrs.frozen
class ErrorBody:
    """The contents of a refusal.

    Attributes:
        message: The provider's message, or the whole text if there is none in it.
        status: Its status word, such as ``RESOURCE_EXHAUSTED``.
        reasons: The reasons of its ``ErrorInfo`` details, such as ``API_KEY_INVALID``.
        violations: The quotas that it names; if their scopes differ, those of the widest.
        retry_delay: Seconds that it asks to wait, or None.
        form: What it looks like.
        wider: PROJECT if all models of the project share these quotas, FEATURE if they count the uses of a
            tool; None if they are of one model for the project, or none are named.
        tool: The tool, such as ``google_search``, if ``wider`` is FEATURE.
    """

    message: str = ""
    status: str | None = None
    reasons: frozenset[str] = frozenset()
    violations: tuple[QuotaViolation, ...] = ()
    retry_delay: float | None = None
    form: BodyForm = BodyForm.API
    wider: FaultScope | None = None
    tool: str | None = None

    @property
    def is_page(self) -> bool:
        """Whether it is HTML, which the API itself never sends."""
        return self.form in (BodyForm.PAGE, BodyForm.PROXY_PAGE)


def read_error_body(text: str) -> ErrorBody:
    """Read ``text``, whatever it is. It never fails."""
    form = _form(text)
    error = _error_object(text) if form is BodyForm.API else None
    if error is None:
        return _from_fragment(text, form)
    details = [detail for detail in _list(error.get("details")) if isinstance(detail, dict)]
    message = _string(error.get("message")) or ""
    return attrs.evolve(
        _naming(quotas_of_details(details, message)),
        message=message,
        status=_string(error.get("status")),
        reasons=_reasons(_string(detail.get("reason")) for detail in details),
        retry_delay=_first_delay(details, message),
    )


def _form(text: str) -> BodyForm:
    start = text.lstrip()[:1]
    if start == "<":
        return BodyForm.PROXY_PAGE if _PROXY.search(text) else BodyForm.PAGE
    return BodyForm.TEXT if start and start not in '{["' and not _is_json(text) else BodyForm.API


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _error_object(text: str) -> dict[str, Any] | None:
    """Return the object under ``error``, or None if the text does not have that form."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else None


def _from_fragment(text: str, form: BodyForm) -> ErrorBody:
    """Read as much as possible of JSON that was cut short, or of plain text."""
    if form in (BodyForm.PAGE, BodyForm.PROXY_PAGE):
        return ErrorBody(message="a web page instead of an answer of the API", form=form)
    quotas = quotas_of_ids(_cut(text, "quotaId"), with_models=bool(_cut(text, "model")))
    delays = [read_delay(delay) for delay in _cut(text, "retryDelay")]
    return attrs.evolve(
        _naming(quotas or quotas_of_message(text)),
        message=next(iter(_cut(text, "message")), text),
        status=next(iter(_cut(text, "status")), None),
        reasons=_reasons(_cut(text, "reason")),
        retry_delay=next((delay for delay in delays if delay is not None), read_retry_sentence(text)),
        form=form,
    )


def _naming(quotas: tuple[SpentQuota, ...]) -> ErrorBody:
    """Return a body that names ``quotas`` and has nothing else yet."""
    named = widest(quotas)
    if not named:
        return ErrorBody()
    wider = None if named[0].scope is FaultScope.DEPLOYMENT else named[0].scope
    return ErrorBody(violations=tuple(quota.violation for quota in named), wider=wider, tool=named[0].tool)


def _cut(text: str, field: str) -> list[str]:
    return re.findall(_CUT_FIELD % field, text)


def _reasons(found: Iterable[str | None]) -> frozenset[str]:
    """Return the words that can be reasons; the older form of an error has others beside them."""
    return frozenset(reason for reason in found if reason and _REASON.fullmatch(reason))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _first_delay(details: list[dict[str, Any]], message: str) -> float | None:
    for detail in details:
        delay = read_delay(detail.get("retryDelay"))
        if delay is not None:
            return delay
    return read_retry_sentence(message)

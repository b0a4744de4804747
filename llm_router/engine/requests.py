"""Check a request before any quota is taken."""

from __future__ import annotations

import attrs

from llm_router.domain.request import Request
from llm_router.errors import InvalidRequestError

__all__ = ["check_request", "merge_requests"]


def merge_requests(inner: Request, outer: Request) -> Request:
    """Return the request that was passed as a prompt; arguments given beside it win over its own."""
    given = {
        field.name: value
        for field in attrs.fields(Request)
        if field.name != "contents" and (value := getattr(outer, field.name)) is not None
    }
    return attrs.evolve(inner, **given) if given else inner


def check_request(request: Request) -> None:
    """Check what no provider needs to be asked about.

    Raises:
        InvalidRequestError: The prompt is empty, or ``max_output_tokens`` is not a whole number above 0.
    """
    if not request.contents:
        raise InvalidRequestError("the prompt is empty: pass a string or contents")
    limit = request.max_output_tokens
    if limit is not None and (not isinstance(limit, int) or limit <= 0):
        raise InvalidRequestError(f"max_output_tokens must be a whole number above 0, not {limit!r}")

"""Who is signed in to the page: a cookie that is signed and expires, and has no token in it."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from llm_router.domain.clock import Clock, SystemClock

if TYPE_CHECKING:
    from llm_router.gateway.callers import Callers
    from llm_router.gateway.tokens import Grant

__all__ = ["COOKIE", "LASTS", "Sessions", "cookie_header", "read_cookie"]

COOKIE = "llm_router_page"
"""The name of the cookie."""

LASTS = 12 * 3600
"""Seconds after which one has to sign in again."""

_PARTS = 3
_DIGITS = 12


class Sessions:
    """Begins sessions and knows them again, in whichever process of the gateway they began.

    A session ends when its time is over, and at once when its token is removed. To sign out makes the
    browser forget the cookie.

    Args:
        callers: Who knows the tokens.
        clock: Where time comes from.
    """

    def __init__(self, callers: Callers, clock: Clock | None = None) -> None:
        self._callers = callers
        self._clock = clock or SystemClock()

    def begin(self, grant: Grant) -> str:
        """Return the value of the cookie for a session with this token."""
        content = f"{int(self._clock.time()) + LASTS}.{grant.owner}"
        return f"{content}.{self._callers.tokens.seal(content)}"

    def find(self, value: str) -> Grant | None:
        """Return what the token of a session allows; None if it is over, or never began."""
        parts = value.split(".")
        if len(parts) != _PARTS or not value.isascii() or not parts[0].isdecimal() or len(parts[0]) > _DIGITS:
            return None
        expires, owner, seal = parts
        tokens = self._callers.tokens
        is_ours = hmac.compare_digest(tokens.seal(f"{expires}.{owner}"), seal)
        now = self._clock.time()
        if not is_ours or not now < int(expires) <= now + LASTS:
            return None
        return next((each for each in tokens.grants if each.admin and each.owner == owner), None)


def cookie_header(value: str, lasts: int, *, is_secure: bool) -> tuple[str, str]:
    """Return the header that sets the cookie, for the page's own paths only."""
    secure = "; Secure" if is_secure else ""
    text = f"{COOKIE}={value}; Path=/page; Max-Age={lasts}; HttpOnly; SameSite=Strict{secure}"
    return "set-cookie", text


def read_cookie(header: str) -> str:
    """Return the value of the cookie in a Cookie header; empty if there is none."""
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return ""

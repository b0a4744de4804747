"""The tokens of callers: what each allows, and the file that keeps their digests."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any

import attrs

from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError
from llm_router.stores.urls import state_directory

__all__ = ["TOKEN_PREFIX", "Grant", "TokenFile", "Tokens", "default_token_file"]

TOKEN_PREFIX = "llmr_"  # noqa: S105 - no token, but what all begin with
"""What every token begins with, so that one is known where it should not be."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BYTES = 32
_MOST_RPM = 1_000_000
_SEALS = b"sessions of the page"


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
        raise ValueError("workloads and models must be lists of names")
    return tuple(value)


@attrs.frozen(kw_only=True)
class Grant:
    """What a token allows.

    Attributes:
        name: Its name.
        digest: What is kept of it, in hexadecimal.
        rpm: Most requests to models within a minute; None for any number.
        workloads: The workloads that it may use; none for all.
        models: The models that it may use; none for all.
        tenant: The tenant that its requests are reported for; None for the one that a header names.
        admin: Whether it opens the gateway's page and its metrics, too.
    """

    name: str
    digest: str = attrs.field(repr=False)
    rpm: int | None = None
    workloads: tuple[str, ...] = attrs.field(default=(), converter=_names)
    models: tuple[str, ...] = attrs.field(default=(), converter=_names)
    tenant: str | None = None
    admin: bool = False

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError("the name must be letters, digits, dots, dashes and underscores, at most 64")
        if self.rpm is not None and (type(self.rpm) is not int or not 1 <= self.rpm <= _MOST_RPM):
            raise ValueError(f"rpm must be a whole number from 1 to {_MOST_RPM:,}")
        if self.tenant is not None and not isinstance(self.tenant, str):
            raise ValueError("tenant must be a word")
        if type(self.admin) is not bool:
            raise ValueError("admin must be true or false")
        if not isinstance(self.digest, str) or not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise ValueError("a digest is 64 hexadecimal digits")

    @property
    def owner(self) -> str:
        """What names the token as the owner of a resource; another token of the same name has another."""
        return self.digest[:32]


@attrs.frozen
class Tokens:
    """The tokens of an installation."""

    key: Secret
    grants: tuple[Grant, ...] = ()

    def find(self, token: str) -> Grant | None:
        """Return what a token allows; None if there is no such token. It takes the same time for each."""
        digest = self.digest(token)
        found = None
        for grant in self.grants:
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        return found

    def digest(self, token: str) -> str:
        """Return what is kept of a token."""
        value = token.encode("utf-8", "surrogatepass")
        return hmac.digest(bytes.fromhex(self.key.reveal()), value, hashlib.sha256).hex()

    def seal(self, text: str) -> str:
        """Return a signature of a text, for which only this installation has the key; no token has such."""
        key = hmac.digest(bytes.fromhex(self.key.reveal()), _SEALS, hashlib.sha256)
        return hmac.digest(key, text.encode(), hashlib.sha256).hex()


class TokenFile:
    """A file with the digests of tokens and the key of the installation, readable by its owner only.

    Args:
        path: The file; :meth:`add` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Tokens:
        """Return the tokens.

        Raises:
            ConfigError: There is no such file, others may read it, or it is damaged.
        """
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read()
        except OSError as error:
            reason = error.strerror or "it cannot be read"
            raise ConfigError(
                f"the token file {str(self.path)!r}: {reason}: make it with `llm-router tokens add NAME`"
            ) from None
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"others may read the token file: chmod 600 {str(self.path)!r}")
        with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
            found = json.loads(content)
            bytes.fromhex(found["key"])
            if len(found["key"]) == 2 * _BYTES:
                return Tokens(Secret(found["key"]), tuple(Grant(**each) for each in found["tokens"]))
        raise ConfigError(
            f"the token file {str(self.path)!r} is damaged, no JSON object with key and "
            "tokens: restore it, or remove it"
        )

    def add(self, name: str, **allowed: Any) -> str:
        """Make a token, and return it: it is not kept.

        Raises:
            ConfigError: There is one of this name, or what it is to allow is wrong.
        """
        exists = os.path.exists(self.path)  # noqa: PTH110 - never raises
        tokens = self.read() if exists else Tokens(Secret(secrets.token_hex(_BYTES)))
        if any(grant.name == name for grant in tokens.grants):
            raise ConfigError(f"there is a token {name!r}: remove it first, or choose another name")
        token = TOKEN_PREFIX + secrets.token_urlsafe(_BYTES)
        try:
            grant = Grant(name=name, digest=tokens.digest(token), **allowed)
        except ValueError as error:
            raise ConfigError(f"token {name[:64]!r}: {error}") from None
        self._write(attrs.evolve(tokens, grants=(*tokens.grants, grant)))
        return token

    def remove(self, name: str) -> None:
        """Remove a token, from the next second on for gateways that run.

        Raises:
            ConfigError: There is none of this name.
        """
        tokens = self.read()
        kept = tuple(grant for grant in tokens.grants if grant.name != name)
        if len(kept) == len(tokens.grants):
            raise ConfigError(f"there is no token {name!r}: see `llm-router tokens list`")
        self._write(attrs.evolve(tokens, grants=kept))

    def _write(self, tokens: Tokens) -> None:
        content = {"key": tokens.key.reveal(), "tokens": [attrs.asdict(grant) for grant in tokens.grants]}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".tokens")
        except OSError as error:
            raise ConfigError(
                f"the token file {str(self.path)!r} cannot be written: {error.strerror}: set "
                "LLM_ROUTER_TOKEN_FILE, or --token-file, to a path that can be"
            ) from None
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # made with mode 600
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)  # noqa: PTH105 - either file is whole at any time
        except BaseException:
            os.unlink(name)  # noqa: PTH108 - likewise
            raise


def default_token_file() -> Path:
    """Return the token file of the user, unless an option names another.

    Raises:
        ConfigError: As for :func:`state_directory`.
    """
    return state_directory("LLM_ROUTER_TOKEN_FILE to a path") / "tokens.json"

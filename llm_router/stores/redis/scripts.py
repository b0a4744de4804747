"""Loading the Lua script and running it on a server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import attrs
from redis.exceptions import NoScriptError

__all__ = ["Client", "Script", "load_script"]

_PARTS = (
    "packed.lua",
    "layout.lua",
    "ledgers.lua",
    "entries.lua",
    "rolling.lua",
    "steady.lua",
    "daily.lua",
    "kinds.lua",
    "scopes.lua",
    "changing.lua",
    "cooldowns.lua",
    "reservations.lua",
    "batch.lua",
)
"""The files that make up the script; each uses those before it."""


class Client(Protocol):
    """The methods of a redis-py client that are used, whether it is one of a server or of a cluster."""

    async def execute_command(self, *args: Any) -> Any:
        """Run one command."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@attrs.frozen
class Script:
    """A Lua script, and the name by which a server knows it.

    Attributes:
        source: Its text.
        sha: SHA-1 of the text, in hexadecimal.
    """

    source: str = attrs.field(repr=False)
    sha: str

    async def run(self, client: Client, keys: Sequence[str], arguments: Sequence[str | bytes]) -> Any:
        """Run the script on ``client`` and return its reply.

        If the server does not know the script (any more), it is sent the source and runs it in one step. On a
        cluster, that reaches the one node that has the keys, wherever they have moved, and needs no other.

        Raises:
            RedisError: The server or the connection failed.
        """
        try:
            return await client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            pass
        return await client.execute_command("EVAL", self.source, len(keys), *keys, *arguments)


@cache
def load_script() -> Script:
    """Assemble the script from its files."""
    folder = files("llm_router.stores.redis") / "lua"
    source = ""
    for part in reversed(_PARTS):
        text = (folder / part).read_text(encoding="utf-8")
        source = f"{text}\nreturn (function()\n{source}end)()\n" if source else text
    # The name that Redis gives to a script; it has nothing to do with security.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

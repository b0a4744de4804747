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

_PARTS = ("packed.lua", "ledgers.lua", "scopes.lua", "holds.lua", "batch.lua")
"""The files that make up the script, in the order in which they use one another."""


class Client(Protocol):
    """What is used of a redis-py client, be it of one server or of a cluster."""

    async def execute_command(self, *args: Any) -> Any:
        """Run one command."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@attrs.frozen
class Script:
    """A Lua script and the name a server knows it by.

    Attributes:
        source: Its text.
        sha: SHA-1 of the text, in hexadecimal.
    """

    source: str = attrs.field(repr=False)
    sha: str

    async def run(self, client: Client, keys: Sequence[str], arguments: Sequence[str | bytes]) -> Any:
        """Run the script on ``client``, also where it is not known (any more), and return its reply.

        A server that does not know it is sent the source and runs it in the same step. On a cluster that
        reaches the one node that has the keys, wherever they went meanwhile, and needs no other node.

        Raises:
            RedisError: Whatever the server or the connection has to say.
        """
        try:
            return await client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            pass
        return await client.execute_command("EVAL", self.source, len(keys), *keys, *arguments)


@cache
def load_script() -> Script:
    """Put the script together from its files."""
    folder = files("llm_router.stores.redis") / "lua"
    source = "\n".join((folder / part).read_text(encoding="utf-8") for part in _PARTS)
    # The name that Redis gives to a script; nothing is secured by it.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

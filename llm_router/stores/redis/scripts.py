"""Loading the Lua script and running it on a server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import attrs
from redis.exceptions import NoScriptError

__all__ = ["Client", "Script", "load_script"]

_PARTS = (
    ("packed", "layout", "ledgers", "entries", "rolling", "steady", "daily", "kinds"),
    ("scopes", "epoch", "changing", "cooldowns", "reservations"),
    ("deployments", "full", "reserve", "charging", "batch"),
)
"""The files that make up the script, in groups; each file uses those before it.

Redis makes all functions anew for every call, and each costs the more time the more variables it captures. A
variable costs less if a function around has captured it already, so each group lies in a function of the one
before. And a constant is none: its value stands wherever its name does in the files.
"""

_CONSTANTS = re.compile(r"^( *)local ([A-Z_]+(?:, [A-Z_]+)*) = (.*?)(?: +--.*)?$", re.MULTILINE)
_VALUES = re.compile(r'[-+*^(). \dA-Z_e,]+|"[^"]*"')
_NAME = re.compile(r"\b[A-Z_]+\b")


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

    async def run(
        self,
        client: Client,
        keys: Sequence[str],
        arguments: Sequence[str | bytes],
        unknown: Callable[[], Sequence[str | bytes]] | None = None,
    ) -> Any:
        """Run the script on ``client`` and return its reply.

        If the server does not know the script (any more), it is sent the source and runs it in one step. On a
        cluster, that reaches the one node that has the keys, wherever they have moved, and needs no other.

        Args:
            client: The client.
            keys: The keys.
            arguments: The other arguments.
            unknown: Returns those for a server that does not know the script; the same if not given.

        Raises:
            RedisError: The server or the connection failed.
        """
        try:
            return await client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            pass
        arguments = arguments if unknown is None else unknown()
        return await client.execute_command("EVAL", self.source, len(keys), *keys, *arguments)


@cache
def load_script() -> Script:
    """Assemble the script from its files."""
    folder = files("llm_router.stores.redis") / "lua"
    constants: dict[str, str] = {}
    texts = {
        name: _fold((folder / f"{name}.lua").read_text(encoding="utf-8"), constants)
        for group in _PARTS
        for name in group
    }
    source = ""
    for group in reversed(_PARTS):
        parts = "\n".join(texts[name] for name in group)
        source = f"{parts}\nreturn (function()\n{source}end)()\n" if source else parts
    # The name that Redis gives to a script; it has nothing to do with security.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _fold(text: str, constants: dict[str, str]) -> str:
    """Put the value of each constant in place of its name; a name has one value in a file.

    Args:
        text: The text of a file.
        constants: Those of the files before it; those of this one that are not local to a function are added.
    """
    known = dict(constants)

    def value_of(match: re.Match[str]) -> str:
        return known.get(match[0], match[0])

    def define(match: re.Match[str]) -> str:
        indent, names, values = match.groups()
        if not _VALUES.fullmatch(values):
            return match[0]
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            known[name] = value if value.startswith('"') else f"({_NAME.sub(value_of, value)})"
            if not indent:
                constants[name] = known[name]
        return ""

    return _NAME.sub(value_of, _CONSTANTS.sub(define, text))

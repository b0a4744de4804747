"""Reading from a request what it takes to judge its answer: the tools it uses, and whether it is limited.

It is duck-typed, so that it needs no SDK: a config may be a dict (in snake_case or camelCase) or an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.fields import field

if TYPE_CHECKING:
    from llm_router.domain.request import Request

__all__ = ["limits_output", "metered_tools"]

_METERED = {
    "google_search": "google_search",
    "google_search_retrieval": "google_search",
    "google_maps": "google_maps",
    "url_context": "url_context",
}
"""The fields of a tool that make the provider do something for which it has a quota of its own, each with
the name of that feature."""


def metered_tools(request: Request) -> tuple[str, ...]:
    """Return the tools of ``request`` that have quotas of their own, such as ``google_search``, each once."""
    tools = field(request.config, "tools")
    if not isinstance(tools, list | tuple):
        tools = [tools]
    used = [name for tool in tools for name in _METERED if field(tool, name) is not None]
    return tuple(dict.fromkeys(_METERED[name] for name in used))


def limits_output(request: Request) -> bool:
    """Return whether ``request`` limits the tokens of its answer, thoughts included."""
    return request.max_output_tokens is not None or field(request.config, "max_output_tokens") is not None

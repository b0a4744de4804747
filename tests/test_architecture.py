"""The house keeps its floors: imports go downward, and heavy libraries are not imported unasked."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

import llm_router

ROOT = Path(llm_router.__file__).parent

FLOORS = {
    "errors": 0,
    "domain": 0,
    "gemini_http": 1,
    "observe": 2,
    "providers": 2,
    "records": 2,
    "stores": 2,
    "strategies": 2,
    "config": 3,
    "caching": 4,
    "engine": 3,
    "conversations": 4,
    "building": 5,
    "router": 6,
    "default_router": 7,
    "bridge": 7,
    "cli": 8,
    "emulator": 8,
    "gateway": 8,
    "genai": 8,
    "planning": 8,
    "sync": 8,
    "testing": 8,
}

EDGES = {("cli", room) for room in ("emulator", "gateway", "planning", "testing")}
EDGES |= {("planning", "testing"), ("testing", "emulator")}
"""The edges that may import each other: the command runs others; testing has clocks and the emulator."""

BESIDE = {("records", "stores")}
"""Rooms of one floor of which the first is built on the second: the URLs, clients and faults are the same."""


def _modules() -> dict[str, Path]:
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = ("llm_router", *path.relative_to(ROOT).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield every statement, in whatever block; ``ast.walk`` spends most of its time on expressions."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, block, ())


def _imports(name: str, tree: ast.Module, known: Container[str]) -> set[str]:
    found = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return {module for module in found if module in known}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


Read = tuple[bool, set[str]]
"""Whether a module has a docstring, and what it imports of the library."""


@pytest.fixture(scope="module")
def modules() -> dict[str, Read]:
    """Read every module of the library; no syntax tree is kept, or garbage is looked for in it."""
    known = _modules()

    def read(name: str) -> Read:
        tree = ast.parse(known[name].read_text(encoding="utf-8"))
        return bool(ast.get_docstring(tree)), _imports(name, tree, known)

    return {name: read(name) for name in known}


@pytest.fixture(scope="module")
def graph(modules: dict[str, Read]) -> dict[str, set[str]]:
    """What each module imports of the library."""
    return {name: imports for name, (_, imports) in modules.items()}


def test_every_room_has_a_floor() -> None:
    """A new package or module must be given its floor here."""
    assert {_room(name) for name in _modules()} - {"", "__main__"} == FLOORS.keys()


def _may_import(name: str, imported: str) -> bool:
    """Say whether a module may import another: its own room, lower floors, never the public face."""
    ours, theirs = _room(name), _room(imported)
    if imported == "llm_router" or ours == theirs:
        return ours == theirs
    below = FLOORS[theirs] < FLOORS[ours]
    ground = FLOORS[theirs] == FLOORS[ours] == 0
    edges = (ours, theirs) in EDGES | BESIDE
    ports = imported.endswith(".base") and FLOORS[theirs] == FLOORS[ours]
    return below or ground or edges or ports


def test_imports_go_downward(graph: dict[str, set[str]]) -> None:
    """A module imports its own room or lower floors, and never the public face; the ground is one floor."""
    inside = graph.keys() - {"llm_router", "llm_router.__main__"}
    assert len(inside) > 300
    upward = [(name, it) for name in inside for it in graph[name] if not _may_import(name, it)]
    assert not upward, "\n".join(f"{name} imports {imported}" for name, imported in sorted(upward))


def test_no_cycles(graph: dict[str, set[str]]) -> None:
    """No two modules import each other, directly or through others."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("room", ["stores", "providers", "strategies", "observe", "records"])
def test_adapters_do_not_know_each_other(graph: dict[str, set[str]], room: str) -> None:
    """Adapters of one port share its base and pure helpers only; what stands in front counts in memory."""
    shared = {"base", "ledger", "labels", "entries", "unwanted"}
    for name, imports in graph.items():
        if _room(name) != room or name.count(".") < 2:
            continue
        adapter = name.split(".")[2].removeprefix("_").split("_")[0]
        for imported in imports:
            if _room(imported) == room and imported.count(".") >= 2 and adapter != "urls":
                other = imported.split(".")[2].removeprefix("_").split("_")[0]
                is_allowed = other == adapter or other in shared or (adapter, other) == ("failover", "memory")
                assert is_allowed, f"{name} imports {imported}"


@pytest.mark.slow
def test_importing_the_library_is_light() -> None:
    """Neither SDK nor client nor any edge is imported with the library."""
    heavy: tuple[str, ...] = ("google.genai", "redis", "aiohttp", "httpx", "httpx2", "typer", "rich")
    heavy += ("starlette", "uvicorn", "opentelemetry", "prometheus_client", "watchfiles")
    code = f"import sys, llm_router; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exported_members() -> None:
    """What is public is listed, sorted and there."""
    assert llm_router.__all__ == sorted(llm_router.__all__)
    for name in llm_router.__all__:
        assert hasattr(llm_router, name), name


def test_every_module_tells_its_subject(modules: dict[str, Read]) -> None:
    """Every module has a docstring and lists what it offers (the linter keeps the lists sorted)."""
    assert [name for name, (has_docstring, _) in modules.items() if not has_docstring] == []

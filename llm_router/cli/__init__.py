"""The command line, ``llm-router``; it needs typer and rich (the extra ``cli``)."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_NEEDS = ("typer", "rich")
_USAGE = 2


def main() -> None:
    """Run the command line and exit with 0 (done), 1 (something failed), 2 (wrong usage or configuration)."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        words = f"the command line needs {' and '.join(missing)}: pip install 'llm-quota-router[cli]'"
        sys.stderr.write(f"llm-router: {words}\n")
        sys.exit(_USAGE)
    from llm_router.cli.app import app  # noqa: PLC0415 - cannot be imported without the extra

    # The same name for ``python -m llm_router``, since shell completion depends on it.
    app(prog_name="llm-router")

"""What ``llm_router.testing`` offers, and what importing it loads."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import llm_router.emulator
import llm_router.testing


def test_every_name_can_be_imported() -> None:
    """All names in ``__all__`` exist, including lazily imported ones."""
    assert llm_router.testing.__all__ == sorted(llm_router.testing.__all__)
    for name in llm_router.testing.__all__:
        assert getattr(llm_router.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Gemini'"):
        llm_router.testing.Gemini  # noqa: B018


def test_the_emulator_keeps_its_former_names() -> None:
    """Programs may import it from ``llm_router.testing`` and from ``llm_router.testing.emulator``."""
    former = import_module("llm_router.testing.emulator")
    assert former.__all__ == llm_router.emulator.__all__
    for name in former.__all__:
        assert getattr(former, name) is getattr(llm_router.emulator, name)
    assert llm_router.testing.GeminiEmulator is llm_router.emulator.GeminiEmulator


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starlette the error says what to install."""
    for name in [name for name in sys.modules if name.startswith("llm_router.emulator")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ModuleNotFoundError, match=r"GeminiEmulator needs .*llm-quota-router\[emulator\]"):
        llm_router.testing.GeminiEmulator  # noqa: B018


@pytest.mark.slow
def test_importing_testing_does_not_import_the_server() -> None:
    """``llm_router.testing`` can be imported without starlette and uvicorn."""
    code = (
        "import sys, llm_router.testing, llm_router.testing.clock;"
        "print([name for name in ('starlette', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

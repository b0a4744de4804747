from __future__ import annotations

import pytest

from llm_router.config.modelnames import meant_instead


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gemini-3.8-falsh", "gemini-3.8-flash"),
        ("gemni-pro-latest", "gemini-pro-latest"),
        ("gemini-3.5-flash-lit", "gemini-3.5-flash-lite"),
        ("gemini-3-8-flash", "gemini-3.8-flash"),
        ("Gemini 3.8 Flash", "gemini-3.8-flash"),
        ("gemini-flash-3.8", "gemini-3.8-flash"),
        ("gemini-3.8-flash", None),
        ("gemini-1.5-pro", None),
        ("gemini-4.1-flash", None),
        ("gemini-9-ultra", None),
        ("gemini-3.8-flash-thinking", None),
        ("model-l", None),
        ("", None),
    ],
)
def test_a_slip_is_told_from_a_new_name(name: str, meant: str | None) -> None:
    """Misspelt words and other separators are slips; other versions and words of its own are not."""
    assert meant_instead(name) == meant


def test_the_other_names_of_a_file_are_known() -> None:
    """A model that this version has not heard of is known where it stands more often."""
    assert meant_instead("gemini-9-ultar", ["gemini-9-ultra"]) == "gemini-9-ultra"
    assert meant_instead("gemini-9-ultra", ["gemini-9-ultra"]) is None

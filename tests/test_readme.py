"""What the README says is true: its keys file loads, its links lead somewhere, its commands are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_router import Router
from llm_router.config import load_settings
from llm_router.testing import FakeProvider

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_enough_to_be_read_to_its_end() -> None:
    """Figures, recipes and reference have places of their own."""
    assert len(README.splitlines()) <= 200


def test_the_two_commands_are_marked() -> None:
    """The continuous integration takes the test command from here."""
    for name in ("demo", "tests"):
        assert re.search(rf"<!-- {name} -->\n```sh\npython3 -m venv \.venv && .*\n```", README)


async def test_the_keys_file_loads_without_a_warning(tmp_path: Path) -> None:
    """What a reader copies from here makes a router."""
    [text] = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    keys = tmp_path / "keys.json"
    keys.write_text(text, encoding="utf-8")
    env = {"API_KEY_gemini_key_01": "any-text-will-do"}
    settings = load_settings(keys, env=env, env_file=None)
    assert len(settings.deployments) == len(json.loads(text)["keys"])
    async with Router.from_config(keys, env=env, env_file=None, provider=FakeProvider()) as router:
        assert (await router.send("x", workload="heavy")).success


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    """Every relative link names a file of the repository."""
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (path.parent / link).exists(), link

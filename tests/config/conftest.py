from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest

from llm_router.config import Settings, load_settings
from llm_router.errors import ConfigError

SECRET = "Zq7-fake-credential-that-must-not-show-0123456789"


class Project:
    """A directory with a keys file and perhaps a ``.env``, and an environment."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "keys.json"
        self.dotenv = directory / ".env"
        self.env: dict[str, str] = {}

    def entry(self, key_id: str = "k1", **fields: Any) -> dict[str, Any]:
        """Give the key a secret, and return an entry for it."""
        self.env.setdefault(f"API_KEY_{key_id}".replace("-", "_"), f"{SECRET}-{key_id}")
        model = {} if "models" in fields else {"model_name": "gemini-1.5-pro"}
        return {"key_id": key_id, **model, **fields}

    def write(self, *entries: Any, **top: Any) -> Self:
        """Write a keys file with these entries, or one plain entry, and other fields at the top."""
        self.path.write_text(json.dumps({"keys": list(entries) or [self.entry()], **top}))
        return self

    def load(self, **options: Any) -> Settings:
        return load_settings(self.path, **{"env": self.env, **options})

    def refusal(self, **options: Any) -> str:
        """Return the error's message, after checking that it shows no secret and names the file."""
        with pytest.raises(ConfigError) as caught:
            self.load(**options)
        message = str(caught.value)
        assert SECRET not in message
        assert str(self.path) in message
        return message.removeprefix(f"{self.path}: ")

    def quotas(self, place: int = 0, **options: Any) -> dict[str, Any]:
        """Return the limits of a deployment by metric."""
        return {quota.metric.value: quota.limit for quota in self.load(**options).deployments[place].quotas}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project in an empty directory, with an empty working directory."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Project(tmp_path / "project")

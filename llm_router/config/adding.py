"""Keys to add to a configuration: what their entries say, and whether all of it can be read afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from llm_router.config.editing import new_keyfile, with_entries, with_variable
from llm_router.config.environment import Environment, secret_name
from llm_router.config.keyfile import Entry
from llm_router.config.replacing import NewContent, content_of, replace_files
from llm_router.config.settings import examine
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError

__all__ = ["NewKey", "limits_in", "twin_of", "write_keys"]


@attrs.frozen
class NewKey:
    """A key to add.

    Attributes:
        key_id: Its name.
        models: The workload of each model that it serves.
        project: What the provider bills; None to leave it out.
        secret: The credential, or None if the environment has it.
        priority: Of its deployments.
        limits: What its entries say of limits, by model; nothing of a model that is missing.
    """

    key_id: str
    models: Mapping[str, str]
    project: str | None = None
    secret: Secret | None = None
    priority: int = 1
    limits: Mapping[str, Mapping[str, object]] = attrs.field(factory=dict)

    def entries(self) -> list[dict[str, object]]:
        """Return its entries in keys.json, one for each model."""
        key = {"key_id": self.key_id, "provider": "gemini"}
        if self.project is not None:
            key["project"] = self.project
        return [
            {
                **key,
                "model_name": model,
                "tags": {"workload": workload, "priority": self.priority},
                **({"limits": dict(self.limits[model])} if model in self.limits else {}),
            }
            for model, workload in self.models.items()
        ]


def twin_of(secret: Secret, key_ids: Iterable[str], environment: Environment) -> str | None:
    """Return which of the keys has the same secret, or None."""
    return next(
        (each for each in key_ids if environment.secret(secret_name(each))[0] == secret.reveal()), None
    )


def limits_in(project: str, entries: Iterable[Entry]) -> dict[str, dict[str, object]]:
    """Return what the entries of a project say of limits, by model: one more key must say the same."""
    return {
        entry.model: {metric.value: limit for metric, limit in entry.limits.items()}
        for entry in entries
        if entry.project == project and entry.limits
    }


def write_keys(path: Path, env_path: Path, keys: Sequence[NewKey], *, fresh: bool = False) -> None:
    """Add keys to the keys file and their secrets to ``.env``: all of them, or nothing.

    What stands in the files stays. ``.env`` is readable by its owner only afterwards.

    Args:
        path: The keys file; it is made if it does not exist.
        env_path: The ``.env`` file; likewise.
        keys: The keys.
        fresh: Whether the keys file is written anew, whatever it contains.

    Raises:
        ConfigError: The result would not be a good configuration. Nothing has been written then.
        OSError: A file cannot be read or written.
    """
    for directory in (path.parent, env_path.parent):
        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a directory: make it first")
    present = None if fresh else content_of(path)
    entries = [entry for key in keys for entry in key.entries()]
    text = new_keyfile(entries) if present is None else with_entries(present.reveal(), entries)
    _check(text, path)
    files = [NewContent(path, Secret(text))]
    secrets = [(secret_name(key.key_id), key.secret) for key in keys if key.secret is not None]
    if secrets:
        content = content_of(env_path) or Secret("")
        for name, secret in secrets:
            content = with_variable(content, name, secret, str(env_path))
        # First the secrets: an entry whose secret is missing is an error, but not the reverse.
        files.insert(0, NewContent(env_path, content, private=True))
    replace_files(*files)


def _check(text: str, path: Path) -> None:
    """Check the text of a keys file before it takes the place of the old one.

    Raises:
        ConfigError: It has errors.
    """
    with tempfile.TemporaryDirectory() as directory:
        trial = Path(directory, path.name)
        trial.write_text(text, encoding="utf-8", errors="surrogateescape")
        _, report = examine(trial, env={}, env_file=None, secrets_required=False)
    if report.errors:
        words = "\n  ".join(str(error).replace(str(trial), str(path)) for error in report.errors)
        raise ConfigError(f"nothing was changed: {words}")

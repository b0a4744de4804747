"""Secrets and settings from the environment and ``.env``. The environment wins; it is never changed."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from llm_router.config.findings import Report
from llm_router.config.jsonfile import read_text
from llm_router.config.redaction import is_placeholder, mask_url
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError
from llm_router.stores.urls import file_problem, open_store, sqlite_path

__all__ = [
    "Environ",
    "Environment",
    "Switches",
    "env_path",
    "read_environment",
    "secret_fault",
    "secret_name",
]

_SECRET_PREFIX = "API_KEY_"  # noqa: S105 - how their variables begin, not a secret itself
_FAULTS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"[^!-~]", "contains spaces, control characters or letters that no API key has"),
        (r"""^["'`]|["'`]$""", "has a quotation mark at its end: remove the quotation marks"),
        (r"[;,]$", "ends with a semicolon or a comma: remove it"),
        (r"[;,]", "contains a comma or a semicolon: give each key an entry and a variable of its own"),
        (r"\|", "contains a vertical bar: give each key an entry and a variable of its own"),
        (
            r"%[0-9A-Fa-f]{2}",
            "contains a character that is escaped by a percent sign: give it the key as it is",
        ),
        (r"^[A-Za-z][A-Za-z0-9+.-]*://", "is a URL: give it the key alone"),
        (r"\\[nr]$", "ends with the text of a line break: remove it"),
        (r"^[\w.-]+=[^=]", "has a name and = in front of the key: give it the key alone"),
        (r"^=", "has a = in front of the key: remove it"),
        (
            r"(?i)^[\w.-]*(key|secret|token)[\w.-]*:|:AIza",
            "has a name and : in front of the key: give it the key alone",
        ),
        (r"\$\{|^\$|^\{\{|^%\w+%$", "names a variable that nothing replaces: give it the key itself"),
    )
)
"""What no key looks like, whatever its provider; the first match is reported."""

_FLAGS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def secret_name(key_id: str) -> str:
    """Return the name of the variable with the secret of a key, such as ``API_KEY_gemini_key_01``."""
    return _SECRET_PREFIX + re.sub(r"[^A-Za-z0-9]", "_", key_id)


def secret_fault(secret: Secret) -> str | None:
    """Return what is wrong with a value that is to be a secret, such as ``is empty``; None if nothing is."""
    if not secret:
        return "is empty"
    if is_placeholder(secret.reveal()):
        return "is a placeholder"
    return next((words for pattern, words in _FAULTS if pattern.search(secret.reveal())), None)


class Environ(Mapping[str, str]):
    """A view of an environment whose repr shows no values, so that a traceback with locals cannot either."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Environ({len(self)} variables)"


@attrs.frozen
class Switches:
    """The settings from the environment; see :class:`~llm_router.config.Settings`.

    Attributes:
        enabled: Whether all active keys are used; if false, only the first one is.
        max_retries: Most attempts after the first one.
        base_backoff: Upper bound of the first backoff, in seconds.
        max_wait: Most seconds that a send waits for quota.
        store_url: The URL of the store, or None.
        base_url: The base URL of another server for the Gemini API, or None.
    """

    enabled: bool
    max_retries: int
    base_backoff: float
    max_wait: float
    store_url: str | None = attrs.field(repr=False)
    base_url: str | None = attrs.field(repr=False)


class Environment:
    """A reader for variables of the environment and ``.env``, which reports the wrong ones.

    Args:
        environ: The environment itself.
        dotenv: The variables of the ``.env`` file.
        file: The path of that file.
        report: Where problems are reported.
        unreadable: The variables in lines of that file that cannot be read, and the numbers of those lines.
    """

    def __init__(
        self,
        environ: Environ,
        dotenv: Environ,
        file: str,
        report: Report,
        unreadable: Mapping[str, int] | None = None,
    ) -> None:
        self._environ, self._dotenv, self._file, self._report = environ, dotenv, file, report
        self._unreadable = unreadable or {}

    def secrets(self) -> Iterator[str]:
        """Yield the value of every variable whose name is that of a secret."""
        for source in (self._environ, self._dotenv):
            yield from (value for name, value in source.items() if name.startswith(_SECRET_PREFIX))

    def named(self) -> dict[str, str]:
        """Return the variables that have a secret, each with the ``key_id`` that a key of it may have."""
        found = {name: None for source in (self._environ, self._dotenv) for name in source}
        return {
            name: name.removeprefix(_SECRET_PREFIX).replace("_", "-")
            for name in found
            if name.startswith(_SECRET_PREFIX)
            and secret_name(name.removeprefix(_SECRET_PREFIX)) == name
            and self.secret(name)[1] is None
        }

    def strays(self, used: Collection[str]) -> list[str]:
        """Return the variables of secrets in ``.env`` that are not among the ``used`` ones."""
        named = (name for name in self._dotenv if name.upper().startswith(_SECRET_PREFIX))
        return [name for name in named if name not in used]

    @property
    def file(self) -> str:
        """The path of ``.env``."""
        return self._file

    def secret(self, name: str) -> tuple[str, str | None]:
        """Return the secret in a variable and None, or an empty string and the reason."""
        value = self._environ.get(name, self._dotenv.get(name))
        if value is None and name in self._unreadable:
            place = f"line {self._unreadable[name]} of {self._file}"
            return (
                "",
                f"{name} is in {place}, which cannot be read: write {name}=…, and look at quotation marks",
            )
        if value is None:
            return "", f"{name} is not set"
        value = value.strip()
        fault = secret_fault(Secret(value))
        return ("", f"{name} in {self._source(name)} {fault}") if fault else (value, None)

    def switches(self, *, store_needed: bool) -> Switches:
        """Return the settings; check the store that is named only if it is needed."""
        return Switches(
            enabled=self._flag("LLM_MULTI_KEY_ROUTER_ENABLED", default=True),
            max_retries=int(self._number("LLM_MAX_RETRIES", 3, whole=True)),
            base_backoff=self._number("LLM_BASE_BACKOFF_MS", 500) / 1000,
            max_wait=float(self._number("LLM_MAX_WAIT_S", 0)),
            store_url=self._store(needed=store_needed),
            base_url=self._base_url("GOOGLE_GEMINI_BASE_URL"),
        )

    def _source(self, name: str) -> str:
        return "the environment" if name in self._environ else self._file

    def _get(self, name: str) -> str | None:
        """Return a setting, or None if it is absent or empty."""
        return self._environ.get(name, self._dotenv.get(name, "")).strip() or None

    def _error(self, name: str, message: str) -> None:
        self._report.error(f"{name} in {self._source(name)}", message)

    def _flag(self, name: str, *, default: bool) -> bool:
        text = self._get(name)
        if text is None:
            return default
        if text.casefold() not in _FLAGS:
            self._error(name, f"must be true or false (or 1, 0, yes, no, on, off); found {text!r}")
        return _FLAGS.get(text.casefold(), default)

    def _number(self, name: str, default: float, *, whole: bool = False) -> float:
        text = self._get(name)
        if text is None:
            return default
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = -1
        if 0 <= value < math.inf:
            return value
        self._error(name, f"must be a {'whole ' if whole else ''}number of 0 or more; found {text!r}")
        return default

    def _store(self, *, needed: bool) -> str | None:
        urls = {name: self._store_url(name) for name in ("LLM_ROUTER_STORE", "REDIS_URL")}
        name, url = next(((name, url) for name, url in urls.items() if url), ("", None))
        if url is not None and needed:
            self._check_store(name, url)
        return url

    def _check_store(self, name: str, url: str) -> None:
        """Report a store that cannot be opened, and a file that programs elsewhere would not share."""
        try:
            open_store(url)
            problem, path = file_problem(url), sqlite_path(url)
        except ConfigError as error:
            self._error(name, str(error))
            return
        if problem is not None:
            self._error(name, f"the file of the store cannot be used: {problem}")
        elif path is not None and not path.is_absolute():
            self._report.warning(
                f"{name} in {self._source(name)}",
                "the path of the store is relative, so programs that run in other directories have other "
                "counts: write sqlite:////absolute/path",
            )

    def _store_url(self, name: str) -> str | None:
        url = self._get(name)
        if url is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) is None:
            # The value is not shown: without the form of a URL, any part of it may be a password.
            self._error(name, "must be the URL of a store, such as memory:// or redis://localhost:6379/0")
            return None
        return url

    def _base_url(self, name: str) -> str | None:
        url = self._get(name)
        if url is None or _is_web_url(url):
            return url
        self._error(name, f"must be a URL with http:// or https:// and a host; found {mask_url(url)!r}")
        return None


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def env_path(beside: Path, env_file: str | os.PathLike[str] = ".env") -> Path:
    """Return where the ``.env`` file is: in ``beside``, else in the working directory, else to be made."""
    places = (beside / env_file, Path(env_file))
    return next((place for place in places if os.path.lexists(place)), places[0])


def read_environment(
    environ: Environ, env_file: str | os.PathLike[str] | None, beside: Path, report: Report
) -> Environment:
    """Read the ``.env`` file and put it behind the environment.

    Args:
        environ: The environment itself.
        env_file: The file, looked up in ``beside`` and then in the working directory; None for no file. Only
            a file named ``.env`` may be absent. python-dotenv expands the ``${NAME}`` in it.
        beside: The directory of the keys file.
        report: Where problems are reported.
    """
    if env_file is None:
        return Environment(environ, Environ({}), ".env", report)
    path = env_path(beside, env_file)
    if path.name == ".env" and not os.path.lexists(path):
        return Environment(environ, Environ({}), str(path), report)
    text = read_text(path, report, "create it, or name another env_file") or ""
    return Environment(environ, _parse(text), str(path), report, _unreadable(text))


def _parse(text: str) -> Environ:
    from dotenv import dotenv_values  # noqa: PLC0415 - slow to import, often not needed

    values = dotenv_values(stream=io.StringIO(text))
    return Environ({name: value for name, value in values.items() if value is not None})


def _unreadable(text: str) -> dict[str, int]:
    """Return the names of the variables in lines that python-dotenv cannot read, and the lines' numbers."""
    from dotenv.parser import parse_stream  # noqa: PLC0415 - as above

    wrong = (binding.original for binding in parse_stream(io.StringIO(text)) if binding.error)
    names = ((re.match(r"\s*(?:export\s+)?([\w.-]+)", original.string), original.line) for original in wrong)
    return {match[1]: line for match, line in names if match}

"""Typed readers for the fields of a JSON object."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from llm_router.config.findings import Report
from llm_router.config.models import LEARN, Limit
from llm_router.config.redaction import is_placeholder, is_secret_field
from llm_router.domain.deployment import plain_model
from llm_router.domain.numbers import real
from llm_router.domain.quota import MAX_LIMIT

__all__ = ["MAX_WHOLE", "Fields", "JsonObject", "describe", "is_name", "nearest"]

MAX_WHOLE = MAX_LIMIT
"""The largest whole number accepted."""

_LONGEST_SHOWN = 60


class JsonObject(dict[str, object]):
    """A JSON object that remembers which of its fields were repeated."""

    def __init__(self, pairs: Iterable[tuple[str, object]] = ()) -> None:
        super().__init__()
        self.repeated: list[str] = []
        for name, value in pairs:
            if name in self:
                self.repeated.append(name)
            self[name] = value


def describe(value: object) -> str:
    """Return a short text for a JSON value, to go into a report (which masks the secrets in it)."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    # Never truncated: half a secret is still a secret, but the redactor would not recognise it.
    return text if len(text) <= _LONGEST_SHOWN else f"{type(value).__name__} of {len(text)} characters"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``": did you mean …?"`` with the closest known name, or else ``": use one of …"``."""
    from difflib import get_close_matches  # noqa: PLC0415 - only needed for a mistake

    names = sorted(known)
    if close := get_close_matches(name.casefold(), names, n=1):
        return f": did you mean {close[0]!r}?"
    return f": use one of {', '.join(map(repr, names))}"


def is_name(text: str) -> bool:
    """Return whether ``text`` can be shown, stored and sent: no control characters, no lone surrogates."""
    return all(unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"} for character in text)


class Fields:
    """A reader for the fields of a JSON object, which reports the wrong ones.

    A reader returns its default, or None, for a field that is absent or wrong; it never raises, so that one
    run reports every problem. The names that were read are the known ones; :meth:`close` reports all others.

    Args:
        raw: The object.
        where: Its file and entry, as for :class:`~llm_router.config.findings.Finding`.
        report: Where problems are reported.
        prefix: The path from the entry to the object, such as ``tags.``.
        variable: The environment variable that a secret found here should move to.
    """

    def __init__(
        self,
        raw: Mapping[str, object],
        where: str,
        report: Report,
        *,
        prefix: str = "",
        variable: str = "API_KEY_<key_id>",
    ) -> None:
        self.where = where
        self.variable = variable
        self.report = report
        self._raw = raw
        self._prefix = prefix
        self._asked: set[str] = set()
        self._hints: dict[str, str] = {}
        self._nested: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Return whether the field is there, and make its name a known one."""
        self._asked.add(name)
        return name in self._raw

    def place(self, name: str) -> str:
        """Return the file, the entry and the path of a field."""
        return f"{self.where}: {self._prefix}{name}"

    def error(self, name: str, message: str) -> None:
        """Report a field as wrong."""
        self.report.error(self.place(name), message)

    def _wrong(self, name: str, expected: str, remedy: str = "") -> None:
        found = describe(self._raw[name])
        self.error(name, f"must be {expected}; found {found}{remedy and ': ' + remedy}")

    def text(self, name: str) -> str | None:
        """Read a name: a string without control characters and without spaces around it."""
        if name not in self:
            return None
        value = self._raw[name]
        if not isinstance(value, str):
            self._wrong(name, "a string")
        elif self.report.redactor.is_secret(value):
            pass  # reported by close()
        elif not value.strip():
            self.error(name, "is empty: give it a name, or remove the field")
        elif value != value.strip() or not is_name(value):
            self._wrong(name, "a name without control characters and without spaces around it")
        else:
            return value
        return None

    def required_text(self, name: str) -> str | None:
        """Read a name that must be there."""
        if name not in self:
            self.error(name, "is missing: add it")
        return self.text(name)

    def model_name(self, name: str) -> str | None:
        """Read the name of a model, and reject a placeholder left over from a template."""
        value = self.text(name)
        if value is None:
            return None
        plain = plain_model(value)
        if plain and not is_placeholder(plain):
            if plain != value:
                self.report.advise(self.place(name), f"models/ before a name means nothing: write {plain!r}")
            return plain
        self.error(
            name, f"{value!r} is a placeholder: write the name of a model, such as 'gemini-flash-latest'"
        )
        return None

    def choice(self, name: str, known: Iterable[str]) -> str | None:
        """Read one of the known names."""
        value = self.text(name)
        if value is None or value in (names := tuple(known)):
            return value
        self.error(name, f"{describe(value)} is not known{nearest(value, names)}")
        return None

    def flag(self, name: str, *, default: bool) -> bool:
        """Read true or false."""
        if name not in self:
            return default
        value = self._raw[name]
        if isinstance(value, bool):
            return value
        self._wrong(name, "true or false, without quotes" if isinstance(value, str) else "true or false")
        return default

    def whole(self, name: str, *, least: int = 0) -> int | None:
        """Read a whole number of at least ``least``."""
        if name not in self:
            return None
        value = self._raw[name]
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_WHOLE:
            return value
        self._wrong(name, f"a whole number of {least} or more (at most {MAX_WHOLE})", _digits(value))
        return None

    def limit(self, name: str) -> Limit:
        """Read a limit; None means unlimited, so check first whether the field is there."""
        value = self._raw[name]
        if value is None:
            return None
        if value == LEARN:
            return LEARN
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WHOLE:
            return value
        self._wrong(
            name,
            f'a whole number of 0 or more (at most {MAX_WHOLE}), "learn", or null for unlimited',
            _digits(value),
        )
        return None

    def positive(self, name: str) -> float | None:
        """Read a number above 0."""
        if name not in self:
            return None
        value = self._raw[name]
        number = real(value)
        if 0 < number < math.inf:
            return number
        self._wrong(name, "a number above 0")
        return None

    def inner(self, raw: Mapping[str, object], name: str) -> Fields:
        """Return a reader for an object inside this one."""
        return Fields(raw, self.where, self.report, prefix=f"{self._prefix}{name}.", variable=self.variable)

    def hint(self, name: str, remedy: str) -> None:
        """Say what to do with a field that is likely to be met and is not known here."""
        self._hints[name] = remedy

    def says(self, name: str, word: str) -> bool:
        """Return whether a field holds a certain word."""
        return name in self and self._raw[name] == word

    def child(self, name: str, *, word: str = "") -> Fields | None:
        """Return a reader for an object in a field; the caller closes it, and has read the ``word``."""
        if name not in self:
            return None
        value = self._raw[name]
        if not isinstance(value, dict):
            self._wrong(name, "an object in braces" + (f', or "{word}"' if word else ""))
            return None
        self._nested.add(name)
        return self.inner(value, name)

    def members(self) -> Iterator[tuple[str, Fields]]:
        """Yield name and reader of each object in an object whose names are free; replaces :meth:`close`."""
        self._report_repeated()
        for name, value in self._raw.items():
            if self.report.redactor.is_secret(name):
                self._refuse_secret(name)
            elif isinstance(value, dict):
                yield name, self.inner(value, name)
            else:
                self._wrong(name, "an object in braces")

    def items(self, name: str, *, nested: bool = True) -> list[object] | None:
        """Read a list with at least one item; ``nested`` if the caller reads and closes the items itself."""
        if name not in self:
            return None
        value = self._raw[name]
        if not isinstance(value, list):
            self._wrong(name, "a list in brackets")
            return None
        if not value:
            self.error(name, "is an empty list: add an item")
            return None
        if nested:
            self._nested.add(name)
        return value

    def refuse_item(self, name: str, value: object, expected: str) -> None:
        """Report an item of a list as a secret, or as something else than expected."""
        if isinstance(value, str) and self.report.redactor.is_secret(value):
            self._refuse_secret(name)
        else:
            self.error(name, f"must be {expected}; found {describe(value)}")

    def close(self) -> None:
        """Report unknown fields, repeated fields, and secrets in any field."""
        self._report_repeated()
        is_secret = self.report.redactor.is_secret
        for name, value in self._raw.items():
            holds = name not in self._nested and any(map(is_secret, _strings(value)))
            if is_secret(name) or holds or (name not in self._asked and is_secret_field(name)):
                self._refuse_secret(name)
            elif name not in self._asked:
                hint = self._hints.get(name)
                remedy = f": {hint}" if hint else nearest(name, self._asked)
                self.error(name, f"unknown field {describe(name)}{remedy}")

    def _report_repeated(self) -> None:
        for name in getattr(self._raw, "repeated", ()):
            self.error(name, "appears twice: keep one")

    def _refuse_secret(self, name: str) -> None:
        self.error(
            name,
            f"secrets do not belong in this file: remove it and set {self.variable} in the environment or in "
            ".env; rotate the key, since anyone who read the file may have it",
        )


def _digits(value: object) -> str:
    if isinstance(value, str) and value.strip().isdecimal():
        return "write it without quotes"
    if isinstance(value, float) and value.is_integer() and value >= 0:
        return f"write {int(value)}"
    return ""


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _strings(item)

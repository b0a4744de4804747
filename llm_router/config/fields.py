"""Reading the fields of a JSON object, with a typed reader for each kind."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from llm_router.config.findings import Report
from llm_router.config.redaction import is_placeholder, is_secret_field

__all__ = ["MOST", "Fields", "JsonObject", "describe", "is_name", "nearest"]

MOST = 10**15
"""The largest whole number taken: every store can count that far exactly."""

_LONGEST_SHOWN = 60


class JsonObject(dict[str, object]):
    """A JSON object that remembers which of its fields were written twice."""

    def __init__(self, pairs: Iterable[tuple[str, object]] = ()) -> None:
        super().__init__()
        self.repeated: list[str] = []
        for name, value in pairs:
            if name in self:
                self.repeated.append(name)
            self[name] = value


def describe(value: object) -> str:
    """Return a short text for a JSON value, fit for a message (which takes the secrets out of it)."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    # Never cut short: half a secret is a secret, and nothing would recognise it.
    return text if len(text) <= _LONGEST_SHOWN else f"{type(value).__name__} of {len(text)} characters"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``": did you mean …?"`` for the nearest of the known names, else ``": use one of …"``."""
    from difflib import get_close_matches  # noqa: PLC0415 - only needed for a mistake

    names = sorted(known)
    if close := get_close_matches(name.casefold(), names, n=1):
        return f": did you mean {close[0]!r}?"
    return f": use one of {', '.join(map(repr, names))}"


def is_name(text: str) -> bool:
    """Tell whether ``text`` can be shown, stored and sent: no control characters and no half code points."""
    return all(unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"} for character in text)


class Fields:
    """A JSON object that is read field by field; what is wrong goes to the report.

    A reader returns its default, or None, for a field that is absent or wrong: reading goes on, so that one
    run tells every problem. The names asked for are the known ones; :meth:`close` reports the others.

    Args:
        raw: The object.
        where: Its file and entry, as for :class:`~llm_router.config.findings.Finding`.
        report: Who collects the problems.
        prefix: The path from the entry to the object, such as ``tags.``.
        variable: The environment variable to move a secret to.
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
        self._nested: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Tell whether the field is there, and make its name a known one."""
        self._asked.add(name)
        return name in self._raw

    def place(self, name: str) -> str:
        """Return where a field stands."""
        return f"{self.where}: {self._prefix}{name}"

    def error(self, name: str, message: str) -> None:
        """Report a field as wrong."""
        self.report.error(self.place(name), message)

    def _wrong(self, name: str, expected: str, remedy: str = "") -> None:
        found = describe(self._raw[name])
        self.error(name, f"must be {expected}; found {found}{remedy and ': ' + remedy}")

    def text(self, name: str) -> str | None:
        """Read a name: a string of visible characters without spaces around it; None when there is none."""
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
        """Read the name of a model; a template's placeholder is none."""
        value = self.text(name)
        if value is None or not is_placeholder(value):
            return value
        self.error(
            name, f"{value!r} is a placeholder: put the name of a model, such as 'gemini-flash-latest'"
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
        self._wrong(name, "true or false", "write it without quotes" if isinstance(value, str) else "")
        return default

    def whole(self, name: str, *, least: int = 0) -> int | None:
        """Read a whole number of at least ``least``."""
        if name not in self:
            return None
        value = self._raw[name]
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST:
            return value
        self._wrong(name, f"a whole number of {least} or more (at most {MOST})", _digits(value))
        return None

    def limit(self, name: str) -> int | None:
        """Read a limit; None is unlimited. Ask first whether it is there."""
        value = self._raw[name]
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST:
            return value
        self._wrong(
            name, f"a whole number of 0 or more (at most {MOST}), or null for unlimited", _digits(value)
        )
        return None

    def positive(self, name: str) -> float | None:
        """Read a number above 0."""
        if name not in self:
            return None
        value = self._raw[name]
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        self._wrong(name, "a number above 0")
        return None

    def inner(self, raw: Mapping[str, object], name: str) -> Fields:
        """Return a reader of an object inside this one."""
        return Fields(raw, self.where, self.report, prefix=f"{self._prefix}{name}.", variable=self.variable)

    def child(self, name: str) -> Fields | None:
        """Read an object; close it when done."""
        if name not in self:
            return None
        value = self._raw[name]
        if not isinstance(value, dict):
            self._wrong(name, "an object in braces")
            return None
        self._nested.add(name)
        return self.inner(value, name)

    def members(self) -> Iterator[tuple[str, Fields]]:
        """Yield the objects in this one by names that are the user's own; instead of :meth:`close`."""
        self._report_repeated()
        for name, value in self._raw.items():
            if self.report.redactor.is_secret(name):
                self._refuse_secret(name)
            elif isinstance(value, dict):
                yield name, self.inner(value, name)
            else:
                self._wrong(name, "an object in braces")

    def items(self, name: str, *, nested: bool = True) -> list[object] | None:
        """Read a list with at least one item; ``nested`` when the items are read and closed one by one."""
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
        """Report an item of a list as of the wrong kind, or as a secret."""
        if isinstance(value, str) and self.report.redactor.is_secret(value):
            self._refuse_secret(name)
        else:
            self.error(name, f"must be {expected}; found {describe(value)}")

    def close(self) -> None:
        """Report unknown fields, fields written twice, and secrets in any of them."""
        self._report_repeated()
        is_secret = self.report.redactor.is_secret
        for name, value in self._raw.items():
            holds = name not in self._nested and any(map(is_secret, _strings(value)))
            if is_secret(name) or holds or (name not in self._asked and is_secret_field(name)):
                self._refuse_secret(name)
            elif name not in self._asked:
                self.error(name, f"unknown field {describe(name)}{nearest(name, self._asked)}")

    def _report_repeated(self) -> None:
        for name in getattr(self._raw, "repeated", ()):
            self.error(name, "is there twice: keep one")

    def _refuse_secret(self, name: str) -> None:
        self.error(
            name,
            "a secret does not belong into this file: remove it, and set "
            f"{self.variable} in the environment or in .env; whoever read the file may have it, so renew it",
        )


def _digits(value: object) -> str:
    if isinstance(value, str):
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

"""Adding to keys.json and ``.env`` without touching what stands in them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence

from llm_router.config.redaction import is_placeholder
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError

__all__ = ["ENTRY_FIELDS", "new_keyfile", "with_entries", "with_variable"]

ENTRY_FIELDS = ("key_id", "provider", "project", "model_name", "tags", "limits")
"""The fields of an entry, in the order in which they are written."""

_LINE = 110
_SPACE = re.compile(r"\s*")
_BOM = "\ufeff"

Entry = Mapping[str, object]


def new_keyfile(entries: Sequence[Entry]) -> str:
    """Return the text of a keys file with these entries."""
    lines = ",\n    ".join(_compact(entry, "    ") for entry in entries)
    return f'{{\n  "keys": [\n    {lines}\n  ]\n}}\n'


def with_entries(text: str, entries: Sequence[Entry]) -> str:
    """Return the text of a keys file with more entries at the end of its ``keys``.

    Everything else stays as it is written: order, unknown fields, spaces. The new entries are indented as the
    last one is.

    Raises:
        ConfigError: There is no list of keys at the top.
    """
    items, close = _keys(text)
    if not items:
        added = ",\n    ".join(_compact(entry, "    ") for entry in entries)
        return f"{text[:close].rstrip()}\n    {added}\n  {text[close:]}"
    start, end = items[-1]
    before = items[-2][1] + 1 if len(items) > 1 else text.rindex("[", 0, start) + 1
    gap = text[text.index(",", items[-2][1]) + 1 : start] if len(items) > 1 else text[before:start]
    margin = gap.rpartition("\n")[2] if "\n" in gap else ""
    added = "".join(f",{gap}{_like(text[start:end], entry, margin)}" for entry in entries)
    return text[:end] + added + text[end:]


def _keys(text: str) -> tuple[list[tuple[int, int]], int]:
    """Return where each item of ``keys`` begins and ends, and where the list closes."""
    decoder = json.JSONDecoder()
    try:
        place = _skip(text, text.index("{") + 1)
        while text[place] != "}":
            name, place = decoder.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)  # the colon
            if name == "keys" and text[place] == "[":
                return _items(text, place, decoder)
            place = _skip(text, decoder.raw_decode(text, place)[1])
            place = _skip(text, place + 1) if text[place] == "," else place
    except (ValueError, IndexError):  # the message could quote the text
        pass
    raise ConfigError("the file has no list of keys at the top: write it like keys.json.example")


def _items(text: str, place: int, decoder: json.JSONDecoder) -> tuple[list[tuple[int, int]], int]:
    items: list[tuple[int, int]] = []
    place = _skip(text, place + 1)
    while text[place] != "]":
        end = decoder.raw_decode(text, place)[1]
        items.append((place, end))
        place = _skip(text, end)
        place = _skip(text, place + 1) if text[place] == "," else place
    return items, place


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _like(model: str, entry: Entry, margin: str) -> str:
    """Write an entry as another one is written: field by field on lines of their own, or compactly."""
    first = re.match(r"\{\r?\n([ \t]*)\"", model)
    if first is None:
        return _compact(entry, margin)
    indent = first[1].removeprefix(margin) or "  "
    return json.dumps(entry, indent=indent, ensure_ascii=False).replace("\n", f"\n{margin}")


def _compact(entry: Entry, margin: str) -> str:
    """Write an entry on one line, or where that is too long on two, as the guide does."""
    line = json.dumps(entry, ensure_ascii=False)
    late = {name: value for name, value in entry.items() if name in ENTRY_FIELDS[4:]}
    if len(margin) + len(line) + 1 <= _LINE or not late:
        return line
    early = {name: value for name, value in entry.items() if name not in late}
    first, second = (json.dumps(part, ensure_ascii=False) for part in (early, late))
    return f"{first[:-1]},\n{margin} {second[1:]}"


def with_variable(text: Secret, name: str, value: Secret, file: str) -> Secret:
    """Return the text of a ``.env`` file in which a variable has a value, and all else is as it was.

    A line that gives the variable nothing, or a placeholder, is replaced; otherwise a line is added.

    Args:
        text: The text so far.
        name: The variable.
        value: Its value, which needs no quotation marks.
        file: The path of the file, for messages.

    Raises:
        ConfigError: The variable would not be read back, as after a quotation mark that nothing closes.
    """
    new = _with_line(text, name, value)
    if not _says(new, name, value):
        raise ConfigError(f"{file}: a line in it cannot be read: look at its quotation marks, then try again")
    return new


def _with_line(text: Secret, name: str, value: Secret) -> Secret:
    from dotenv.parser import parse_stream  # noqa: PLC0415 - slow to import

    bom = _BOM if text.reveal().startswith(_BOM) else ""
    plain = text.reveal().removeprefix(_BOM)
    end = "\r\n" if "\r\n" in plain else "\n"
    parts, done = [], False
    for binding in parse_stream(io.StringIO(plain, newline="")):
        part = binding.original.string
        if binding.key == name and not done and not binding.error and _is_gap(binding.value):
            blank = part[: len(part) - len(part.lstrip())]
            part, done = f"{blank}{name}={value.reveal()}{end}", True
        parts.append(part)
    written = "".join(parts)
    if not done:
        written += end if written and not written.endswith("\n") else ""
        written += f"{name}={value.reveal()}{end}"
    return Secret(bom + written)


def _is_gap(value: str | None) -> bool:
    return value is None or not value.strip() or is_placeholder(value)


def _says(text: Secret, name: str, value: Secret) -> bool:
    from dotenv import dotenv_values  # noqa: PLC0415 - slow to import

    stream = io.StringIO(text.reveal().removeprefix(_BOM))
    return dotenv_values(stream=stream).get(name) == value.reveal()

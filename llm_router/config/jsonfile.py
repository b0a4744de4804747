"""A file with one JSON object, and how to read it."""

from __future__ import annotations

import json
from pathlib import Path

from llm_router.config.fields import JsonObject, describe
from llm_router.config.findings import Report

__all__ = ["read_json", "read_text"]


def read_text(path: Path, report: Report, missing: str) -> str | None:
    """Return the text of a UTF-8 file, or None after reporting a problem.

    Args:
        path: The file.
        report: Where problems are reported.
        missing: The remedy to report if the file does not exist.
    """
    where = str(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        report.error(where, f"does not exist: {missing}")
    except UnicodeDecodeError as error:
        report.error(where, f"is not UTF-8 text (byte {error.start}): save it as UTF-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        report.error(where, f"cannot be read ({reason}): make it a file that this process may read")
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def read_json(path: Path, report: Report, missing: str) -> JsonObject | None:
    """Return the JSON object in a file, or None after reporting a problem."""
    text = read_text(path, report, missing)
    if text is None:
        return None
    where = str(path)
    # A syntax error is reported without the text around it, which may contain a secret.
    try:
        value = json.loads(text, object_pairs_hook=JsonObject, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        report.error(where, f"is not JSON ({place}: {error.msg}): correct it there or just before that place")
    except ValueError:
        report.error(where, "is not JSON: NaN, Infinity and numbers of thousands of digits are not allowed")
    except RecursionError:
        report.error(where, "is nested too deeply: write it like keys.json.example")
    else:
        if isinstance(value, JsonObject):
            return value
        report.error(where, f'must be an object, {{"keys": [...]}}; found {describe(value)} at the top level')
    return None

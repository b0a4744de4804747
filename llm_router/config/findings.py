"""The problems and warnings of a configuration, all collected before anything is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from llm_router.config.redaction import Redactor
from llm_router.errors import ConfigError

__all__ = ["Finding", "Report"]

_SHOWN = 10


@attrs.frozen
class Finding:
    """One problem or warning. No part of it ever contains a secret.

    Attributes:
        level: ``error`` keeps a router from starting, ``warning`` does not.
        where: File, entry and field, such as ``keys.json: keys[3] (gemini-key-04): limits.rpm``, or the name
            of an environment variable.
        message: What is wrong and what to do about it.
    """

    level: Literal["error", "warning"]
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class Report:
    """A collection of findings, in which secrets are masked.

    Attributes:
        redactor: Recognises secrets.
    """

    def __init__(self, redactor: Redactor | None = None) -> None:
        self.redactor = redactor or Redactor()
        self._findings: list[Finding] = []
        self._advice: list[Finding] = []

    def error(self, where: str, message: str) -> None:
        """Add a problem that keeps a router from starting."""
        self._add("error", where, message)

    def warning(self, where: str, message: str) -> None:
        """Add something that works but is probably a mistake."""
        self._add("warning", where, message)

    def advise(self, where: str, message: str) -> None:
        """Add what may be meant and is worth a look: a check shows it, loading does not log it."""
        self._advice.append(Finding("warning", self._clean(where), self._clean(message)))

    def _add(self, level: Literal["error", "warning"], where: str, message: str) -> None:
        self._findings.append(Finding(level, self._clean(where), self._clean(message)))

    def _clean(self, text: str) -> str:
        """Mask secrets, and escape characters that would garble a terminal or a log."""
        redacted = self.redactor.redact(text)
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in redacted)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything found so far, in order."""
        return tuple(self._findings)

    @property
    def advice(self) -> tuple[Finding, ...]:
        """What is worth a look, in order; none of it is among the findings."""
        return tuple(self._advice)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The errors among the findings."""
        return tuple(finding for finding in self._findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The warnings among the findings."""
        return tuple(finding for finding in self._findings if finding.level == "warning")

    def raise_errors(self) -> None:
        """Raise all errors as one.

        Raises:
            ConfigError: There are errors; the message lists the first ten.
        """
        if errors := self.errors:
            raise ConfigError(_join(errors))


def _join(errors: Sequence[Finding]) -> str:
    if len(errors) == 1:
        return str(errors[0])
    lines = [f"{len(errors)} problems in the configuration:", *map(str, errors[:_SHOWN])]
    if len(errors) > _SHOWN:
        lines.append(f"… and {len(errors) - _SHOWN} more: llm-router check lists them all")
    return "\n  ".join(lines)

"""Asking at the terminal, or reading what is piped in: secrets are not echoed, and never an argument."""

from __future__ import annotations

import getpass
import sys
import warnings

import typer

from llm_router.cli.output import complain
from llm_router.config.redaction import Redactor
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError

__all__ = ["ask", "ask_secret", "can_ask", "is_secret"]


def can_ask() -> bool:
    """Return whether a person can answer: whether standard input is a terminal."""
    return sys.stdin.isatty()


def ask(question: str, default: str) -> str:
    """Return the answer to a question, which is asked on standard error; empty is the default.

    Raises:
        ConfigError: The input has ended, or the answer looks like a secret.
    """
    typer.echo(f"{question} [{default}]: " if default else f"{question}: ", nl=False, err=True)
    answer = Secret(sys.stdin.readline())  # which it may be, by mistake
    if not answer:
        complain("")
        raise ConfigError("the input ended before the answer: nothing was changed")
    if is_secret(answer):
        raise ConfigError("that looks like a secret, and was shown: answer with a name; nothing was changed")
    return answer.reveal().strip() or default


def is_secret(word: Secret) -> bool:
    """Return whether a word that is to be a name looks like a secret."""
    return Redactor().is_secret(word.reveal())


def ask_secret(question: str) -> Secret:
    """Return a secret that is typed without echo, or the next line of what is piped in; perhaps empty.

    Raises:
        ConfigError: The terminal would show it.
    """
    if not can_ask():
        return Secret(sys.stdin.readline().strip())
    secret = _typed(f"{question}: ")
    if secret is None:
        raise ConfigError("this terminal would show the secret: pipe it in")
    return secret


def _typed(prompt: str) -> Secret | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            return Secret(getpass.getpass(prompt).strip())
    except EOFError:
        return Secret("")
    except getpass.GetPassWarning:
        return None

"""Mark credentials: a quarantine ends when its credential is replaced, so it must know which it was."""

from __future__ import annotations

import secrets

from llm_router.domain.deployment import Deployment

__all__ = ["ANY", "is_marked", "mark"]

ANY = "*"
"""The mark of a quarantine that is not bound to one credential."""

_SALT_BYTES = 8


def mark(deployment: Deployment, *, whole_project: bool) -> str:
    """Return the mark of a deployment's credential, under a salt of its own.

    It has 32 bits: of 4 billion credentials one fits it by chance, so it shows that a credential was replaced
    and can prove none. With ``whole_project``, keys that share a project explicitly share the quarantine,
    which then is not bound to one of them.
    """
    key = deployment.key
    if whole_project and key.project != key.key_id:
        return ANY
    salt = secrets.token_bytes(_SALT_BYTES)
    return f"{salt.hex()}:{key.secret.mark(salt)}"


def is_marked(deployment: Deployment, known: str) -> bool:
    """Whether a mark may be that of the deployment's credential."""
    salt, separator, digest = known.partition(":")
    try:
        return not separator or deployment.key.secret.mark(bytes.fromhex(salt)) == digest
    except ValueError:  # written by another version: nothing is known against it
        return True

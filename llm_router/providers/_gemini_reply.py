"""Reading the SDK's response objects."""

from __future__ import annotations

from typing import Any

import attrs

from llm_router.domain.response import Usage
from llm_router.providers._gemini_history import AnswerParts
from llm_router.providers.base import Reply

__all__ = ["BLOCKING_REASONS", "ReplyReader", "read_reply"]

BLOCKING_REASONS = frozenset(
    {
        "BLOCKLIST",
        "ESCALATION",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "IMAGE_SAFETY",
        "LANGUAGE",
        "MODEL_ARMOR",
        "PROHIBITED_CONTENT",
        "RECITATION",
        "SAFETY",
        "SPII",
    }
)
"""Finish reasons with which the provider withholds an answer because of what it says."""

_MAX_TOKENS = "MAX_TOKENS"
_ENDS = frozenset({None, "CONTINUATION", _MAX_TOKENS, "STOP"})
"""Finish reasons that an answer without content may have; with any other one, or one that is not known yet,
the model has failed, as with ``MALFORMED_FUNCTION_CALL``, ``OTHER`` and ``NO_IMAGE``."""

_NO_CANDIDATES = "NO_CANDIDATES"
"""Our own word for an answer that consists of its usage and gives no reason."""


def read_reply(response: Any, *, limited: bool = False) -> Reply | None:
    """Return the answer in ``response``, or None if it contains none.

    An answer has a candidate with content or a finish reason, or prompt feedback instead of one, or at least
    its usage.

    Args:
        response: The response.
        limited: Whether the request limits the tokens of its answer. A model that reaches the limit while it
            thinks may answer without a candidate.
    """
    reply = _read_candidate(response)
    if reply is not None:
        return reply
    usage = _usage(response.usage_metadata)
    return _usage_alone(Reply("", usage, model=response.model_version, raw=response), limited=limited)


def _usage_alone(reply: Reply, *, limited: bool) -> Reply | None:
    """Return the answer that consists of the usage in ``reply``, or None if there is none."""
    usage = reply.usage
    if usage is None or usage == Usage():
        return None
    if limited or usage.thinking_tokens:
        return attrs.evolve(reply, finish_reason=_MAX_TOKENS)
    return attrs.evolve(reply, failed=_NO_CANDIDATES)


def _read_candidate(response: Any) -> Reply | None:
    """Return the answer that ``response`` has as a candidate or as prompt feedback, or None."""
    candidate = response.candidates[0] if response.candidates else None
    finish_reason = _name(candidate.finish_reason) if candidate else None
    if candidate is None or (candidate.content is None and finish_reason is None):
        blocked = _prompt_block(response.prompt_feedback)
        if blocked is None:
            return None
    else:
        blocked = finish_reason if finish_reason in BLOCKING_REASONS else None
    has_failed = blocked is None and finish_reason not in _ENDS and not _has_content(candidate)
    return Reply(
        text=_text(candidate),
        usage=_usage(response.usage_metadata),
        finish_reason=finish_reason,
        model=response.model_version,
        blocked=blocked,
        content=_content(candidate),
        raw=response,
        failed=finish_reason if has_failed else None,
    )


def _name(member: Any) -> str | None:
    return None if member is None else str(member.name)


def _prompt_block(feedback: Any) -> str | None:
    if feedback is None:
        return None
    # Feedback comes only with a refused prompt, even if it gives no reason.
    return _name(feedback.block_reason) or "BLOCKED_REASON_UNSPECIFIED"


def _text(candidate: Any) -> str:
    """Join the text parts that are not thoughts; the SDK's own property warns about other parts."""
    if candidate is None or candidate.content is None:
        return ""
    return "".join(part.text for part in candidate.content.parts or () if part.text and not part.thought)


def _has_content(candidate: Any) -> bool:
    """Return whether ``candidate`` has more to say than thoughts and empty parts."""
    if candidate is None or candidate.content is None:
        return False
    return any(
        any(part.model_dump(exclude_none=True, exclude={"thought_signature"}).values())
        for part in candidate.content.parts or ()
        if not part.thought
    )


def _content(candidate: Any) -> dict[str, Any] | None:
    """Copy what a later request may send back, as plain dictionaries; None if there is nothing."""
    return AnswerParts().read(candidate)


def _usage(metadata: Any) -> Usage | None:
    if metadata is None:
        return None
    return Usage(
        input_tokens=(metadata.prompt_token_count or 0) + (metadata.tool_use_prompt_token_count or 0),
        output_tokens=metadata.candidates_token_count or 0,
        thinking_tokens=metadata.thoughts_token_count or 0,
        cached_tokens=metadata.cached_content_token_count or 0,
        total_tokens=metadata.total_token_count or 0,
    )


class ReplyReader:
    """Reads the responses of one streamed answer.

    Args:
        limited: Whether the request limits the tokens of its answer.

    Attributes:
        is_complete: Whether the answer has ended: one of the responses said why.
    """

    def __init__(self, *, limited: bool = False) -> None:
        self.is_complete = False
        self._limited = limited
        self._whole = Reply("")
        self._parts = AnswerParts(joins_text=True)
        self._has_candidate = self._has_content = False

    def read(self, response: Any) -> Reply:
        """Return the text of ``response``, with what is known so far of the whole answer.

        A response without a candidate, such as one that only counts tokens, adds what it has.
        """
        reply, whole = _read_candidate(response), self._whole
        if reply is None:
            usage = _usage(response.usage_metadata) or whole.usage
            model = response.model_version or whole.model
            self._whole = attrs.evolve(whole, text="", usage=usage, model=model, raw=response)
            return self._whole
        self._has_candidate = True
        self._has_content = self._has_content or _has_content((response.candidates or [None])[0])
        self.is_complete = bool(reply.finish_reason or reply.blocked) or self.is_complete
        self._whole = Reply(
            reply.text,
            reply.usage or whole.usage,
            reply.finish_reason or whole.finish_reason,
            reply.model or whole.model,
            reply.blocked or whole.blocked,
            self._parts.read((response.candidates or [None])[0]),
            response,
            None if self._has_content else reply.failed or whole.failed,
        )
        return self._whole

    def end(self) -> Reply | None:
        """Return what the end of the stream says of the answer, or None if nothing.

        An answer may consist of its usage alone, as for :func:`read_reply`.
        """
        reply = None if self._has_candidate else _usage_alone(self._whole, limited=self._limited)
        self.is_complete = self.is_complete or reply is not None
        return reply

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
"""Finish reasons with which the provider withholds an answer because of what it says.

``MAX_TOKENS``, ``OTHER``, ``NO_IMAGE`` and malformed calls are not among them: the caller judges such an
answer.
"""


def read_reply(response: Any) -> Reply | None:
    """Return the answer in ``response``, or None if it contains none.

    An answer has a candidate with content or a finish reason, or prompt feedback instead of one.
    """
    candidate = response.candidates[0] if response.candidates else None
    finish_reason = _name(candidate.finish_reason) if candidate else None
    if candidate is None or (candidate.content is None and finish_reason is None):
        blocked = _prompt_block(response.prompt_feedback)
        if blocked is None:
            return None
    else:
        blocked = finish_reason if finish_reason in BLOCKING_REASONS else None
    return Reply(
        text=_text(candidate),
        usage=_usage(response.usage_metadata),
        finish_reason=finish_reason,
        model=response.model_version,
        blocked=blocked,
        content=_content(candidate),
        raw=response,
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

    Attributes:
        is_complete: Whether the answer has ended: one of the responses said why.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._whole = Reply("")
        self._parts = AnswerParts(joins_text=True)

    def read(self, response: Any) -> Reply:
        """Return the text of ``response``, with what is known so far of the whole answer.

        A response without a candidate, such as one that only counts tokens, adds what it has.
        """
        reply, whole = read_reply(response), self._whole
        if reply is None:
            usage = _usage(response.usage_metadata) or whole.usage
            self._whole = attrs.evolve(whole, usage=usage, raw=response)
            return attrs.evolve(self._whole, text="")
        self.is_complete = bool(reply.finish_reason or reply.blocked) or self.is_complete
        self._whole = Reply(
            reply.text,
            reply.usage or whole.usage,
            reply.finish_reason or whole.finish_reason,
            reply.model or whole.model,
            reply.blocked or whole.blocked,
            self._parts.read((response.candidates or [None])[0]),
            response,
        )
        return self._whole

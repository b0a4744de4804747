"""Generated answers as interactions: whole, and as the events of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from llm_router.gemini_http.framing import Body, dump

if TYPE_CHECKING:
    from llm_router.emulator.answers import Answer
    from llm_router.gemini_http.api_errors import ApiError

__all__ = ["InteractionReplies"]


@attrs.frozen
class InteractionReplies:
    """How the answer of one interaction looks.

    Attributes:
        shown: What every form of it shows: its id, its model, the time.
        keep: Is given the interaction, its answer as a content, and the events of its stream.
        status: What a whole answer says of itself first; None is what it comes to.
    """

    END = b"event: done\ndata: [DONE]\n\n"

    shown: Body
    keep: Callable[[Body, Body, list[Body]], None] = attrs.field(repr=False)
    status: str | None = None

    def generated(self, answer: Answer) -> Body:
        """Return the interaction with all its steps."""
        self.chunks(answer, 1)
        if self.status is None:
            return self._resource(answer)
        return self.shown | {"object": "interaction", "status": self.status, "updated": self.shown["created"]}

    def chunks(self, answer: Answer, count: int) -> list[Body]:
        """Return the events of the interaction, its text in at most ``count`` of them."""
        begun = self.shown | {"object": "interaction", "status": "in_progress"}
        events: list[Body] = [{"event_type": "interaction.created", "interaction": begun}]
        if answer.calls:
            for index, step in enumerate(_steps(answer)):
                events.append({"event_type": "step.start", "index": index, "step": step})
                events.append({"event_type": "step.stop", "index": index})
        else:
            events.append({"event_type": "step.start", "index": 0, "step": {"type": "model_output"}})
            for text, _ in answer.pieces(count):
                delta = {"type": "text", "text": text}
                events.append({"event_type": "step.delta", "index": 0, "delta": delta})
            events.append({"event_type": "step.stop", "index": 0})
        resource = self._resource(answer)
        done = {name: value for name, value in resource.items() if name != "steps"}
        events.append({"event_type": "interaction.completed", "interaction": done})
        numbered = [event | {"event_id": f"event-{number}"} for number, event in enumerate(events)]
        self.keep(resource, _content(answer), numbered)
        return numbered

    def without_content(self, answer: Answer, finish_reason: str) -> Body:
        """Return an interaction without steps."""
        del finish_reason
        return self._resource(answer) | {"status": "incomplete", "steps": []}

    def prompt_blocked(self, answer: Answer, reason: str) -> Body:
        """Return an interaction that failed because of its prompt."""
        error = {"code": "blocked", "message": f"The prompt was blocked: {reason}"}
        return self._resource(answer) | {"status": "failed", "steps": [], "errors": [error]}

    def failed(self, error: ApiError) -> Body:
        """Return the event for ``error``."""
        fields = {"code": error.status.lower(), "message": error.message}
        return {"event_type": "error", "error": fields, "event_id": "event-error"}

    @staticmethod
    def event(body: Body) -> bytes:
        """Return an event as a server-sent event; a whole interaction is the event of its completion."""
        if "event_type" not in body:
            body = {"event_type": "interaction.completed", "interaction": body, "event_id": "event-0"}
        return b"event: " + str(body["event_type"]).encode() + b"\ndata: " + dump(body) + b"\n\n"

    def _resource(self, answer: Answer) -> Body:
        status = "completed" if answer.finish_reason == "STOP" else "incomplete"
        return self.shown | {
            "object": "interaction",
            "status": "requires_action" if answer.calls else status,
            "updated": self.shown["created"],
            "steps": _steps(answer),
            "usage": {
                "total_input_tokens": answer.prompt_tokens,
                "total_output_tokens": answer.output_tokens,
                "total_thought_tokens": answer.thought_tokens,
                "total_cached_tokens": answer.cached_tokens,
                "total_tokens": answer.total_tokens,
            },
        }


def _steps(answer: Answer) -> list[Body]:
    if not answer.calls:
        return [{"type": "model_output", "content": [{"type": "text", "text": answer.text}]}]
    return [
        {"type": "function_call", "id": call.call_id, "name": call.name, "arguments": dict(call.args)}
        for call in answer.calls
    ]


def _content(answer: Answer) -> Body:
    """Return the answer as a turn for the contents of the next interaction."""
    calls: list[Body] = [
        {"functionCall": {"id": call.call_id, "name": call.name, "args": dict(call.args)}}
        for call in answer.calls
    ]
    return {"role": "model", "parts": calls or [{"text": answer.text}]}

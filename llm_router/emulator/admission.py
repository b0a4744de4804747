"""The way in: quotas are counted and faults shown before a request is served."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_router.emulator.faults import Fault, FaultKind
from llm_router.emulator.refusals import BARE_429, RefusalError, error_data, error_for, over_quota
from llm_router.gemini_http.framing import JSON_TYPE, Body, dump

if TYPE_CHECKING:
    from llm_router.domain.clock import Clock
    from llm_router.emulator.calls import Call
    from llm_router.emulator.faults import FaultRules
    from llm_router.emulator.quota import EmulatedQuotas

__all__ = ["Admission"]


class Admission:
    """Counts calls against their quotas, and shows their faults."""

    def __init__(self, quotas: EmulatedQuotas, faults: FaultRules, clock: Clock) -> None:
        self._quotas = quotas
        self._faults = faults
        self._clock = clock

    async def enter(self, call: Call, tokens: int | None) -> Fault | None:
        """Count a call on arrival, or refuse it; return its fault. With ``tokens`` None it uses no quota.

        Raises:
            RefusalError: A quota or a fault refuses it.
            ConnectionGoneError: A fault dropped the connection, or the client left while it was paused.
        """
        rule = self._faults.match(call.model, call.key, call.method, streams=call.streams)
        if rule is not None and not rule.fault.counted:
            if rule.fault.code == HTTPStatus.TOO_MANY_REQUESTS and tokens is not None:
                self._quotas.refuse(call.project, call.model, tokens, self._clock.time())
            return await self._show(call, rule.take())
        if tokens is not None:
            now = self._clock.time()
            violations = self._quotas.admit(call.project, call.model, tokens, now)
            if violations:
                raise RefusalError.of(over_quota(call.model, violations, now))
        return await self._show(call, rule.take()) if rule is not None else None

    async def reply(self, call: Call, fault: Fault | None, body: Body) -> None:
        """Send ``body`` as the whole answer, cut or empty if ``fault`` says so."""
        kind = fault.kind if fault is not None else None
        if fault is not None and kind is FaultKind.CUT_JSON:
            data = (
                dump(body)
                if fault.code == HTTPStatus.OK
                else error_data(error_for(fault.code, call.model), openai=call.openai)
            )
            await call.exchange.reply(fault.code, data[: len(data) // 2])
        elif kind is FaultKind.EMPTY:
            await call.exchange.reply(200, b"", JSON_TYPE)
        else:
            await call.exchange.reply_json(200, body)

    async def _show(self, call: Call, fault: Fault) -> Fault | None:
        """Show a fault that needs no answer from the model, or return the fault."""
        if fault.seconds:
            await call.exchange.pause(fault.seconds)
        match fault.kind:
            case FaultKind.DELAY:
                return None
            case FaultKind.HANG:
                await call.exchange.pause(None)
                return None
            case FaultKind.DROP:
                await call.exchange.drop()
            case FaultKind.STATUS if fault.body is None:
                raise RefusalError.of(error_for(fault.code, call.model), fault.headers)
            case FaultKind.STATUS:
                raise RefusalError(fault.code, fault.body, fault.headers)
            case FaultKind.BARE_429:
                raise RefusalError.of(BARE_429)
            case FaultKind.LIST_429:
                raise RefusalError(fault.code, dump([error_for(fault.code, call.model).body]))
        return fault

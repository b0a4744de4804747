"""A Gemini server on loopback, with the wire format, the quotas and the failures of the real one.

Needs starlette and uvicorn (the extra ``emulator``).
"""

from llm_router.emulator.answers import FunctionCall
from llm_router.emulator.bucket import Counts, QuotaSpec
from llm_router.emulator.emulator import GeminiEmulator
from llm_router.emulator.faults import Fault, FaultKind, FaultRule
from llm_router.emulator.quota import Arrival
from llm_router.emulator.tokens import count_input_tokens, count_text_tokens

__all__ = [
    "Arrival",
    "Counts",
    "Fault",
    "FaultKind",
    "FaultRule",
    "FunctionCall",
    "GeminiEmulator",
    "QuotaSpec",
    "count_input_tokens",
    "count_text_tokens",
]

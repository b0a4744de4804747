"""The emulator under the name it had before it became a package of its own, :mod:`llm_router.emulator`."""

from llm_router.emulator import (
    Arrival,
    Counts,
    Fault,
    FaultKind,
    FaultRule,
    FunctionCall,
    GeminiEmulator,
    QuotaSpec,
    count_input_tokens,
    count_text_tokens,
)

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

"""The Gemini API over HTTP, as plain values: paths, error bodies, durations, framing of answers.

The adapter reads what the emulator writes, so both take their knowledge of the format from here.
"""

__all__: list[str] = []

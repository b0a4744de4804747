"""An estimate of the tokens of a text, without a vocabulary.

Gemini's tokenizer needs a vocabulary that must be downloaded, so the text is weighed by the classes of its
characters instead: a token is about five letters in prose, one digit in numbers, and little more than one
character in base64 and CJK. The weights are set by hand; they err upwards on code, identifiers and dense
text. The engine corrects the rest with factors learnt for each model.
"""

from __future__ import annotations

from math import ceil

__all__ = ["estimate_tokens"]

_EXACT_BYTES = 64 * 1024
_SLICE = 2048
_SLICES = _EXACT_BYTES // _SLICE

_LETTER = 0.2
_DENSE_LETTER = 0.5
"""Weight of a letter in text without words, such as a gene sequence."""
_LONGEST_WORD = 12
_WIDER_BY = 0.02
_INNER_CAPITAL = 1.2
"""A capital after a small letter or a digit starts a new token, as in base64 and camelCase."""
_CAPITAL_PAIR = 0.45
_LETTER_AFTER_DIGIT = 0.6
_DIGIT = 1.0
_PUNCTUATION = 0.75
_NEWLINE = 0.6
_BLANK_PAIR = 0.1
_TWO_BYTES = 0.45
_INDIC = 0.6
_SYMBOL = 1.0
_CJK = 0.8
_FOUR_BYTES = 1.5
_CONTROL = 1.0


def _class_table() -> bytes:
    """Return a table from each byte of UTF-8 to a character for its class (``-`` for continuation bytes)."""
    table = bytearray(b"c" * 32 + b"." * 96 + b"-" * 64 + b"2" * 32 + b"3" * 16 + b"4" * 16)
    ranges = {"a": b"az", "A": b"AZ", "0": b"09"}
    for name, (first, last) in ranges.items():
        table[first : last + 1] = name.encode() * (last - first + 1)
    table[ord(" ")] = table[ord("\t")] = ord(" ")
    table[ord("\n")] = table[ord("\r")] = ord("n")
    table[0x7F] = ord("c")
    table[0xE0:0xE2] = b"ii"
    table[0xE2] = table[0xEE] = table[0xEF] = ord("s")
    return bytes(table)


_CLASSES = _class_table()
_WORD_BEGINS = (b" a", b" A", b".a", b".A", b"na", b"nA")


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of ``text``.

    Of a text over 64 KiB only evenly spaced samples are weighed, so the time is bounded: well under a
    millisecond, whatever the length.

    Args:
        text: Any text, even with lone surrogates.

    Returns:
        At least 1, and otherwise never more than the bytes of the text in UTF-8.
    """
    if len(text) <= _EXACT_BYTES:
        return max(1, ceil(_weigh(text)))
    stride = len(text) / _SLICES
    samples = (text[int(n * stride) : int(n * stride) + _SLICE] for n in range(_SLICES))
    return ceil(sum(map(_weigh, samples)) * len(text) / _EXACT_BYTES)


def _weigh(text: str) -> float:
    """Return the estimated tokens of ``text`` as a fraction."""
    data = text.encode("utf-8", "surrogatepass")
    # A leading blank, so that the first word begins after something, as every other word does.
    classes = b" " + data.translate(_CLASSES)
    count = classes.count
    return min(
        float(len(data)),
        _latin(classes)
        + (0.0 if text.isascii() else _beyond_ascii(classes))
        + _DIGIT * count(b"0")
        + _PUNCTUATION * count(b".")
        + _NEWLINE * count(b"n")
        + _BLANK_PAIR * count(b"  ")
        + _CONTROL * count(b"c"),
    )


def _latin(classes: bytes) -> float:
    """Weigh ASCII letters: in words, in runs too long to be words, and where a token must break."""
    count = classes.count
    letters = count(b"a") + count(b"A")
    if not letters:
        return 0.0
    words = sum(map(count, _WORD_BEGINS)) or 1
    excess = max(letters / words - _LONGEST_WORD, 0.0)
    weight = min(_LETTER + _WIDER_BY * excess, _DENSE_LETTER)
    breaks = _INNER_CAPITAL * (count(b"aA") + count(b"0A")) + _LETTER_AFTER_DIGIT * count(b"0a")
    return letters * weight + breaks + _CAPITAL_PAIR * count(b"AA")


def _beyond_ascii(classes: bytes) -> float:
    """Weigh characters of two to four bytes by their first byte."""
    count = classes.count
    return (
        _TWO_BYTES * count(b"2")
        + _INDIC * count(b"i")
        + _SYMBOL * count(b"s")
        + _CJK * count(b"3")
        + _FOUR_BYTES * count(b"4")
    )

"""How long a refusal asks to wait, as far as it can be meant."""

from __future__ import annotations

import pytest

from llm_router.domain.kinds import FailureKind
from llm_router.errors import QuotaViolation
from llm_router.providers._gemini_delays import LONGEST_DAY, LONGEST_MINUTE, credible_delay, header_delay

MINUTE, DAY, UNKNOWN = (QuotaViolation(metric, None) for metric in ("tpm", "tpd", None))


@pytest.mark.parametrize(
    ("kind", "violations", "longest"),
    [
        ("quota", (MINUTE,), LONGEST_MINUTE),
        ("quota", (MINUTE, UNKNOWN), LONGEST_MINUTE),
        ("quota", (MINUTE, DAY), LONGEST_DAY),
        ("quota", (UNKNOWN,), LONGEST_DAY),
        ("quota", (), LONGEST_DAY),
        ("server", (), LONGEST_MINUTE),
        ("network", (), LONGEST_MINUTE),
    ],
)
def test_bounds(kind, violations, longest):
    """A delay is at least a second, and at most what the longest-lived of the named quotas needs."""
    assert credible_delay(1e9, FailureKind(kind), violations) == longest
    assert credible_delay(0.0, FailureKind(kind), violations) == 1.0
    assert credible_delay(36.4, FailureKind(kind), violations) == 36.4
    assert credible_delay(None, FailureKind(kind), violations) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("37", 37.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("-1", 0.0),
        ("9" * 500, 1e9),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_header(value, seconds):
    """A Retry-After header counts in seconds; a date does not, without the server's clock."""
    assert header_delay(value) == seconds

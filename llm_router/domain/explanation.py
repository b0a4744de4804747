"""What a send would decide now, and why: as values, and in the words that a person reads."""

from __future__ import annotations

from enum import StrEnum

import attrs

from llm_router.domain.quota import Metric
from llm_router.domain.request import Fallback
from llm_router.domain.status import LimitStatus
from llm_router.domain.wording import (
    count,
    known_words,
    metric_words,
    printable,
    seconds_words,
    shortened,
)

__all__ = ["Exclusion", "ExplainedCandidate", "ExplainedQuota", "ExplainedTier", "Explanation"]

_LINES = 20
"""Most candidates that have a line in the text of an explanation."""


class Exclusion(StrEnum):
    """Why a deployment cannot be taken now."""

    DISABLED = "disabled"
    """The key or the model is disabled by hand."""
    QUARANTINED = "quarantined"
    """It is out of use until a request that tries again succeeds, or until it is lifted."""
    COOLING_DOWN = "cooling down"
    """It cools down, for all processes."""
    AVOIDED = "avoided"
    """This process alone avoids it, after failures or for what the request asks for."""
    PACED = "paced"
    """This process keeps what is left of its day for later (``rpd_pacing``), as a status calls it."""
    UNREACHABLE = "unreachable"
    """The circuit breaker of its provider is open, in this process."""
    QUOTA = "quota"
    """A quota has no room for the request."""
    PARKED = "parked"
    """Its quotas have room again, but this process does not know that yet, and asks others first."""
    STRATEGY = "strategy"
    """The strategy leaves it out."""


_WORDS = {
    Exclusion.QUARANTINED: "quarantined: {}",
    Exclusion.COOLING_DOWN: "cooling down: {}",
    Exclusion.AVOIDED: "avoided: {}",
    Exclusion.PACED: "paced: {}",
    Exclusion.QUOTA: "{} has no room",
    Exclusion.PARKED: "parked: {}",
}


@attrs.frozen(kw_only=True)
class ExplainedQuota:
    """One quota of a deployment, and whether the request fits.

    Attributes:
        metric: What is counted.
        name: Its name in ``KeyStatus["limits"]`` or ``["project_limits"]``: the metric, or ``spending``.
        amount: What the request would take, in requests or tokens.
        remaining: Share (0 to 1) of the limit that remains before the request; 1 while no limit is known.
        fits: Whether there is room for it now.
        fits_in: Seconds until there is, at the latest, if no other request takes any; 0 if there is now, None
            for never. Where the amount exceeds a learnt limit: until that rises, which may not be enough.
        status: What is used, the limit in force and how it is known, as in ``KeyStatus["limits"]``.
    """

    metric: Metric
    name: str
    amount: int
    remaining: float
    fits: bool
    fits_in: float | None
    status: LimitStatus

    def __str__(self) -> str:
        """Return what is used, would be taken and is admitted: ``tpm 40 + 3/1000 (configured)``."""
        status, limit = self.status, self.status["limit"]
        least = "" if status["counted_since"] is None else "≥"
        amount = f" + {self.amount}" if self.metric.counts_tokens else ""
        now = status["reset_at"] - status["reset_in_seconds"]
        learnt_ago = None if status["learnt_at"] is None else now - status["learnt_at"]
        is_try = status["raised_at"] is not None and status["raised_at"] <= now
        known = known_words(status["source"], limit, learnt_ago, 0.0 if is_try else None)
        if status["full_until"] is not None:
            known += "; full, says the provider"
        shown = f"{least}{status['used']}{amount}/{'?' if limit is None else limit}"
        return f"{metric_words(self.name)} {shown} ({known})"


@attrs.frozen(kw_only=True)
class ExplainedCandidate:
    """One deployment, as a send would see it now.

    Attributes:
        key_id: The key.
        model: The model.
        provider: The provider.
        project: What the provider bills and limits.
        workload: The workload that it is meant for.
        priority: Lower numbers are tried first.
        distance: Workloads between its own and the one asked for; 0 if none was asked for.
        rank: Its place among those that a send would ask, over all tiers, from 1; None if it would not ask.
        is_taken: Whether a send would take it: it is the first with room.
        headroom: Share (0 to 1) of its tightest quota that remains, as this process estimates it for ranking.
        failures: Transient failures in a row, which rank it lower.
        tokens: Input tokens that would be reserved.
        quotas: Its quotas; those without a limit are missing.
        project_quotas: What all models of its project share, as far as the provider has refused it.
        exclusion: What keeps it out of use the longest; None if it is taken, or would be if those before it
            had no room.
        reason: The same in words, such as the reason of the cooldown or the metric of the quota; None without
            an exclusion.
        usable_in: Seconds until it can be taken, at the latest, if no other request takes its quota; 0 if it
            can be now, None if waiting does not help or nothing is known of it.
    """

    key_id: str
    model: str
    provider: str
    project: str
    workload: str
    priority: int
    distance: int
    rank: int | None
    is_taken: bool
    headroom: float
    failures: int
    tokens: int
    quotas: tuple[ExplainedQuota, ...]
    exclusion: Exclusion | None
    reason: str | None
    usable_in: float | None
    project_quotas: tuple[ExplainedQuota, ...] = ()

    @property
    def remaining(self) -> float:
        """Share (0 to 1) of its tightest quota that remains before the request; 1 without a limit."""
        return min((quota.remaining for quota in (*self.quotas, *self.project_quotas)), default=1.0)

    @property
    def decision(self) -> str:
        """Whether it would be taken and, if not, why and for how long; a long reason is shortened."""
        if self.exclusion is None:
            return "taken" if self.is_taken else "has room"
        words = _WORDS.get(self.exclusion, "{}").format(shortened(self.reason or self.exclusion.value))
        if self.usable_in is not None:
            return f"{words}, for {seconds_words(self.usable_in)}"
        return f"{words}, for good" if self.exclusion is Exclusion.QUOTA else words

    @property
    def counts(self) -> str:
        """Its quotas in words, those of all models of its project last."""
        words = [*map(str, self.quotas), *(f"all models: {quota}" for quota in self.project_quotas)]
        return ", ".join(words) or "no limits"

    def __str__(self) -> str:
        """Return what it is, what a send decides of it, and what is left, in one line."""
        failures = f", {count(self.failures, 'failure')} in a row" if self.failures else ""
        what = f"{self.key_id}/{self.model} ({self.workload}, priority {self.priority}{failures})"
        return printable(f"{what}: {self.decision}; {self.remaining:.0%} left: {self.counts}")


@attrs.frozen
class ExplainedTier:
    """One tier of the fallback order.

    Attributes:
        size: How many deployments it has.
        candidates: Those that are explained: first the ones that a send would ask, best first, then the
            excluded ones, first usable first.
    """

    size: int
    candidates: tuple[ExplainedCandidate, ...]


@attrs.frozen(kw_only=True)
class Explanation:
    """What a send would decide now.

    Attributes:
        workload: The workload asked for, or None.
        model: The model asked for, or None.
        fallback: How far from these the send may go.
        tiers: The tiers of the fallback order, best first.
        retry_after: Seconds until the first of the candidates is usable; 0 if one would be taken now, None if
            waiting does not help.
        left_out: How many deployments are not explained, since there are too many.
    """

    workload: str | None
    model: str | None
    fallback: Fallback
    tiers: tuple[ExplainedTier, ...]
    retry_after: float | None
    left_out: int = 0

    @property
    def candidates(self) -> tuple[ExplainedCandidate, ...]:
        """The explained deployments of all tiers, in their order."""
        return tuple(candidate for tier in self.tiers for candidate in tier.candidates)

    @property
    def taken(self) -> ExplainedCandidate | None:
        """The deployment that a send would take; None if none of the explained ones has room."""
        return next((candidate for candidate in self.candidates if candidate.is_taken), None)

    @property
    def verdict(self) -> str:
        """Which deployment a send would take; if none, when to come back."""
        if self.taken is not None:
            tokens = count(self.taken.tokens, "token")
            return printable(
                f"would be sent through {self.taken.key_id}/{self.taken.model}, reserving {tokens}"
            )
        if self.retry_after is None:
            return "nothing has room, and waiting does not help"
        return f"nothing has room now: retry in {seconds_words(self.retry_after)}"

    def __str__(self) -> str:
        """Return the verdict, and a line for each of the first candidates; the ``repr`` has everything."""
        lines = [
            f"tier {number}, {'not asked' if each.rank is None else f'rank {each.rank}'}: {each}"
            for number, tier in enumerate(self.tiers, 1)
            for each in tier.candidates
        ]
        more = self.left_out + len(lines[_LINES:])
        return "\n".join([self.verdict, *lines[:_LINES], *([f"and {more} more"] if more else [])])

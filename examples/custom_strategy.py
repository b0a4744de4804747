"""A strategy of your own: free keys before paid ones, and among equals the least loaded first.

A strategy orders the few deployments that the router considers; it does no I/O. Run the example with
``python examples/custom_strategy.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_router import Candidate, Deployment, Key, Metric, Quota, Router, Secret
from llm_router.testing import FakeProvider


class FreeFirst:
    """A strategy that prefers keys of projects whose name begins with ``free``."""

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates, free keys first and among equals the least loaded first."""
        return sorted(candidates, key=self._rank)

    @staticmethod
    def _rank(candidate: Candidate) -> tuple[bool, float]:
        paid = not candidate.deployment.key.project.startswith("free")
        return paid, -candidate.headroom


def deployment(name: str, project: str) -> Deployment:
    """Return a deployment on a new key with quota for three requests a minute."""
    key = Key(name, Secret("not-needed-by-the-fake-provider"), project=project)
    return Deployment(key, "gemini-3.5-flash-lite", "light", quotas=(Quota(Metric.RPM, 3),))


async def main() -> None:
    """Show that the paid key is used only when the quotas of the free ones are spent."""
    pool = [deployment("paid", "acme"), deployment("free-a", "free-1"), deployment("free-b", "free-2")]
    async with Router(pool, strategy=FreeFirst(), provider=FakeProvider()) as router:
        used = [(await router.send(f"prompt {n}")).key_id for n in range(8)]
    print("used in order:", ", ".join(str(name) for name in used))
    assert set(used[:6]) == {"free-a", "free-b"}  # noqa: S101 - the point of the example
    assert used[6:] == ["paid", "paid"]  # noqa: S101 - the point of the example


if __name__ == "__main__":
    asyncio.run(main())

"""A strategy of your own: spend the free keys before the paid ones, then whatever is least loaded.

A strategy orders the few deployments that the router considers; it is given no secret and does no I/O. Run
it with ``python examples/custom_strategy.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_router import Candidate, Deployment, Key, Metric, Quota, Router, Secret
from llm_router.testing import FakeProvider


class FreeFirst:
    """Prefers keys whose project is called ``free…``."""

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates, free ones first, among equals the least loaded."""
        return sorted(candidates, key=self._rank)

    @staticmethod
    def _rank(candidate: Candidate) -> tuple[bool, float]:
        paid = not candidate.deployment.key.project.startswith("free")
        return paid, -candidate.headroom


def deployment(name: str, project: str) -> Deployment:
    """Make a key that may be used three times a minute."""
    key = Key(name, Secret("not-needed-by-the-fake-provider"), project=project)
    return Deployment(key, "gemini-flash-latest", "light", quotas=(Quota(Metric.RPM, 3),))


async def main() -> None:
    """Show that the paid key is touched only when the free ones are spent."""
    pool = [deployment("paid", "acme"), deployment("free-a", "free-1"), deployment("free-b", "free-2")]
    async with Router(pool, strategy=FreeFirst(), provider=FakeProvider()) as router:
        used = [(await router.send(f"prompt {n}")).key_id for n in range(8)]
    print("used in order:", ", ".join(str(name) for name in used))
    assert set(used[:6]) == {"free-a", "free-b"}  # noqa: S101 - the point of the example
    assert used[6:] == ["paid", "paid"]  # noqa: S101 - the point of the example


if __name__ == "__main__":
    asyncio.run(main())

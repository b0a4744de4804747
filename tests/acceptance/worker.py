"""A process that sends: started by test_processes.py, once per process.

It says ``ready`` when it could start, starts when a line comes in, and prints one JSON object at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys

from llm_router import Deployment, Key, Metric, Quota, Router, Secret

MODEL = "gemini-flash-latest"


def deployments(count: int, rpm: int | None, tpm: int | None) -> list[Deployment]:
    """Make the same pool in every process."""
    limits = {Metric.RPM: rpm, Metric.TPM: tpm}
    quotas = tuple(Quota(metric, limit) for metric, limit in limits.items() if limit is not None)
    return [
        Deployment(Key(f"key-{n}", Secret(f"emulated-secret-{n}")), MODEL, "light", quotas=quotas)
        for n in range(count)
    ]


def prompts(count: int, *, mixed: bool) -> list[str]:
    """Make prompts, all short or of mixed size."""
    sizes = [random.choice([4, 40, 400, 1_600]) if mixed else 4 for _ in range(count)]
    return ["abcd" * (size // 4) for size in sizes]


async def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Send everything at once."""
    pool = deployments(arguments.keys, arguments.rpm, arguments.tpm)
    router = Router(pool, store=arguments.store, base_url=arguments.url)
    async with router:
        await router.health_check()  # connects to the store
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        responses = await asyncio.gather(
            *(router.send(text) for text in prompts(arguments.count, mixed=arguments.tpm is not None))
        )
        health = await router.health_check()
    return {
        "succeeded": sum(response.success for response in responses),
        "refused": sum(response.retry_after is not None for response in responses),
        "attempts": sum(response.attempts for response in responses),
        "errors": sorted({str(r.error)[:200] for r in responses if r.error and r.retry_after is None}),
        "store_ok": health["store_ok"],
    }


def main() -> None:
    """Read the arguments, work, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--rpm", type=int)
    parser.add_argument("--tpm", type=int)
    print(json.dumps(asyncio.run(work(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()

"""Three agents that share one router: a planner (light), a coder (medium) and a debugger (heavy).

Each agent names the workload it needs and knows nothing of keys. Run the example with
``python examples/three_agents.py``. It uses the bundled emulator in place of the Gemini API.
"""

from __future__ import annotations

import asyncio

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator

MODELS = {"light": "gemini-3.5-flash-lite", "medium": "gemini-3.8-flash", "heavy": "gemini-pro-latest"}


class Agent:
    """An agent with an instruction, a workload and a conversation of its own."""

    def __init__(self, router: Router, name: str, workload: str, instruction: str) -> None:
        self.name = name
        self._conversation = router.conversation(name, workload=workload, system_instruction=instruction)

    async def work(self, task: str) -> str:
        """Return the answer to a task, waiting up to two minutes for quota."""
        response = await self._conversation.send(task, max_wait=120)
        print(f"{self.name} ({response.model} through {response.key_id}): {response.text}")
        return response.text


def deployments() -> list[Deployment]:
    """Return deployments on two keys for every model."""
    return [
        Deployment(
            Key(f"{workload}-{number}", Secret(f"emulated-{workload}-{number}")),
            model,
            workload,
            quotas=(Quota(Metric.RPM, 15),),
        )
        for workload, model in MODELS.items()
        for number in (1, 2)
    ]


async def main() -> None:
    """Make a plan, write its parts at the same time, and debug them."""
    async with GeminiEmulator() as gemini, Router(deployments(), base_url=gemini.url) as router:
        planner = Agent(router, "planner", "light", "You plan in short steps.")
        coder = Agent(router, "coder", "medium", "You write Python.")
        debugger = Agent(router, "debugger", "heavy", "You find bugs.")

        plan = await planner.work("Plan a command line for to-do lists")
        parts = await asyncio.gather(*(coder.work(f"Write part {n} of: {plan}") for n in (1, 2, 3)))
        await debugger.work("Find the bugs in: " + " / ".join(parts))
        await planner.work("What comes next?")


if __name__ == "__main__":
    asyncio.run(main())

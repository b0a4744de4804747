"""An agent of the Agent Development Kit over a pool of keys: each step is a request."""

import asyncio

from google.adk.agents import Agent
from google.adk.models import Gemini
from google.adk.runners import InMemoryRunner

from llm_router.genai import Client


def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


model = Gemini(model="gemini-3.8-flash", client=Client.from_config("keys.json", max_wait=30))
runner = InMemoryRunner(Agent(name="adder", model=model, tools=[add]), app_name="adding")
events = asyncio.run(runner.run_debug('call:add{"first": 2, "second": 3}', quiet=True))
print("google-adk:", events[-1].content.parts[0].text)

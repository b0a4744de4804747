"""An agent of Pydantic AI over a pool of keys."""

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.google import GoogleProvider

from llm_router.genai import Client


class Ship(BaseModel):
    name: str
    launched: int


client = Client.from_config("keys.json", max_wait=30)
model = GoogleModel("gemini-3.8-flash", provider=GoogleProvider(client=client))
answer = Agent(model, output_type=Ship).run_sync("Name a famous ship.")
print("pydantic-ai:", repr(answer.output))

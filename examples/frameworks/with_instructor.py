"""Instructor over a pool of keys."""

import instructor
from pydantic import BaseModel

from llm_router.genai import Client


class Ship(BaseModel):
    name: str
    launched: int


client = Client.from_config("keys.json", max_wait=30)
asking = instructor.from_genai(client, model="gemini-3.8-flash")
ship = asking.create(response_model=Ship, messages=[{"role": "user", "content": "Name a famous ship."}])
print("instructor:", repr(ship))

"""An endpoint of FastAPI: the router lives as long as the application. Run it with ``fastapi dev``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from llm_router import Router


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the router when the application starts, and close it when it stops."""
    async with Router.from_config("keys.json", store="sqlite:///state.sqlite3") as router:
        app.state.router = router
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/ask")
async def ask(prompt: str, workload: str = "light") -> str:
    """Answer a prompt; 429 says when to come back."""
    response = await app.state.router.send(prompt, workload=workload, max_wait=30)
    if not response.success:
        seconds = str(round(response.retry_after or 60))
        raise HTTPException(429, str(response.error), headers={"Retry-After": seconds})
    return str(response.text)

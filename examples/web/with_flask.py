"""An endpoint of Flask, whose threads share one router. Run it with ``flask --app with_flask run``."""

from flask import Flask, request
from flask.typing import ResponseReturnValue

from llm_router.sync import SyncRouter

app = Flask(__name__)
router = SyncRouter.from_config("keys.json", store="sqlite:///state.sqlite3")


@app.post("/ask")
def ask() -> ResponseReturnValue:
    """Answer a prompt; 429 says when to come back."""
    response = router.send(request.form["prompt"], workload="light", max_wait=30)
    if not response.success:
        return str(response.error), 429, {"Retry-After": str(round(response.retry_after or 60))}
    return response.text

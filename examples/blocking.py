"""Calls from code without an event loop: a script, or the cells of a notebook, whose own loop may be running.

Run it with ``python examples/blocking.py``. A fake provider stands in for the Gemini API; with real keys in
keys.json and .env, ``SyncRouter.from_config()`` is the whole set-up.
"""

# %%
from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.sync import SyncRouter
from llm_router.testing import FakeProvider


def make_router() -> Router:
    """Return a router with one key for each of two models."""
    quotas = (Quota(Metric.RPM, 10),)
    return Router(
        [
            Deployment(Key("key-1", Secret("any")), "gemini-3.5-flash-lite", "light", quotas=quotas),
            Deployment(Key("key-2", Secret("any")), "gemini-pro-latest", "heavy", quotas=quotas),
        ],
        provider=FakeProvider(),
    )


router = SyncRouter(make_router)

# %%
print(router.send("Summarise this", workload="light").text)

# %%
with router.stream("Tell me a story", workload="heavy") as stream:
    for chunk in stream:
        print(chunk.text, end="")
print()

# %%
for response in router.batch(["one", "two", "three"], workload="light", max_wait=60):
    print(f"{response.model}: {response.text}")

# %%
for status in router.get_all_key_statuses():
    print(status["key_id"], "has", status["limits"]["rpm"]["remaining"], "requests left this minute")

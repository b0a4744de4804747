"""A task of Celery, whose workers share the quotas. Run them with ``celery -A with_celery worker``."""

from celery import Celery, Task

from llm_router.sync import SyncRouter

app = Celery("tasks", broker="redis://localhost:6379/1")
# Made before the workers are forked: each of them gets a router of its own at its first call.
router = SyncRouter.from_config("keys.json", store="redis://localhost:6379/0")


@app.task(bind=True, max_retries=5)
def ask(self: Task, prompt: str) -> str:
    """Answer a prompt; without quota, try again when there is some."""
    response = router.send(prompt, workload="heavy", urgency="batch", max_wait=30)
    if not response.success and response.retry_after is not None:
        raise self.retry(countdown=response.retry_after)
    return response.text

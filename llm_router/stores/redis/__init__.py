"""The store that several machines share: state in Redis or Valkey."""

from llm_router.stores.redis.store import RedisStore

__all__ = ["RedisStore"]

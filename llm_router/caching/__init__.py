"""A cache of answers, at the edge of a send: the same request is answered once."""

from llm_router.caching.cache import AnswerCache, Cache
from llm_router.domain.status import CacheSavings

__all__ = ["AnswerCache", "Cache", "CacheSavings"]

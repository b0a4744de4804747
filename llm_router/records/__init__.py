"""Records: small values by name, and counts, which outlive the process beside the quotas."""

from llm_router.records.base import Bounds, Record, RecordStore
from llm_router.records.memory import MemoryRecords
from llm_router.records.urls import open_records

__all__ = ["Bounds", "MemoryRecords", "Record", "RecordStore", "open_records"]

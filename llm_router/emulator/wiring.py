"""The parts of an emulator, put together: what serves which operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.emulator.admission import Admission
from llm_router.emulator.app import GeminiApp
from llm_router.emulator.caches import CacheService
from llm_router.emulator.chat import ChatService
from llm_router.emulator.files import FileService
from llm_router.emulator.interactions import InteractionService
from llm_router.emulator.models import ModelService
from llm_router.emulator.service import GeminiService

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_router.domain.clock import Clock
    from llm_router.emulator.calls import Settings
    from llm_router.emulator.connections import Connections
    from llm_router.emulator.faults import FaultRules
    from llm_router.emulator.keyring import Keyring
    from llm_router.emulator.quota import EmulatedQuotas

__all__ = ["make_app"]


def make_app(
    settings: Settings,
    quotas: EmulatedQuotas,
    faults: FaultRules,
    keyring: Keyring,
    connections: Connections,
    clock: Clock,
    stats: Callable[[], object],
) -> GeminiApp:
    """Return the application that serves every operation of the emulator."""
    admission = Admission(quotas, faults, clock)
    models, files = ModelService(settings, admission), FileService(admission, clock)
    caches = CacheService(admission, models, files, clock)
    service = GeminiService(settings, admission, files, caches)
    chat = ChatService(service, models, clock)
    interactions = InteractionService(service, models, admission, clock)
    services = (service, models, files, caches, chat, interactions)
    handlers = {name: handler for part in services for name, handler in part.operations.items()}
    return GeminiApp(handlers, models, keyring, connections, stats)

"""What every service is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.services.chain_slot import ChainSlot
    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.provider import Provider
    from tollkeeper_ledger.store.listener import Listener
    from tollkeeper_ledger.store.pool import Pools
    from tollkeeper_ledger.store.redis_servers import RedisServers


@dataclass(frozen=True, slots=True)
class Resources:
    """Hold what a process has one of. Built in `app.py`, given to every service."""

    settings: Settings
    pools: Pools
    redis: RedisServers
    clock: LedgerClock
    listener: Listener
    chain: ChainSlot
    log: FilteringBoundLogger
    provider: Provider | None = None
    """None where no payment provider is configured."""

"""A ledger as a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tollkeeper_ledger.config import Settings


@asynccontextmanager
async def process(
    settings: Settings,
    port: int,
    *,
    http_port: int = 0,
    environment: Mapping[str, str] | None = None,
    stderr: int | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a ledger process until the block ends, which kills it."""
    own = {
        "TOLLKEEPER_DATABASE_URL": settings.database_url,
        "TOLLKEEPER_REDIS_URL": settings.redis_url,
        "TOLLKEEPER_LEDGER_LISTEN": f"127.0.0.1:{port}",
        "TOLLKEEPER_LEDGER_HTTP": f"127.0.0.1:{http_port}",
        "TOLLKEEPER_LOG_LEVEL": "WARNING",
        **(environment or {}),
    }
    async with killed("tollkeeper_ledger", "serve", environment=own, stderr=stderr) as running:
        yield running


@asynccontextmanager
async def killed(
    *module: str, environment: Mapping[str, str], stderr: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module with its arguments as a process until the block ends, which kills it."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *module, env={**os.environ, **environment}, stderr=stderr
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGKILL)
        await running.wait()

"""A ledger that takes OTLP metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from http_support import METERED
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tollkeeper_ledger.app import Running
    from tollkeeper_ledger.config import Settings

MAPPING = """
[[metric]]
name = "calls"
meter = "requests"
tenant = "tenant.id"
attributes = { "http.route" = "path" }

[[metric]]
name = "sent"
meter = "bytes"
tenant = "tenant.id"
scale = "1024"

[[metric]]
name = "stored"
meter = "bytes"
tenant = "tenant.id"
kind = "gauge"
"""
"""Two counters and a gauge."""


@asynccontextmanager
async def serving(settings: Settings, tmp_path: Path) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """Serve a ledger with a mapping."""
    path = tmp_path / "otlp.toml"
    path.write_text(MAPPING)
    async with running(settings.model_copy(update={"otlp_mapping": path})) as ledger:
        base = f"http://127.0.0.1:{ledger.http_port}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as http:
            applied = await http.post("/v1/catalogue:apply", json={"request_id": "metered", "yaml": METERED})
            assert applied.status_code == 200, applied.text
            yield ledger, http


def text(key: str, value: str) -> dict[str, Any]:
    """Give an attribute."""
    return {"key": key, "value": {"stringValue": value}}

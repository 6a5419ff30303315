"""Ask a ledger over HTTP."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx

METERED = """
version: 1
seller: {id: default, name: Example GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}
meters:
  - {name: requests, unit: requests, aggregation: sum, attributes: [path, who], pseudonymise: [who]}
  - {name: bytes, unit: bytes, aggregation: sum, attributes: [who]}
plans:
  - {name: free, currency: USD, billing_interval: {unit: month, count: 1}}
tenants: [{id: acme, name: Acme, plan: free}, {id: other, name: Other, plan: free}]
"""
"""A catalogue with two meters and two tenants."""


async def stored(http: httpx.AsyncClient, tenant: str = "acme") -> dict[str, dict[str, Any]]:
    """Give a tenant's stored records by id."""
    answer = await http.get(f"/v1/tenants/{tenant}/usage/records")
    rows = [one for line in answer.text.splitlines() for one in json.loads(line)["records"]]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


async def findings(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Recompute chain, records and rollups, and give what is wrong."""
    told = [json.loads(line) for line in (await http.get("/v1/usage/verification")).text.splitlines()]
    assert told[-1]["done"]
    return [one["finding"] for one in told if one.get("finding")]


async def served(http: httpx.AsyncClient) -> None:
    """Wait until the ledger answers."""
    async with asyncio.timeout(120):
        while True:
            with suppress(httpx.TransportError):
                if (await http.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.05)

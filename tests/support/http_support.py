"""Ask a ledger over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


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

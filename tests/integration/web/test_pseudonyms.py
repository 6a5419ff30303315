"""Pseudonyms at the ledger: who is meant by them, and what the end of a key changes."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from http_support import findings, stored

if TYPE_CHECKING:
    import httpx

RECORDED, DUPLICATE = "RECORD_OUTCOME_RECORDED", "RECORD_OUTCOME_DUPLICATE"
PSEUDONYM = re.compile(r"p[1-9][0-9]*\.[A-Za-z0-9_-]{22}")


def record(**changed: Any) -> dict[str, Any]:
    """Give a record under an id of its own."""
    at = datetime.now(UTC) - timedelta(seconds=5)
    return {
        "id": f"p-{secrets.token_hex(8)}",
        "tenant": "acme",
        "event_time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "quantities": [{"meter": "requests", "units": 3}],
        **changed,
    }


async def who_is_stored(http: httpx.AsyncClient, tenant: str, who: str) -> str:
    """Record a use by somebody and give what is stored of the name."""
    one = record(tenant=tenant, attributes={"who": who})
    assert (await http.post("/v1/usage", json=one)).json()["outcome"] == RECORDED
    name: str = (await stored(http, tenant))[one["id"]]["attributes"]["who"]
    return name


async def test_pseudonyms_tell_values_and_tenants_apart(http: httpx.AsyncClient) -> None:
    """The same value has one pseudonym in a tenant, another value another one, and another tenant's tells nothing."""
    ann, again, bob = [await who_is_stored(http, "acme", who) for who in ("ann", "ann", "bob")]
    elsewhere = await who_is_stored(http, "other", "ann")
    assert ann == again
    assert len({ann, bob, elsewhere}) == 3
    assert all(PSEUDONYM.fullmatch(name) for name in (ann, bob, elsewhere))


async def test_a_destroyed_key_changes_nothing_that_is_stored(http: httpx.AsyncClient) -> None:
    """Afterwards chain and sums are sound, repeats are duplicates, other content is a conflict, and names are new."""
    one = record(attributes={"path": "/a", "who": "ann"})
    assert (await http.post("/v1/usage", json=one)).json()["outcome"] == RECORDED
    before = (await stored(http))[one["id"]]["attributes"]["who"]
    neighbour = await who_is_stored(http, "other", "ann")
    forget = {"request_id": "forget", "note": "she asked us to"}
    told = [await http.post("/v1/tenants/acme/pseudonyms:forget", json=forget) for _ in range(2)]
    version = told[0].json()["version"]
    assert version > 1
    assert [answer.json() for answer in told] == [{"version": version}] * 2, told[0].text
    async with asyncio.timeout(60):
        while not (name := await who_is_stored(http, "acme", "ann")).startswith(f"p{version}."):
            assert name == before
    assert (await http.post("/v1/usage", json=one)).json()["outcome"] == DUPLICATE
    for changed in ({"quantities": [{"meter": "requests", "units": 4}]}, {"attributes": {"path": "/b", "who": "ann"}}):
        assert (await http.post("/v1/usage", json={**one, **changed})).status_code == 409
    assert (await stored(http))[one["id"]]["attributes"]["who"] == before
    assert neighbour == await who_is_stored(http, "other", "ann")
    assert await findings(http) == []


async def test_a_key_is_destroyed_for_a_reason(http: httpx.AsyncClient) -> None:
    """Without a note it is refused by field, and the key stays."""
    before = await who_is_stored(http, "other", "ann")
    answer = await http.post("/v1/tenants/other/pseudonyms:forget", json={"request_id": "why"})
    assert (answer.status_code, answer.json()["error"]["details"][0]["metadata"]["field"]) == (400, "note")
    assert before == await who_is_stored(http, "other", "ann")
